"""llama.cpp in the Python packages that carry it: the yardstick for logits, tokens and speed.

Each is started in a process of its own. Only this file knows their APIs.
"""

import ctypes
import importlib
import importlib.metadata
import importlib.util
import re
import time

import numpy as np
from worker import Worker

PEERS = {  # by PyPI name, the first installed is the default: the module that tells, the class below
    "cyllama": ("cyllama", "LlamaCpp"),
    "llama-cpp-python": ("llama_cpp", "LlamaCppPython"),
    "ik-llama-cpp-python": ("ik_llama_cpp", "IkLlamaCpp"),
}


def find_peer(name=None):
    """`name`, or by default the first of PEERS; SystemExit where it is not installed, or none is."""
    wanted = [name] if name else list(PEERS)
    for peer in wanted:
        if importlib.util.find_spec(PEERS[peer][0]):
            return peer
    raise SystemExit(f"not installed: {', '.join(wanted)}")


def open_peer(path, name=None, python=None, **options):
    """A ``Worker`` around the class of ``find_peer(name)``, or of the peer that another environment's Python has; options as for
    ``LlamaCpp``."""
    if python and name not in PEERS:
        raise SystemExit(f"{name} is not a known peer; wanted one of: {', '.join(PEERS)}")
    return Worker(f"peers:{PEERS[name if python else find_peer(name)][1]}", str(path), python=python, **options)


def open_llama_cpp(path, **options):
    """A ``Worker`` around ``LlamaCpp(path, **options)``."""
    return open_peer(path, "cyllama", **options)


class _Timed:
    """What all peers are timed by, on a subclass' ``_clear``, ``_decode(ids, past)`` and ``_wait``."""

    def time_prefill(self, n):
        """Seconds for a prompt of ``n`` ids in an empty context, as llama-bench times "pp"."""
        ids = self._ids(n)
        self._clear()
        start = time.perf_counter()
        for at in range(0, n, self._n_batch):
            self._decode(ids[at : at + self._n_batch], at)
        self._wait()
        return time.perf_counter() - start

    def time_decode(self, n, past=0):
        """Seconds for ``n`` single ids, one after another, after ``past`` ids; llama-bench's "tg" has past 0."""
        ids = self._ids(past + n)
        self._clear()
        for at in range(0, past, self._n_batch):
            self._decode(ids[at : min(at + self._n_batch, past)], at)
        self._wait()
        start = time.perf_counter()
        for at in range(past, past + n):
            self._decode(ids[at : at + 1], at)
            self._wait()
        return time.perf_counter() - start

    def _ids(self, n):
        if n > self._n_ctx:
            raise ValueError(f"{n} ids do not fit the context of {self._n_ctx}")
        return np.random.default_rng(0).integers(3, self.n_vocab(), n).tolist()


class LlamaCpp(_Timed):
    """One model and one context of the wheel cyllama; use it through ``open_llama_cpp``.

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
        self._clear()
        for start in range(0, len(ids), self._n_batch):
            part = ids[start : start + self._n_batch]
            self._decode(part, start, every=True)
            for i in range(len(part)):
                out[start + i] = self._context.get_logits_ith(i)
        return out

    def greedy(self, ids, n):
        """The ``n`` most probable next ids, one after another."""
        self._clear()
        for start in range(0, len(ids), self._n_batch):
            self._decode(ids[start : start + self._n_batch], start)
        out = []
        for past in range(len(ids), len(ids) + n):
            out.append(int(np.argmax(self._context.get_logits_ith(-1))))
            self._decode(out[-1:], past)
        return out

    def _clear(self):
        self._context.kv_cache_clear(True)

    def _wait(self):
        self._context.synchronize()

    def _decode(self, ids, past, every=False):
        self._batch.clear()
        for i, token in enumerate(ids):
            self._batch.add(int(token), past + i, [0], every or i == len(ids) - 1)
        code = self._context.decode(self._batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code} for {len(ids)} ids after {past}")


class LlamaCppPython(_Timed):
    """One model and one context of llama-cpp-python, through its low-level interface; parameters as for ``LlamaCpp``."""

    NAME, MODULE, ENGINE = "llama-cpp-python", "llama_cpp.llama_cpp", "llama.cpp"

    def __init__(self, path, threads=2, n_ctx=2048, n_ubatch=512, flash_attention=None):
        self._native = native = importlib.import_module(self.MODULE)
        native.llama_backend_init()
        params = native.llama_model_default_params()
        params.n_gpu_layers = 0
        self._set_model(params)
        self._model = native.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError(f"{self.NAME} cannot load {path}")
        params = native.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, max(n_ubatch, 512), n_ubatch
        params.n_threads = params.n_threads_batch = threads
        if flash_attention is not None:
            self._set_flash(params, flash_attention)
        self._context = native.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"{self.NAME} cannot make a context of {n_ctx} tokens for {path}")
        self._n_batch, self._n_ctx, self._threads = params.n_batch, n_ctx, threads
        self._batch = native.llama_batch_init(self._n_batch, 0, 1)

    def _set_model(self, params):
        """What the model is loaded with beside the defaults."""

    def _set_flash(self, params, on):
        params.flash_attn_type = int(on)

    def info(self):
        """As ``LlamaCpp.info``."""
        tell = self._native._lib.llama_print_system_info
        tell.restype = ctypes.c_char_p
        isa = " ".join(re.findall(r"(\w+) = 1", tell().decode()))
        return {"engine": self.ENGINE, "version": f"{self.NAME} {importlib.metadata.version(self.NAME)}", "isa": isa,
                "threads": self._threads}

    def n_vocab(self):
        """Size of the vocabulary."""
        return self._native.llama_vocab_n_tokens(self._native.llama_model_get_vocab(self._model))

    def _clear(self):
        self._native.llama_memory_clear(self._native.llama_get_memory(self._context), True)

    def _wait(self):
        self._native.llama_get_logits_ith(self._context, -1)  # it waits for the step that they come from

    def _decode(self, ids, past):
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, past + i, 1, 0
            batch.logits[i] = i == len(ids) - 1
        code = self._native.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code} for {len(ids)} ids after {past}")


class IkLlamaCpp(LlamaCppPython):
    """The same of ik_llama.cpp, a fork whose interface has kept most names; weights are repacked for speed at load."""

    NAME, MODULE, ENGINE = "ik-llama-cpp-python", "ik_llama_cpp._ctypes_api", "ik_llama.cpp"

    def _set_model(self, params):
        params.repack_tensors, params.use_mmap = True, False  # what is mapped cannot be repacked

    def _set_flash(self, params, on):
        params.flash_attn = on

    def _clear(self):
        self._native.llama_kv_cache_clear(self._context)
