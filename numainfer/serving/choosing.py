"""The next tokens of all sequences of a step at once, on the workers of a team.

What can be done without Python is: cuts, draws, log-probabilities, counting, end tokens and lengths (csrc/choose.c). Python comes before
for a logits processor or a form's mask, and after for a form and for stop strings, and only for the sequences that have these.
"""

import contextlib

from .. import _core
from .sampling import scratch_of_thread


def choose_step(team, generations, logits, proposals=None, turn=contextlib.nullcontext):
    """Choose the next token of each generation, or several, where some were proposed.

    Parameters
    ----------
    team : Team or None
        Whose workers share the work; None: the calling thread does it.
    generations : list of Generation
        All different, none ended.
    logits : float32 array (rows, n_vocab), C-contiguous, writable
        A row for each generation, in order; 1 + len(proposals[i]) of them for one that has proposals: row 0 follows what was chosen so far,
        row j + 1 follows proposals[i][j]. Written to meanwhile, but the same again on return.
    proposals : list of (int32 array or None), optional
        Tokens that may come next, of each generation. Tokens are chosen from its rows in order, up to and with the first that differs
        from the proposal: just those that would be chosen one by one. ``token_ids`` tells how many that were.
    turn : callable
        Gives the context manager in which the team is used, alone. No Python of a caller's runs in it.

    Returns
    -------
    list of (Exception or None)
        What ends each generation, if anything went wrong with it; the others do not notice. Those that ended well have a ``finish_reason``.

    Raises
    ------
    BaseException
        That is no Exception, of a logits processor.
    """
    if proposals is not None and any(p is not None and len(p) and g.sampler.core.holds for g, p in zip(generations, proposals)):
        return _one_by_one(team, generations, logits, proposals, turn)
    samplers = [g.sampler.core for g in generations]
    scratch = scratch_of_thread(logits.shape[1]) if team is None else scratch_of(team, logits.shape[1])
    if not any(s.holds for s in samplers):
        with turn():
            found = _core.choose(team, scratch, samplers, logits, proposals)
        return [None if code is None else g.sampler.error(code) for g, code in zip(generations, found)]

    errors, given, row_of, at = [None] * len(generations), {}, {}, 0
    for i, g in enumerate(generations):
        if samplers[i].holds:
            row_of[i] = logits[at, : samplers[i].n_vocab]
        if g.sampler.special:
            try:
                given[i] = g.sampler.prepare(row_of[i])
            except Exception as e:
                errors[i], given[i] = e, None
        at += 1 if proposals is None or proposals[i] is None else 1 + len(proposals[i])
    with turn():
        found = _core.choose(team, scratch, samplers, logits, proposals, given)
    for i, g in enumerate(generations):
        if errors[i] is not None or found[i] is None:
            continue
        if i not in row_of:
            errors[i] = g.sampler.error(found[i])
            continue
        try:
            token, logprob, reason = g.sampler.settle(found[i], row_of[i], given.get(i))
            if g.watched:
                reason = g.watch(token, reason)
            samplers[i].publish(token, logprob, reason)
        except Exception as e:
            errors[i] = e
    return errors


def _one_by_one(team, generations, logits, proposals, turn):
    """`choose_step` where a generation with proposals needs Python at each token: in rounds, one row of each of these."""
    errors, first, n = [None] * len(generations), [], 0
    for own in proposals:
        first.append(n)
        n += 1 + (0 if own is None else len(own))
    going, step = list(range(len(generations))), 0
    while going:
        rows = logits[[first[i] + step for i in going]]
        for i, error in zip(going, choose_step(team, [generations[i] for i in going], rows, None, turn)):
            errors[i] = error
        going = [i for i in going if errors[i] is None and generations[i].finish_reason is None and proposals[i] is not None
                 and step < len(proposals[i]) and generations[i].token_ids[-1] == proposals[i][step]]  # fmt: skip
        step += 1
    return errors


def scratch_of(team, n_vocab):
    """The workers' memory for sampling: a lane's team has its own from the beginning."""
    if team.scratch is None or team.scratch.n_vocab < n_vocab:
        team.scratch = _core.SampleScratch(n_vocab, len(team))
    return team.scratch
