"""Steps of a head that predicts a further token (architectures/nextn.py), and the hidden states that it needs of sequences."""

import numpy as np

from .. import _core

KEPT = 17  # hidden states that a sequence keeps, of its last positions: as many as a step checks, which may be taken back, and one more


class Hidden:
    """The model's last hidden states of a sequence, of its last positions."""

    def __init__(self):
        self._first, self._rows = 0, []  # a list that is never changed, for copies have it too

    def before(self, pos):
        """That of position pos - 1, float32 array (n_embd,); None where it is not known: zeros stand in for it."""
        i = pos - 1 - self._first
        return self._rows[i] if 0 <= i < len(self._rows) else None

    def came(self, first, rows):
        """A step has computed those of positions from `first` on, (n, n_embd)."""
        before, i = self._rows, first - self._first
        kept = (before[:i] if 0 <= i <= len(before) else []) + [row.copy() for row in rows[-KEPT:]]
        self._rows = kept[-KEPT:]
        self._first = first + len(rows) - len(self._rows)

    def share(self, other):
        """Become those of another sequence that began with the same positions."""
        self._first, self._rows = other._first, other._rows


class Drafting:
    """Methods of `Lane`."""

    def _room_for_hidden(self, n):
        """Where a step of so many rows puts its hidden states, (n, n_embd); None for a model without a head."""
        engine = self._engine
        if engine.plan.head is None:
            return None
        if self._hidden is None or len(self._hidden) < n:
            self._hidden = np.empty((n, engine.n_embd), np.float32)
        return self._hidden[:n]

    def draft(self, segments, before, *, shuffle_seed=0, stop=None):
        """What the head expects behind a token of each of some sequences.

        Parameters
        ----------
        segments : list of (Cache, int, int)
            Sequence, token and position, at most as many as the head's plan takes. Keys and values are written there; the caller cuts the
            sequence again.
        before : list of (n_embd,) float32 array or None
            Of each the hidden state before: the model's (`Cache.hidden`), or what an earlier call gave. None: it is not known.
        stop : callable, optional
            As of `Lane.step`.

        Returns
        -------
        logits : (len(segments), n_vocab) float32 array
        hidden : (len(segments), n_embd) float32 array
            What may stand in for the model's own hidden state at that position.

        Raises
        ------
        Cancelled, KeyboardInterrupt
        """
        engine, holds, n = self._engine, [], len(segments)
        engine.check_open()
        try:
            for kv, _, _ in segments:
                holds.append(kv.hold())
            ids, table, rows = _core.step_arrays([(kv, [token], pos) for kv, token, pos in segments], range(n), engine.n_ctx,
                                                 engine.plan.head.n_batch, engine.n_vocab)  # fmt: skip
            for kv, _, pos in segments:
                kv.prepare(self, pos, pos + 1, states=False)
            table["hidden"] = [0 if row is None else row.ctypes.data for row in before]
            logits, hidden = np.empty((n, engine.n_vocab), np.float32), np.empty((n, engine.n_embd), np.float32)
            self.core_plan("head").run(ids, table, rows, logits, shuffle_seed, stop, hidden)
            for kv, _, pos in segments:
                kv.done(pos, pos + 1, None)
            return logits, hidden
        finally:
            for hold in holds:
                hold.release()
