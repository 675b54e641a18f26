"""From logits to text, token by token: one answer in the making.

`Generation` knows which tokens were chosen and decides where the text ends; it does not know where logits come from, so whoever
runs the model can drive many of them (`choosing.choose_step`). Text is made when somebody asks for it, or when stop strings must be
found in it.
"""

import collections
import copy

from ..results import Chunk, Completion, Logprob, Logprobs, Timings, Usage
from .choosing import choose_step
from .masks import make_form
from .sampling import Sampler
from ..text.stopping import StopStrings


class Generation:
    """One answer in the making.

    One thread chooses (`choosing.choose_step`), another one may take what is there (`take`, `completion`) at any time.

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
        Of a chat's answer, at its beginning: takes thinking and calls of tools out of the text.

    Attributes
    ----------
    token_ids : list of int
        Chosen so far.
    sampler : Sampler
    watched : bool
        Each token must be shown to `watch` before it is published.

    Raises
    ------
    ValueError
        A token id in the parameters that is not in the vocabulary; a form that cannot be compiled.
    """

    def __init__(self, tokenizer, n_vocab, prompt_ids, params, room, reader=None):
        self.params, self.prompt_ids = params, prompt_ids
        self._tokenizer, self._n_vocab = tokenizer, min(n_vocab, tokenizer.n_vocab)
        own = () if params.ignore_eos else (i for i in tokenizer.stop_token_ids if i < self._n_vocab)
        self._ends = frozenset(own).union(params.stop_token_ids, _special_stops(params.stop, tokenizer))
        limit = room if params.max_tokens is None else min(room, params.max_tokens)
        form = make_form(tokenizer, self._n_vocab, params, self._ends)
        self.sampler = Sampler(params, self._n_vocab, prompt_ids, sorted(self._ends), form, limit)
        self.token_ids = self.sampler.token_ids
        self._exact, self._reader = form is not None, reader
        self._marks = frozenset() if reader is None else tokenizer.control_ids(reader.marks)
        self._texts = collections.deque(maxlen=1)
        self._shown, self._told_end = 0, False  # tokens that chunks have told already, and whether one told the end
        self.watched = bool(params.stop)
        if self.watched:
            self.sampler.core.holds, self._watcher = True, self._new_text(None)

    @property
    def finish_reason(self):
        """str or None: as of a Completion, but "stop" also where the answer called tools, which only its text tells."""
        return self.sampler.core.finish_reason

    def choose(self, logits):
        """Choose the next token.

        Parameters
        ----------
        logits : float32 array (n_vocab,), C-contiguous, writable

        Returns
        -------
        Chunk or None
            What `take` gives.

        Raises
        ------
        NumaInferError, TypeError, ValueError
            As of `Sampler.sample`.
        """
        (error,) = choose_step(None, [self], logits[None])
        if error is not None:
            raise error
        return self.take()

    def watch(self, token, reason):
        """Looks for stop strings in the text up to a token that is about to be published.

        Returns
        -------
        str or None
            "stop", or the reason as it was.
        """
        self._watcher.put(token)
        return "stop" if self._watcher.stopped else reason

    # ---- text --------------------------------------------------------------------------------------------------------

    def _new_text(self, reader):
        after = int(self.prompt_ids[-1])
        decoder = self._tokenizer.stream(after=after, exact=self._exact, keep=self._marks)
        return _Text(decoder, StopStrings(self.params.stop), reader, self._ends, self._marks, self.params.min_tokens)

    def _text(self, n, reason):
        """The text of at least the first n tokens, the last ones if there is a reason.

        Text follows from the tokens alone. So what Ctrl-C interrupts is not mended but made anew, and so is what another thread has in
        hand just now.
        """
        try:
            text = self._texts.pop()
        except IndexError:
            text = self._new_text(copy.deepcopy(self._reader))
        for token in self.token_ids[text.n : n]:
            text.put(token)
        if reason is not None and text.reason is None:
            text.end(reason)
        self._texts.append(text)
        return text

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
        text = self._text(n, reason)
        piece, reasoning, calls = text.between(start, n, reason is not None)
        if not (piece or reason or reasoning or calls):
            return None
        logprobs = None if self.params.logprobs is None else self._logprobs(start, n)
        chunk = Chunk(piece, tuple(self.token_ids[start:n]), reason and text.reason, logprobs, reasoning, calls)
        self._shown, self._told_end = n, reason is not None
        return chunk

    def cancel(self):
        """End it here, unless it has ended; text that was held back is let go. By the thread that chooses."""
        if self.finish_reason is None:
            self.sampler.core.finish_reason = "cancelled"

    def _logprobs(self, start, stop):
        return Logprobs(self._named(self.sampler.logprob(i)) for i in range(start, stop))

    def _named(self, p):
        top = tuple(Logprob(i, self._spelled(i), value, rank) for rank, (i, value) in enumerate(p.top, 1))
        return Logprob(p.token_id, self._spelled(p.token_id), p.logprob, p.rank, top)

    def _spelled(self, token):
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
        reason = self.finish_reason
        n, n_prompt = len(self.token_ids), len(self.prompt_ids)
        usage = Usage(n_prompt, n, cached_tokens)
        timings = Timings(clock.prompt_tokens, clock.prompt, max(n - 1, 0), clock.generation, clock.first_token, clock.mode,
                          clock.proposed, clock.accepted)  # fmt: skip
        logprobs = None if self.params.logprobs is None else self._logprobs(0, n)
        text = self._text(n, reason)
        piece, reasoning, calls = text.between(0, n, reason is not None)
        ids, reason = tuple(self.token_ids[:n]), reason and text.reason
        return Completion(piece, ids, reason, logprobs, usage, timings, None, reasoning or None, calls)


