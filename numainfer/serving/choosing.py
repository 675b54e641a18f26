"""The next tokens of all sequences of a step."""

import contextlib


def choose_step(team, generations, logits, turn=contextlib.nullcontext):
    """Choose the next token of each generation.

    Parameters
    ----------
    team : Team or None
    generations : list of Generation
    logits : float32 array (rows, n_vocab), C-contiguous, writable
        A row for each generation, in order.
    turn : callable
        Gives the context manager in which the team may be used.

    Returns
    -------
    list of (Exception or None)
        What ends each generation, if anything went wrong with it.
    """
    errors = []
    for generation, row in zip(generations, logits):
        try:
            generation.choose(row)
            errors.append(None)
        except Exception as e:
            errors.append(e)
    return errors
