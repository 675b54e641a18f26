"""Every exception and warning that numainfer raises on purpose.

A message names the thing, what was found and what was wanted; for a file it also gives the byte offset.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .results import Completion


class NumaInferError(Exception):
    """Base of all numainfer errors."""


class ModelNotFound(NumaInferError, FileNotFoundError):
    """The source given to ``load`` leads to no file; the message lists where it was looked for."""


class CorruptModel(NumaInferError, ValueError):
    """The file breaks the GGUF format, or its keys and tensors do not fit each other.

    Attributes
    ----------
    path : str
        The file.
    offset : int or None
        Byte offset of the broken field, None where no single byte is to blame.
    """

    def __init__(self, path: str | os.PathLike[str], message: str, offset: int | None = None) -> None:
        self.path, self.offset, self._message = str(path), offset, message
        where = f" at byte {offset}" if offset is not None else ""
        super().__init__(f"{path}{where}: {message}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.path, self._message, self.offset)  # a Pool whose worker sends what cannot be read waits for ever


class UnsupportedModel(NumaInferError, NotImplementedError):
    """A sound file that asks for something numainfer does not have.

    Attributes
    ----------
    key : str
        Metadata key or tensor name.
    value : object
        What the file says.
    supported : tuple
        What would have worked.
    detail : str
        What else the message says.
    """

    def __init__(self, key: str, value: object, supported: Iterable[object] = (), detail: str = "") -> None:
        self.key, self.value, self.supported, self.detail = key, value, tuple(supported), detail
        known = f"; supported: {', '.join(map(str, self.supported))}" if self.supported else ""
        super().__init__(f"{key} = {value!r} is not supported{known}{'. ' + detail if detail else ''}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.key, self.value, self.supported, self.detail)


class PlanError(NumaInferError, ValueError):
    """Operands of a plan do not fit; the message names op, operand, found and wanted."""


class ContextOverflow(NumaInferError, ValueError):
    """A sequence would outgrow its context."""


class ChatTemplateMissing(NumaInferError, ValueError):
    """The model file carries no chat template."""


class OutOfNodeMemory(NumaInferError, MemoryError):
    """A NUMA node has too little free memory, or the control group allows too little; the message tells need and free bytes of each."""


class KeepError(NumaInferError, RuntimeError):
    """A model cannot be kept in shared memory: the name holds another one, or what lies there is not this user's alone."""


class SavedSessionError(NumaInferError, ValueError):
    """A file of a saved session that cannot be restored: it is damaged, or of another model or another format of the KV cache.

    Attributes
    ----------
    path : str
        The file.
    offset : int or None
        Byte offset of what is wrong.
    """

    def __init__(self, path: str | os.PathLike[str], message: str, offset: int | None = None) -> None:
        self.path, self.offset, self._message = os.fspath(path), offset, message
        where = f" at byte {offset}" if offset is not None else ""
        super().__init__(f"{path}{where}: {message}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.path, self._message, self.offset)


class ModelClosed(NumaInferError, RuntimeError):
    """The model was closed."""


class ForkedProcess(NumaInferError, RuntimeError):
    """The model belongs to the parent process; threads do not survive ``fork``."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a list of prompts early.

    Attributes
    ----------
    completions : Completions
        One for each prompt, in order; those that had not ended have the finish_reason "cancelled" and their text so far.
    """

    def __init__(self, message: str, completions: "Iterable[Completion]" = ()) -> None:
        super().__init__(message)
        self.completions = completions if isinstance(completions, list) else list(completions)  # Completions stay what they are

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (*self.args, self.completions)


class PlacementError(NumaInferError, RuntimeError):
    """Pages lie on the wrong node and could not be moved."""


class CancelledWarning(RuntimeWarning):
    """Ctrl-C ended a list of prompts early; the message counts those that were cancelled."""


class ChatTemplateWarning(UserWarning):
    """A message's role is one that the chat template does not name, and may ignore."""


class ContextWarning(UserWarning):
    """The context asked for is longer than the one that the model was trained with."""


class PlacementWarning(UserWarning):
    """Placement works, but less surely than it could; the message says how to mend it."""
