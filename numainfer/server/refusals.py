"""Why a request gets no answer: HTTP's status and OpenAI's words for it, around the package's own sentences."""

import logging
import re

from ..errors import ContextOverflow, ForkedProcess, ModelClosed, UnsupportedModel

log = logging.getLogger("numainfer")

_KINDS = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 501: "server_error", 503: "server_error"}


class Refusal(Exception):
    """A request that is not answered.

    Parameters
    ----------
    status : int
        Of HTTP.
    message : str
    code : str or None
        OpenAI's word, for programs.
    param : str or None
        The field of the request that is to blame.
    headers : mapping, optional
        Of the response.
    """

    def __init__(self, status, message, code=None, param=None, headers=None):
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})

    def to_dict(self):
        """OpenAI's form of it."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def busy(message, seconds, status=429, code="server_busy"):
    """A Refusal of what may be tried again in so many seconds."""
    return Refusal(status, message, code, headers={"Retry-After": str(max(1, round(seconds)))})


def of_request(error):
    """The Refusal for what reading a request raised, or None where the request is not to blame.

    Parameters
    ----------
    error : Exception
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ContextOverflow):
        return Refusal(400, str(error), "context_length_exceeded", _field(error))
    if isinstance(error, ImportError):  # of the extra "grammar"
        return Refusal(501, str(error), "not_installed")
    if isinstance(error, (TypeError, ValueError, Warning, UnsupportedModel)) and not isinstance(error, (ModelClosed, ForkedProcess)):
        return Refusal(400, str(error), None, _field(error))
    return None


def of_answer(error):
    """The Refusal for what went wrong while a request was answered; what nobody foresaw goes to the log, not to the client.

    Parameters
    ----------
    error : Exception
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ContextOverflow):
        return Refusal(400, str(error), "context_length_exceeded")
    if isinstance(error, MemoryError):
        return busy(f"no memory for this answer now: {error}", 5, 503, "out_of_memory")
    if isinstance(error, (ModelClosed, ForkedProcess)):
        return Refusal(503, "the model was closed", "model_closed")
    log.error("a request failed", exc_info=error)
    return Refusal(500, f"the server failed ({type(error).__name__}); its log says more", "internal_error")


def _field(error):
    """The field that an error's sentence begins with."""
    found = re.match(r"[a-z_]+(?:\[\d+\]|\.[a-z_]+|\['[a-z_]+'\])*(?=:| = | holds | and )", str(error))
    return found[0] if found else None
