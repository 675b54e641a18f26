"""From logits to text, token by token: one answer in the making.

`Generation` chooses tokens and decides where the text ends; it does not know where logits come from, so whoever runs
the model (a stream, a batch of prompts) can drive many of them.
"""

from ..results import Chunk, Completion, Logprob, Logprobs, Timings, Usage
from .masks import make_form
from .sampling import Sampler
from ..text.answers import NOTHING
from ..text.stopping import StopStrings


class Generation:
    """One answer in the making.

    Parameters
    ----------
    tokenizer : Tokenizer
    n_vocab : int
        Number of logits; those beyond the tokenizer's vocabulary (padding) are never chosen.
    prompt_ids : int32 array (n,)
    params : SamplingParams
    room : int
        Most tokens that the context leaves space for.
    reader : Reader or None
        Of a chat's answer: takes thinking and calls of tools out of the text.

    Attributes
    ----------
    token_ids : list of int
        Chosen so far.
    finish_reason : str or None

    Raises
    ------
    ValueError
        A token id in the parameters that is not in the vocabulary; a form that cannot be compiled.
    """

    def __init__(self, tokenizer, n_vocab, prompt_ids, params, room, reader=None):
        self.params, self.prompt_ids = params, prompt_ids
        self.token_ids, self.finish_reason = [], None
        self._tokenizer, self._n_vocab = tokenizer, min(n_vocab, tokenizer.n_vocab)
        own = () if params.ignore_eos else (i for i in tokenizer.stop_token_ids if i < self._n_vocab)
        self._ends = frozenset(own).union(params.stop_token_ids, _special_stops(params.stop, tokenizer))
        self._limit = room if params.max_tokens is None else min(room, params.max_tokens)
        self._form = make_form(tokenizer, self._n_vocab, params, self._ends)
        self._sampler = Sampler(params, self._n_vocab, prompt_ids, sorted(self._ends), self._form)
        self._reader, self._found = reader, []  # of each token, what it brought besides text
        self._marks = frozenset() if reader is None else tokenizer.control_ids(reader.marks)
        self._decoder = tokenizer.stream(after=int(prompt_ids[-1]), exact=self._form is not None, keep=self._marks)
        self._stops = StopStrings(params.stop)
        self._pieces, self._logprobs, self._tail, self._last = [], [], "", NOTHING
        self._shown, self._told_end = 0, False  # tokens and pieces that chunks have told already, and whether one told the end

    def choose(self, logits):
        """Choose the next token and take in its text.

        Parameters
        ----------
        logits : float32 array (n_vocab,), C-contiguous, writable
        """
        token, logprob = self._sampler.sample(logits[: self._n_vocab])
        ended = token in self._ends
        piece = "" if ended else self._decoder.put(token)
        if token in self._marks:
            text = self._stops.flush() + piece  # stop strings are looked for between marks
        elif len(self.token_ids) < self.params.min_tokens:
            text = piece  # no stop string counts yet
        else:
            text = self._stops.feed(piece)
        reason = None
        if ended or self._stops.matched is not None or self._form is not None and self._form.complete:
            reason = "stop"
        elif len(self.token_ids) + 1 >= self._limit:
            reason = "length"
        if reason and self._stops.matched is None:
            text += self._stops.feed(self._decoder.flush()) + self._stops.flush()
        found = NOTHING
        if self._reader is not None:
            found = self._read(text, reason is not None)
            text = found.text
            self._found.append(found)
            if reason == "stop" and self._reader.n_calls:
                reason = "tool_calls"
        # Ctrl-C may come between any two lines, so what a token brings goes in at once: the token last.
        self._pieces.append(text)
        if logprob is not None:
            self._logprobs.append(self._named(logprob))
        self.token_ids.append(token)
        self.finish_reason = reason

    def take(self):
        """What is new since the last time.

        Returns
        -------
        Chunk or None
            None while there is no new text to show.
        """
        reason = self.finish_reason  # before the tokens: with a reason they are all there
        start, n = self._shown, len(self.token_ids)
        if self._told_end or n == start and reason is None:
            return None
        logprobs = None if self.params.logprobs is None else Logprobs(self._logprobs[start:n])
        text = "".join(self._pieces[start:n]) + self._tail
        reasoning, calls = self._besides(start, n)
        if not (text or reason or reasoning or calls):
            return None
        self._shown, self._told_end = n, reason is not None
        return Chunk(text, tuple(self.token_ids[start:n]), reason, logprobs, reasoning, calls)

    def _read(self, text, last):
        found = self._reader.feed(text)
        return found.plus(self._reader.flush()) if last else found

    def cancel(self):
        """End it here, unless it has ended; text that was held back is let go."""
        if self.finish_reason is not None:
            return
        tail = self._stops.flush()
        if self._reader is not None:
            self._last = self._read(tail, True)
            tail = self._last.text
        self._tail, self.finish_reason = tail, "cancelled"

    def _besides(self, start, stop):
        """Thinking and calls that tokens brought, and the end."""
        if self._reader is None:
            return "", ()
        found = [*self._found[start:stop], self._last]
        return "".join(f.reasoning for f in found), tuple(call for f in found for call in f.calls)

    def _named(self, p):
        top = tuple(Logprob(i, self._text(i), value, rank) for rank, (i, value) in enumerate(p.top, 1))
        return Logprob(p.token_id, self._text(p.token_id), p.logprob, p.rank, top)

    def _text(self, token):
        return self._tokenizer.token_bytes(token).decode("utf-8", "replace")

    def completion(self, clock, cached_tokens):
        """What there is.

        Parameters
        ----------
        clock : Clock
        cached_tokens : int
            Of the prompt, those that the KV cache held.

        Returns
        -------
        Completion
        """
        n, n_prompt = len(self.token_ids), len(self.prompt_ids)
        usage = Usage(n_prompt, n, cached_tokens)
        timings = Timings(clock.prompt_tokens, clock.prompt, max(n - 1, 0), clock.generation, clock.first_token, clock.mode)
        logprobs = None if self.params.logprobs is None else Logprobs(self._logprobs[:n])
        text = "".join(self._pieces[:n]) + self._tail
        reasoning, calls = self._besides(0, n)
        return Completion(text, tuple(self.token_ids), self.finish_reason, logprobs, usage, timings, None, reasoning or None, calls)


def _special_stops(stops, tokenizer):
    """Ids of the stop strings that are special tokens: text never shows those, so they count as ids.

    Raises
    ------
    ValueError
        A stop string holds more than a special token: nothing could match it.
    """
    found = []
    for stop in stops:
        token, *more = tokenizer.special_parts(stop) or [None]
        if more:
            raise ValueError(f"stop = {stop!r}: holds a special token, which text does not show, and more; wanted one or the other")
        if token is not None:
            found.append(token)
    return found


class Clock:
    """Seconds spent on one answer.

    Attributes
    ----------
    prompt, generation : float
    first_token : float or None
    prompt_tokens : int
        Computed so far.
    mode : str or None
        "latency" or "throughput"; None while it is not chosen.
    """

    def __init__(self, mode="latency"):
        self.mode = mode
        self.prompt = self.generation = 0.0
        self.first_token, self.prompt_tokens = None, 0
