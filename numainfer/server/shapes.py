"""Answers in OpenAI's words: whole, and as events of a stream."""

import codecs
import secrets
import time

from .. import __version__

FINGERPRINT = f"numainfer-{__version__}"
"""``system_fingerprint``: with the same model, seed and fingerprint an answer has the same bits."""


def usage(prompts, answers):
    """Numbers of tokens of all answers of a request.

    Parameters
    ----------
    prompts : list of Usage
        One of each prompt: its tokens count once, however many answers there are.
    answers : list of Usage
    """
    prompt, made = sum(u.prompt_tokens for u in prompts), sum(u.completion_tokens for u in answers)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in prompts)}}  # fmt: skip


class Shape:
    """What the two kinds of answers have in common.

    Parameters
    ----------
    model : str
        Its name.
    tokenizer : Tokenizer
    """

    prefix, whole_kind, piece_kind = "", "", ""

    def __init__(self, model, tokenizer):
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model,
                      "system_fingerprint": FINGERPRINT}  # fmt: skip
        self._tokenizer = tokenizer

    def whole(self, choices, counts):
        """The answer to a request that is no stream."""
        return {"object": self.whole_kind, **self._head, "choices": choices, "usage": counts}

    def piece(self, choices, **more):
        """An event of a stream; ``more``: usage."""
        return {"object": self.piece_kind, **self._head, "choices": choices, **more}


class Chat(Shape):
    """Of /v1/chat/completions."""

    prefix, whole_kind, piece_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, i, done, reason):
        """A whole answer."""
        message = {"role": "assistant", "content": done.text or None if done.tool_calls else done.text, "refusal": None}
        if done.reasoning is not None:
            message["reasoning_content"] = done.reasoning
        if done.tool_calls:
            message["tool_calls"] = [call.to_dict() for call in done.tool_calls]
        return {"index": i, "message": message, "logprobs": self._logprobs(done.logprobs), "finish_reason": reason}

    def first(self, i):
        """What an answer begins with, before there is any of it."""
        return {"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def delta(self, i, chunk, n_calls, reason):
        """A piece of an answer, behind so many calls of tools."""
        delta = {}
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.tool_calls:
            delta["tool_calls"] = [{"index": n_calls + k, **call.to_dict()} for k, call in enumerate(chunk.tool_calls)]
        return {"index": i, "delta": delta, "logprobs": self._logprobs(chunk.logprobs), "finish_reason": reason}

    def _logprobs(self, logprobs):
        if logprobs is None:
            return None
        return {"content": [self._token(p) | {"top_logprobs": [self._token(t) for t in p.top]} for p in logprobs], "refusal": None}

    def _token(self, p):
        return {"token": p.text, "logprob": p.logprob, "bytes": list(self._tokenizer.token_bytes(p.token_id))}


class Text(Shape):
    """Of /v1/completions."""

    prefix, whole_kind, piece_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, model, tokenizer):
        super().__init__(model, tokenizer)
        self._told = {}  # of each answer: who decodes its tokens, and characters of those that were told

    def choice(self, i, done, reason):
        """A whole answer, or a piece of one."""
        return {"index": i, "text": done.text, "logprobs": self._logprobs(i, done.logprobs), "finish_reason": reason}

    def first(self, i):
        """Nothing: the first piece says all."""
        return None

    def delta(self, i, chunk, n_calls, reason):
        """A piece of an answer."""
        return self.choice(i, chunk, reason)

    def _logprobs(self, i, logprobs):
        if logprobs is None:
            return None
        decoder, at = self._told.get(i) or (codecs.getincrementaldecoder("utf-8")("replace"), 0)
        offsets = []
        for p in logprobs:
            raw, start = self._tokenizer.token_bytes(p.token_id), at
            at += len(decoder.decode(raw))
            # What was left of a character and did not become one is told with the token behind it.
            offsets.append(start if _is_part(raw) else at - len(p.text))
        self._told[i] = decoder, at
        return {"tokens": [self._name(p) for p in logprobs], "token_logprobs": [p.logprob for p in logprobs],
                "top_logprobs": [{self._name(t): t.logprob for t in p.top} for p in logprobs], "text_offset": offsets}  # fmt: skip

    def _name(self, p):
        """A token's text; a part of a character is told by its bytes, for names are keys here."""
        raw = self._tokenizer.token_bytes(p.token_id)
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw) if _is_part(raw) else raw.decode()


def _is_part(raw):
    """Whether a token's bytes are no whole characters."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return True
    return False
