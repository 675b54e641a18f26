"""Answers: requests for what comes next, token by token.

An answer's prompt is read like any request's; then each step brings its next token, or several where some were proposed, until its
`Generation` ends. For who takes it piece by piece it is computed `AHEAD` tokens ahead, and no further.
"""

import time
import weakref
from _thread import allocate_lock

from .generation import Clock, Generation, not_begun
from .heads import Head, draft
from .requests import Request
from .speculation import AT_ONCE, make_proposer, most_proposed

AHEAD = 16
"""Tokens that a stream is computed ahead of its reader: enough that a reader who is late now and then holds nothing up, few enough that one
who never comes costs little."""


class Answer(Request):
    """A prompt that is to be continued.

    Parameters
    ----------
    runtime, ids, sequence, reuse, notify, mode :
        As for `Request`.
    params : SamplingParams
        Of one answer.
    reader : Reader or None
        Of a chat's answer: takes thinking and calls of tools out of the text.
    ahead : int or None
        The answer is taken piece by piece, and computed at most so many tokens ahead of that; None: it is not.
    prepare : bool
        Make what chooses the tokens now, so that what is wrong with the parameters is raised here; else when its turn comes.

    Attributes
    ----------
    generation : Generation, or None where its turn has not come
    clock : Clock
    proposal : list of int
        Tokens that the next step is given behind the last one, to be checked.
    """

    def __init__(self, runtime, ids, params, *, reader=None, ahead=None, prepare=True, **options):
        if params.n > 1:
            raise ValueError(f"n = {params.n}: a stream and a session have one answer each; generate and chat of a model give several")
        self.params, self.clock, self.generation = params, Clock(mode=None), None
        self._reader, self._ahead, self._asked, self.taken = reader, ahead, 0, 0.0
        self._first = allocate_lock()  # until the first piece is taken
        self._first.acquire()
        self._room = runtime.n_ctx - len(ids) + 1  # the last token needs no place: it is never fed back
        longest = self._room if params.max_tokens is None else min(self._room, params.max_tokens)
        self.ids, self.proposal = ids, []
        this = weakref.ref(self)
        self._proposer = make_proposer(runtime, params.speculate, len(ids), len(ids) + longest - 1, lambda: _unwanted(this()))
        if prepare:
            self._prepare(runtime)
        super().__init__(runtime, ids, len(ids) + longest - 1, **options)
        self._most_proposed = most_proposed(runtime)
        if self._proposer is not None:
            self.n_bytes += runtime.engine.plan.kv.states.back_bytes(self._most_proposed)

    def _prepare(self, runtime):
        self.generation = Generation(runtime.tokenizer, runtime.n_vocab, self.ids, self.params, self._room, self._reader)

    # ---- for the caller ----------------------------------------------------------------------------------------------

    def take(self):
        """What is new since the last time; the loop goes on if it waited for that.

        Returns
        -------
        Chunk or None
        """
        if self.generation is None:
            return None
        self._asked, self.taken = len(self.generation.token_ids), time.monotonic()
        chunk = self.generation.take()
        if self._asked and self._first.locked():
            self._first.release()
        if self.paused:
            self.runtime.loop.look_at(self)
        return chunk

    def read_all(self):
        """From now on nobody takes pieces: compute it to its end."""
        self._ahead = None
        if self.paused:
            self.runtime.loop.look_at(self)

    def completion(self):
        """What there is, from any thread.

        Returns
        -------
        Completion
        """
        if self.generation is None:
            reason = "error" if self.error is not None else "cancelled" if self.cancelled else None
            return not_begun(self.params, len(self.ids), reason, self.error)
        return self.generation.completion(self.clock, self.cached)

    # ---- for the loop ------------------------------------------------------------------------------------------------

    def start(self, lane, label):
        super().start(lane, label)
        self.clock.mode = label
        if self.generation is None:
            self._prepare(self.runtime)

    @property
    def streamed(self):
        """Whether somebody takes it piece by piece."""
        return self._ahead is not None

    @property
    def full(self):
        """Whether as much lies there untaken as may."""
        return self._ahead is not None and len(self.generation.token_ids) - self._asked >= self._ahead

    def hand_over(self, seconds):
        """Let the thread that waits for the first piece take it, before a step that has all CPUs keeps it from running."""
        if self._waits and not self.ended:
            self._first.acquire(timeout=seconds)

    def next_ids(self, most):
        """Ids for the next step, at most so many, and how many of their last rows are wanted."""
        if self.at >= len(self.ids):
            ids, cache = self.generation.token_ids[-1:] + self.proposal, self.cache
            if cache is not None:
                cache.states.expect(len(self.proposal))
            return ids, len(ids)
        ids = self.ids[self.at : self.at + most]
        return ids, int(self.at + len(ids) == len(self.ids))

    @property
    def speculates(self):
        """Whether somebody proposes tokens for it."""
        return self._proposer is not None

    def chances(self):
        """As of `Lookup.chances`, of as many proposals as there is room for; takes in what came meanwhile."""
        self.proposal, proposer = [], self._proposer
        if proposer is None:
            return []
        if proposer.n < len(self.ids):
            proposer.extend(self.ids[proposer.n : proposer.n + AT_ONCE].tolist())
        if proposer.n >= len(self.ids):
            proposer.extend(self.generation.token_ids[proposer.n - len(self.ids) :])
        if proposer.n <= self.at:  # a long prompt, not yet taken in
            return []
        room = self.most - self.at - 1
        if self._ahead is not None:
            room = min(room, self._ahead - (len(self.generation.token_ids) - self._asked) - 1)
        return proposer.chances(min(room, self._most_proposed))

    @property
    def proposal_cost(self):
        """Seconds that it takes to propose a token."""
        return getattr(self._proposer, "cost", 0.0)

    def propose(self, k):
        """Have the next step check so many tokens."""
        proposer = self._proposer
        self.proposal = proposer.propose(k) if k and proposer is not None else []

    @staticmethod
    def propose_all(answers, counts, runtime, lane):
        """`propose` of each of some answers, those together whose head does it; lane: theirs, None for that of all nodes."""
        heads = []
        for answer, k in zip(answers, counts):
            proposer, cache = answer._proposer, answer.cache
            if not isinstance(proposer, Head):
                answer.propose(k)
            elif k and cache is not None:
                heads.append((answer, (proposer, cache, answer.at, k)))
        if heads:
            found = draft(runtime, lane, [wanted for _, wanted in heads], lambda: any(_unwanted(answer) for answer, _ in heads))
            for (answer, _), tokens in zip(heads, found):
                answer.proposal = tokens

    def computed(self, n, seconds):
        if self.at < len(self.ids):
            self.clock.prompt += seconds
            self.clock.prompt_tokens = self.at + n - self.cached
        super().computed(n, seconds)

    def chosen(self, now, start, error=None):
        """Tokens were chosen, or an error says why not, after a step that began at `start`."""
        accepted = max(len(self.ids) + len(self.generation.token_ids) - 1 - self.at, 0)  # all but the last one are computed
        if self.proposal:
            self.clock.proposed += len(self.proposal)
            self.clock.accepted += accepted
            self.computed(accepted, 0.0)
            cache = self.cache
            if cache is not None:
                cache.rewind(self.at)
        if error is not None:
            self.end(error)
            return
        if self.clock.first_token is None:
            self.clock.first_token = now - self.arrived
        else:
            self.clock.generation += now - start
        if self.generation.finish_reason is not None:
            self.end()
        elif self._ahead is not None:
            self.told()

    def fed(self, first, end):
        """Ids of the answer that stand at these positions; they were computed."""
        n = len(self.ids)
        return self.generation.token_ids[first - n : end - n]

    def _settle(self):
        if self.generation is not None:
            self.generation.cancel()  # unless it has ended
        proposer, self._proposer = self._proposer, None
        if proposer is not None:
            proposer.close()
        if self.sequence is not None:
            self.sequence.ended(self, [*self.ids.tolist(), *(self.generation.token_ids if self.generation is not None else ())])

    def _computed_ids(self):
        n = len(self.ids)
        return self.ids[: self.at] if self.at <= n else [*self.ids.tolist(), *self.fed(n, self.at)]


def _unwanted(answer):
    """Whether nobody wants an answer any more, or nobody can have it."""
    return answer is None or answer.cancelled or answer.ended or answer.runtime.closed
