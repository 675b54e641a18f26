"""What the server allows its clients."""

import dataclasses

from ..arguments import integer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the server.

    Attributes
    ----------
    body : int
        Most bytes of a request.
    prompt : int or None
        Most tokens of a prompt; None: as many as the context holds.
    waiting : int
        Most answers that wait for their first token; who comes then is sent away (429).
    seconds : int
        Longest time for an answer, waiting included; one that has begun then ends with the finish_reason "length".
    stall : int
        Seconds that a client may leave what it was sent unread, or its own request unfinished.
    grace : int
        Seconds that answers may go on after the server was told to end.
    """

    body: int = 8 << 20
    prompt: int | None = None
    waiting: int = 64
    seconds: int = 600
    stall: int = 30
    grace: int = 10

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "prompt" or value is not None:
                integer(field.name, value, 0 if field.name == "grace" else 1, 2**40)
