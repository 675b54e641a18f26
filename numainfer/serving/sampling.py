"""Sampler: the choice of a sequence's tokens, in csrc/sample.c and choose.c."""

import dataclasses
import secrets
import threading
from collections.abc import Sequence

import numpy as np

from .. import _core
from ..errors import NumaInferError
from .masks import Form
from .params import SamplingParams
from ..signatures import FloatArray, TokenIds


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The model's own log-probabilities at one position: natural logarithm, before penalties, temperature and cuts.

    Attributes
    ----------
    token_id : int
        The token that was chosen.
    logprob : float
        Its log-probability.
    rank : int
        1 for the most probable token; equal ones rank by id.
    top : tuple of (int, float)
        The most probable token ids and their log-probabilities, best first; as many as ``logprobs`` asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


_per_thread = threading.local()


def scratch_of_thread(n_vocab):
    """The calling thread's work memory, for the largest vocabulary that it has met: samplers of one thread never run at the same time."""
    found = getattr(_per_thread, "scratch", None)
    if found is None or found.n_vocab < n_vocab:
        found = _per_thread.scratch = _core.SampleScratch(n_vocab)
    return found


class Sampler:
    """Chooses the tokens of one sequence. Not for two threads at once.

    Parameters
    ----------
    params : SamplingParams
    n_vocab : int
        Number of logits.
    prompt_ids : sequence of int
        The prompt, for the repetition penalty.
    stop_ids : sequence of int
        Every id that ends this sequence (the model's own, unless ``ignore_eos``, and ``stop_token_ids``): not chosen
        before ``min_tokens``.
    form : Form or None
        What else the tokens must fit.
    max_tokens : int
        The sequence ends with so many; 0: never.

    Attributes
    ----------
    core : _core.Sampler
        What `_core.choose` takes, and `finish_reason` is a part of.
    token_ids : list of int
        Produced so far.
    seed : int
        The seed in use: ``params.seed`` or the one drawn for this sequence.
    special : bool
        Before and after each choice there is something to do in Python: `prepare` and `settle`.

    Raises
    ------
    ValueError
        A token id outside [0, n_vocab).
    """

    @_core.in_default_floats
    def __init__(
        self, params: SamplingParams, n_vocab: int, prompt_ids: TokenIds = (), stop_ids: Sequence[int] = (), form: Form | None = None,
        max_tokens: int = 0,
    ) -> None:  # fmt: skip
        self.params, self.n_vocab, self._form = params, n_vocab, form
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.special = form is not None or params.logits_processor is not None
        # Whether a token may be drawn before it is known which are allowed: see `settle`. Where tokens are cut, the cut depends on that.
        self._tries = params.temperature == 0 or (params.top_k, params.top_p, params.min_p) == (0, 1, 0)
        bias = params.logit_bias or {}
        self.core = _core.Sampler(
            n_vocab,
            _id_array("prompt", prompt_ids, n_vocab),
            _id_array("logit_bias", list(bias), n_vocab),
            np.fromiter(bias.values(), np.float32, len(bias)),
            _id_array("stop token", stop_ids, n_vocab),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            min_tokens=params.min_tokens,
            max_tokens=max_tokens,
            seed=self.seed,
        )
        self.core.holds = self.special
        if params.logprobs is not None:
            self.core.n_logprobs = params.logprobs

    @property
    def token_ids(self) -> list[int]:
        return self.core.token_ids

    def sample(self, logits: FloatArray) -> tuple[int, TokenLogprob | None]:
        """Chooses the next token and counts it.

        Parameters
        ----------
        logits : float32 array, shape (n_vocab,), C-contiguous, writable
            As the model gave them. Written to meanwhile, but the same again on return.

        Returns
        -------
        token_id : int
        logprob : TokenLogprob or None
            None unless ``params.logprobs`` is set.

        Raises
        ------
        NumaInferError
            A logit is NaN, or all are -inf, or the form allows nothing.
        TypeError, ValueError
            ``logits``, or what the logits processor returned, is not such an array.
        """
        self._check("logits", logits)
        given = self.prepare(logits) if self.special else None
        found = self._choose(logits, given)
        if self.core.holds:
            token, logprob, reason = self.settle(found, logits, given)
            self.core.publish(token, logprob, reason)
        elif found is not None:
            raise self.error(found)
        return self.token_ids[-1], self.logprob(-1)

    def prepare(self, logits):
        """What `_core.choose` is to be given for a row; parameters and errors as for `sample`.

        Returns
        -------
        (float32 array (n_vocab,) or None, uint32 array or None)
            Other logits, and the mask of the form.
        """
        instead, mask = None, None
        if self.params.logits_processor is not None:
            instead = self._processed(logits)
        if self._form is not None and not self._tries:
            mask = self._form.mask()
        return instead, mask

    def settle(self, found, logits, given):
        """Takes in what `_core.choose` found.

        Parameters
        ----------
        found : tuple or int
        logits, given :
            The row that it chose from, and what `prepare` had for it, or None.

        Returns
        -------
        token, logprob, reason
            As `_core.Sampler.publish` takes them.

        Raises
        ------
        NumaInferError
            As for `sample`.

        Notes
        -----
        Masks cost more than asking for one token. So a token is chosen from all, and kept if the form allows it; else another is chosen
        from the allowed ones. Greedy, that is the best of these either way (of equal ones the lowest). A drawn token x has the chance
        p(x) + (1 - a) p(x) / a = p(x) / a, where a is the allowed ones' share: as if it had been drawn from those alone.
        """
        if not isinstance(found, tuple):
            raise self.error(found)
        form = self._form
        if form is not None:
            refused = given[1] is None and not form.allows(found[0])
            if refused:
                found = self._choose(logits, (given[0], form.mask(), True))
                if not isinstance(found, tuple):
                    raise self.error(found)
            # Where a model was refused once it often is again; then the next mask is there in time.
            form.accept(found[0], ahead=self.params.temperature > 0 and (refused or not self._tries))
        token, logprob = found
        reason = self.core.accept(token)
        return token, logprob, "stop" if form is not None and form.complete else reason

    def _choose(self, logits, given):
        given = None if given is None else {0: given}
        (found,) = _core.choose(None, scratch_of_thread(self.n_vocab), [self.core], logits[None], given=given)
        return found

    def accept(self, token_id: int) -> None:
        """Counts a token that was chosen elsewhere."""
        if self._form is not None:
            self._form.accept(token_id, ahead=not self._tries)
        self.core.publish(token_id, None, self.core.accept(token_id))

    def logprob(self, i: int) -> TokenLogprob | None:
        """The log-probability of token i of ``token_ids``."""
        return None if self.params.logprobs is None else TokenLogprob(*self.core.logprobs[i])

    def distribution(self, logits: FloatArray) -> tuple[np.ndarray, np.ndarray]:
        """What :meth:`sample` would draw from.

        Parameters
        ----------
        logits : float32 array (n_vocab,)
            As for :meth:`sample`.

        Returns
        -------
        ids : int32 array (n,)
            Tokens with a chance, ascending.
        probs : float64 array (n,)
            Their probabilities; the sum is 1.
        """
        self._check("logits", logits)
        ids, probs = np.empty(self.n_vocab, np.int32), np.empty(self.n_vocab)
        if self.params.logits_processor is not None:
            logits = self._processed(logits)
        if self._form is not None:
            logits, unmasked = np.empty_like(logits), logits
            _core.mask_logits(unmasked, self._form.mask(), logits)
        n = self.core.distribution(logits, scratch_of_thread(self.n_vocab), ids, probs)
        if n < 0:
            raise self.error(n)
        return ids[:n].copy(), probs[:n].copy()

    def _processed(self, logits):
        result = self.params.logits_processor(tuple(self.token_ids), logits.copy())
        self._check("the result of logits_processor", result)
        return result

    def _check(self, name, logits):
        if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
            found = f"{logits.dtype} array" if isinstance(logits, np.ndarray) else type(logits).__name__
            raise TypeError(f"{name}: found {found}, wanted a float32 array of shape ({self.n_vocab},)")
        if logits.shape != (self.n_vocab,):
            raise ValueError(f"{name}: found shape {logits.shape}, wanted ({self.n_vocab},)")
        if not logits.flags.c_contiguous or not logits.flags.writeable:
            raise ValueError(f"{name}: found a read-only or strided array, wanted a contiguous, writable one")

    def error(self, code):
        """The exception for SAMPLE_NAN or SAMPLE_EMPTY."""
        position = len(self.token_ids)
        if code == _core.SAMPLE_NAN:
            return NumaInferError(f"logits of output token {position}: found NaN, wanted numbers")
        whose = "all" if self._form is None else "all that the answer's form allows"
        return NumaInferError(f"logits of output token {position}: {whose} are -inf, so no token can be chosen")


def _id_array(name, ids, n_vocab):
    array = np.asarray(ids, np.int64)
    bad = (array < 0) | (array >= n_vocab)
    if bad.any():
        raise ValueError(f"{name} id {array[bad][0]}: must be from 0 to {n_vocab - 1}")
    return array.astype(np.int32)
