"""numainfer as the benches see it: the peer's verbs through the public API, and what the memory gives.  Lives in a ``Worker``."""

import time

import numpy as np


def _ids(n, n_vocab):
    return np.random.default_rng(0).integers(3, n_vocab, n).tolist()


class Ours:
    """One loaded model.

    Parameters
    ----------
    path : str
        GGUF file.
    threads, n_ctx : int
        As for ``numainfer.load``.
    """

    def __init__(self, path, threads=2, n_ctx=2048):
        import numainfer

        self._model = numainfer.load(path, threads=threads, n_ctx=n_ctx, prefix_cache=0)
        self._threads, self._probe = threads, None
        self._n_vocab = self._model.logits([3]).shape[-1]

    def info(self):
        """{"engine", "version", "isa", "threads"}."""
        import numainfer
        from numainfer import _core

        return {"engine": "numainfer", "version": numainfer.__version__, "isa": _core.isa(), "threads": self._threads}

    def bytes_per_token(self, n):
        """Bytes of weights, keys and values that a token reads, on average over ``time_decode(n)``; as ``numainfer bench``."""
        from numainfer.measure.benchmark import GEN, Trial, bytes_per_token

        return round(bytes_per_token(self._model, Trial(GEN, n)))

    def prompt_macs(self, n):
        """Multiply-adds of ``time_prefill(n)``."""
        return sum(op.cost(1 if op.selected else n).macs for op in self._model.plan.ops)

    def together(self, sequences, n):
        """What a step costs in which so many sequences get a random id each, mean of ``n`` steps.

        Returns
        -------
        dict
            "seconds"; "plain": (bytes, multiply-adds) of each op that multiplies but those of experts; "experts": of all those
            together, as the workers counted them.
        """
        engine = self._model.runtime.engine
        core, ops = engine.lane.core_plan(), engine.plan.ops
        caches = [engine.new_kv() for _ in range(sequences)]
        rng, seconds = np.random.default_rng(0), 0.0
        try:
            for at in range(n + 1):
                ids = rng.integers(3, self._n_vocab, (sequences, 1)).astype(np.int32)
                if at == 1:  # first touches are over
                    core.work()
                    seconds = 0.0
                start = time.perf_counter()
                engine.step([(kv, own, at) for kv, own in zip(caches, ids)], range(sequences))
                seconds += time.perf_counter() - start
            done = core.work().sum(axis=0) / n
        finally:
            for kv in caches:
                kv.close()
        plain = []
        for op in ops:
            if op.name in ("matmul", "score"):
                cost = op.cost(sequences)
                plain.append((cost.n_bytes, cost.macs))
        return {"seconds": seconds / n, "plain": plain, "experts": tuple(done - np.array(plain, float).sum(axis=0))}

    def read_limit(self):
        """Bytes per second that the model's own workers can read now, each from its own node."""
        from numainfer.measure.bandwidth import ReadProbe

        if self._probe is None:
            self._probe = ReadProbe(self._model.runtime)
        return self._probe.sample()

    def logits(self, ids):
        """Logits after each of ``ids``, float32 (n, n_vocab)."""
        return self._model.logits(ids, all=True)

    def time_prefill(self, n):
        """Seconds from ``n`` ids to the logits after the last."""
        ids = _ids(n, self._n_vocab)
        start = time.perf_counter()
        self._model.logits(ids)
        return time.perf_counter() - start

    def time_decode(self, n, past=0):
        """Seconds for ``n`` single tokens after ``past`` ids: n steps of the model.

        Greedy sampling and detokenisation are in it, which llama-bench leaves out of its number.
        """
        ids = _ids(past + 1, self._n_vocab)
        with self._model.session() as session:
            if past:
                session.generate(ids[:past], max_tokens=1, ignore_eos=True)
                session.rewind(past)
            start = time.perf_counter()
            done = session.generate(ids[past:], max_tokens=n, ignore_eos=True)
            seconds = time.perf_counter() - start
        if len(done.token_ids) != n:
            raise RuntimeError(f"generate gave {len(done.token_ids)} tokens, wanted {n}")
        return seconds
