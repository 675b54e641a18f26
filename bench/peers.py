"""llama.cpp, as the PyPI wheel ``cyllama`` carries it: the yardstick for logits, tokens and speed.

``open_llama_cpp(path)`` starts it in a process of its own. Only this file knows cyllama.
"""

import importlib.metadata
import re
import time

import numpy as np
from worker import Worker


def open_llama_cpp(path, **options):
    """A ``Worker`` around ``LlamaCpp(path, **options)``."""
    return Worker("peers:LlamaCpp", str(path), **options)


class LlamaCpp:
    """One model and one context of llama.cpp; use it through ``open_llama_cpp``.

    Parameters
    ----------
    path : str
        GGUF file.
    threads : int
        For prompts and for single tokens.
    n_ctx : int
        Room of the context, tokens.
    n_ubatch : int
        Tokens that are computed at once; n_batch is made at least as large.
    flash_attention : bool or None
        None leaves the choice to llama.cpp ("auto").

    Notes
    -----
    The KV cache is f16, memory-mapped weights and repacking are llama.cpp's defaults.
    """

    def __init__(self, path, threads=2, n_ctx=2048, n_ubatch=512, flash_attention=None):
        import cyllama.llama.llama_cpp as native

        class Model(native.LlamaModel):
            # get_logits_ith of 0.2.18 asks the model for n_vocab, which only the vocabulary knows.
            n_vocab = property(lambda self: self.get_vocab().n_vocab)

        self._native = native
        native.disable_logging()
        native.ggml_backend_load_all()
        model_params = native.LlamaModelParams()
        model_params.n_gpu_layers = 0
        self._model = Model(path, model_params, False)
        self._vocab = self._model.get_vocab()
        params = native.LlamaContextParams()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, max(n_ubatch, 512), n_ubatch
        params.n_threads = params.n_threads_batch = threads
        if flash_attention is not None:
            params.flash_attn_type = int(flash_attention)
        self._context = native.LlamaContext(self._model, params, False)
        self._batch = native.LlamaBatch(n_tokens=params.n_batch, embd=0, n_seq_max=1)
        self._n_batch, self._n_ctx, self._threads = params.n_batch, n_ctx, threads

    def info(self):
        """Versions and instruction sets: {"engine", "version", "isa", "threads"}.

        The wheel exports no system info for llama, but its whisper half is built on the same static ggml.
        """
        import cyllama.whisper
        from cyllama._internal import build_config

        flags = re.findall(r"(\w+) = 1", cyllama.whisper.print_system_info())
        version = build_config.versions()["llama_cpp_version"]
        wheel = importlib.metadata.version("cyllama")
        return {"engine": "llama.cpp", "version": f"{version} (cyllama {wheel})", "isa": " ".join(flags),
                "threads": self._threads}

    def n_vocab(self):
        """Size of the vocabulary."""
        return self._vocab.n_vocab

    def bos(self):
        """The id every sequence starts with, or None where the model wants none."""
        return self._vocab.token_bos() if self._vocab.get_add_bos() else None

    def tokenize(self, text, add_special=True, parse_special=True):
        """Ids of a text, with the model's own leading BOS if ``add_special``."""
        return list(self._vocab.tokenize(text, add_special, parse_special))

    def logits(self, ids):
        """Logits after each of ``ids`` in an empty context, float32 (n, n_vocab)."""
        if not 0 < len(ids) <= self._n_ctx:
            raise ValueError(f"logits: {len(ids)} ids, wanted 1 to {self._n_ctx}")
        out = np.empty((len(ids), self._vocab.n_vocab), dtype=np.float32)
        self._context.kv_cache_clear(True)
        for start in range(0, len(ids), self._n_batch):
            part = ids[start : start + self._n_batch]
            self._decode(part, start, every=True)
            for i in range(len(part)):
                out[start + i] = self._context.get_logits_ith(i)
        return out

    def greedy(self, ids, n):
        """The ``n`` most probable next ids, one after another."""
        self._context.kv_cache_clear(True)
        for start in range(0, len(ids), self._n_batch):
            self._decode(ids[start : start + self._n_batch], start)
        out = []
        for past in range(len(ids), len(ids) + n):
            out.append(int(np.argmax(self._context.get_logits_ith(-1))))
            self._decode(out[-1:], past)
        return out

    def time_prefill(self, n):
        """Seconds for a prompt of ``n`` ids in an empty context, as llama-bench times "pp"."""
        ids = self._ids(n)
        self._context.kv_cache_clear(True)
        start = time.perf_counter()
        for at in range(0, n, self._n_batch):
            self._decode(ids[at : at + self._n_batch], at)
        self._context.synchronize()
        return time.perf_counter() - start

    def time_decode(self, n, past=0):
        """Seconds for ``n`` single ids, one after another, after ``past`` ids; llama-bench's "tg" has past 0."""
        ids = self._ids(past + n)
        self._context.kv_cache_clear(True)
        for at in range(0, past, self._n_batch):
            self._decode(ids[at : min(at + self._n_batch, past)], at)
        self._context.synchronize()
        start = time.perf_counter()
        for at in range(past, past + n):
            self._decode(ids[at : at + 1], at)
            self._context.synchronize()
        return time.perf_counter() - start

    def _decode(self, ids, past, every=False):
        self._batch.clear()
        for i, token in enumerate(ids):
            self._batch.add(int(token), past + i, [0], every or i == len(ids) - 1)
        code = self._context.decode(self._batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code} for {len(ids)} ids after {past}")

    def _ids(self, n):
        if n > self._n_ctx:
            raise ValueError(f"{n} ids do not fit the context of {self._n_ctx}")
        return np.random.default_rng(0).integers(3, self._vocab.n_vocab, n).tolist()
