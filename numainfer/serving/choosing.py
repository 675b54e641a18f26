"""The next tokens of all sequences of a step at once, on the workers of a team.

What can be done without Python is: cuts, draws, log-probabilities, counting, end tokens and lengths (csrc/choose.c). Python comes before
for a logits processor or a form's mask, and after for a form and for stop strings, and only for the sequences that have these.
"""

from .. import _core
from .sampling import scratch_of_thread


def choose_step(team, generations, logits, proposals=None, turn=None):
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
    turn : callable, optional
        Gives the context manager in which the team is used, alone, if it is: for little work it is not. No Python of a caller's runs in it.

    Returns
    -------
    list of (Exception or None)
        What ends each generation, if anything went wrong with it; the others do not notice. Those that ended well have a ``finish_reason``.

    Raises
    ------
    BaseException
        That is no Exception, of a logits processor.
    """
    first, n, together, alone = range(len(generations)), len(generations), proposals, {}
    if proposals is not None:
        first, n, together = [], 0, list(proposals)
        for i, (g, own) in enumerate(zip(generations, proposals)):
            first.append(n)
            n += 1 if own is None else 1 + len(own)
            if own is not None and g.sampler.core.holds:
                together[i], alone[i] = None, own
    if n != len(logits):
        raise ValueError(f"logits: found {len(logits)} rows, wanted {n} for {len(generations)} sequences and what was proposed for them")
    errors, step = _choose(team, generations, logits, first, together, turn), 0
    while alone := {i: own for i, own in alone.items() if errors[i] is None and generations[i].finish_reason is None
                    and step < len(own) and generations[i].token_ids[-1] == own[step]}:  # fmt: skip
        step += 1  # Python looks at each of their tokens before the next
        for i, error in zip(alone, _choose(team, [generations[i] for i in alone], logits, [first[i] + step for i in alone], None, turn)):
            errors[i] = error
    return errors


def _choose(team, generations, logits, first, proposals, turn):
    """`choose_step` where nobody with proposals needs Python. first: for each generation its (first) row."""
    samplers = [g.sampler.core for g in generations]
    scratch = scratch_of_thread(logits.shape[1])
    if not any(s.holds for s in samplers):
        found = _core.choose(team, scratch, samplers, logits, first, proposals, None, turn)
        return [None if code is None else g.sampler.error(code) for g, code in zip(generations, found)]

    errors, given, row_of = [None] * len(generations), {}, {}
    for i, g in enumerate(generations):
        if samplers[i].holds:
            row_of[i] = logits[first[i], : samplers[i].n_vocab]
        if g.sampler.special:
            try:
                given[i] = g.sampler.prepare(row_of[i])
            except Exception as e:
                errors[i], given[i] = e, None
    found = _core.choose(team, scratch, samplers, logits, first, proposals, given, turn)
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
