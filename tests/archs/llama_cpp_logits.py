"""Logits that llama.cpp computes, through llama-cpp-python: CPU, one thread, one prefill, KV cache in F32, flash attention off.

As a script, under a Python that has llama_cpp: llama_cpp_logits.py FILE.gguf IDS.npy OUT.npy [N_CTX]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def run(path, ids, python, n_ctx=512):
    """(len(ids), vocabulary) float32, or a string: why there are none.  `python`: one that can import llama_cpp."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "ids.npy", Path(folder) / "out.npy"
        np.save(given, np.asarray(ids, np.int32))
        done = subprocess.run([python, __file__, str(path), str(given), str(out), str(n_ctx)], check=False, capture_output=True, text=True,
                              timeout=600)  # fmt: skip
        if done.returncode or not out.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip() and "at " not in line[:4]]
            wanted = [line for line in lines if "error" in line or "ASSERT" in line or "abort" in line.lower()]
            return (wanted or lines or [f"exit status {done.returncode}"])[0][:200]
        return np.load(out)


def main(path, ids, out, n_ctx=512):
    import llama_cpp as lib

    @lib.llama_log_callback
    def on_log(level, text, _):
        if level >= 4:
            sys.stderr.write(text.decode(errors="replace"))

    lib.llama_log_set(on_log, None)
    lib.llama_backend_init()
    ids, how = np.load(ids), lib.llama_model_default_params()
    how.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), how)
    if not model:
        raise SystemExit("error: not loaded")
    given = lib.llama_context_default_params()
    given.n_ctx, given.n_batch, given.n_ubatch = int(n_ctx), max(512, len(ids)), max(512, len(ids))
    given.n_threads = given.n_threads_batch = 1
    given.type_k = given.type_v = given.flash_attn_type = 0  # F32, F32, off
    context = lib.llama_init_from_model(model, given)
    if not context:
        raise SystemExit("error: no context")
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
        batch.seq_id[i][0] = 0
    status = lib.llama_decode(context, batch)
    if status:
        raise SystemExit(f"error: llama_decode gave {status}")
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    np.save(out, np.stack([np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (size,)) for i in range(len(ids))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