class _Text:
    """The text of an answer as its tokens come: pieces that no stop string, thinking or call can claim any more.

    Attributes
    ----------
    n : int
        Tokens taken in.
    stopped : bool
        A stop string was found.
    reason : str or None
        Why it ended.
    """

    def __init__(self, decoder, stops, reader, ends, marks, min_tokens):
        self._decoder, self._stops, self._reader = decoder, stops, reader
        self._ends, self._marks, self._min_tokens = ends, marks, min_tokens
        self._pieces, self._found = [], []  # of each token; the last one is the end's
        self.reason = None

    @property
    def n(self):
        return len(self._pieces) - (self.reason is not None)

    @property
    def stopped(self):
        return self._stops.matched is not None

    def put(self, token):
        """Takes in a token."""
        piece = "" if token in self._ends else self._decoder.put(token)
        if token in self._marks:
            text = self._stops.flush() + piece  # stop strings are looked for between marks
        elif len(self._pieces) < self._min_tokens:
            text = piece  # no stop string counts yet
        else:
            text = self._stops.feed(piece)
        self._add(text, False)

    def end(self, reason):
        """Nothing more will come."""
        text = ""
        if reason == "cancelled":  # half a character is no text
            text = self._stops.flush()
        elif not self.stopped:
            text = self._stops.feed(self._decoder.flush()) + self._stops.flush()
        self._add(text, True)
        self.reason = "tool_calls" if reason == "stop" and self._reader is not None and self._reader.n_calls else reason

    def _add(self, text, last):
        if self._reader is not None:
            found = self._reader.feed(text)
            found = found.plus(self._reader.flush()) if last else found
            text = found.text
            self._found.append(found)
        self._pieces.append(text)

    def between(self, start, n, last):
        """What tokens start .. n - 1 brought, and the end, if they are the last ones: text, thinking and calls."""
        stop = n + last
        piece = "".join(self._pieces[start:stop])
        if self._reader is None:
            return piece, "", ()
        found = self._found[start:stop]
        return piece, "".join(f.reasoning for f in found), tuple(call for f in found for call in f.calls)


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


def not_begun(params, n_prompt, reason, error=None):
    """The Completion of an answer of which nothing was computed.

    Parameters
    ----------
    params : SamplingParams
    n_prompt : int
        Tokens of the prompt.
    reason : str or None
    error : BaseException or None
    """
    logprobs = None if params.logprobs is None else Logprobs()
    return Completion("", (), reason, logprobs, Usage(n_prompt, 0), Timings(0, 0.0, 0, 0.0, None), error)


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
    proposed, accepted : int
        Tokens that were proposed, and those of them that were chosen.
    """

    def __init__(self, mode="latency"):
        self.mode = mode
        self.prompt = self.generation = 0.0
        self.first_token, self.prompt_tokens = None, 0
        self.proposed = self.accepted = 0
