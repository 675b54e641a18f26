"""How far from exact arithmetic are we, and how far is llama.cpp?

    python bench/accuracy.py [smollm2 | gemma3 | PATH ...] [--positions 1000] [--json]

The reference decodes the file's weights exactly and runs the forward pass in NumPy float32; ours and llama.cpp's
logits are compared with its over English, code and Chinese text. The issue's bar: ratio <= 1.1, perplexity within 0.5 %.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]

import reference as ref
from models import find_model
from peers import open_llama_cpp
from reference_models import ReferenceModel
from worker import Worker

WINDOW = 512
TEXTS = ("english", "code", "chinese")


class Tally:
    """Sums over positions for one engine against the reference."""

    def __init__(self):
        self.kl, self.nll, self.same_top = [], [], []

    def add(self, log_p, log_q, ids):
        """log_p, log_q : float64 (n, V) of reference and engine; ids : the n inputs and, where there is one, the next."""
        self.kl.append((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))
        self.nll.append(-log_q[np.arange(len(ids) - 1), ids[1:]])
        self.same_top.append(log_p.argmax(axis=-1) == log_q.argmax(axis=-1))

    def summary(self):
        """{"kl", "kl_p99", "kl_max", "perplexity", "same_top"}, means over all positions so far."""
        kl = np.concatenate(self.kl)
        return {
            "kl": float(kl.mean()),
            "kl_p99": float(np.quantile(kl, 0.99)),
            "kl_max": float(kl.max()),
            "perplexity": float(np.exp(np.concatenate(self.nll).mean())),
            "same_top": float(np.concatenate(self.same_top).mean()),
        }


def windows(tokenize, bos, positions):
    """Cut the sample texts into runs of at most WINDOW ids, an equal share of ``positions`` from each.

    Yields
    ------
    (str, list of int)
        Name of the text, and ids with the model's BOS in front of every run.
    """
    for i, name in enumerate(TEXTS):
        share = positions * (i + 1) // len(TEXTS) - positions * i // len(TEXTS)
        ids = tokenize((ROOT / "tests" / "texts" / f"{name}.txt").read_text(encoding="utf-8"), False, False)
        if len(ids) < share:
            raise SystemExit(f"tests/texts/{name}.txt has {len(ids)} tokens for this model, wanted {share}")
        head = [] if bos is None else [bos]
        step = WINDOW - len(head)
        for start in range(0, share, step):
            yield name, head + ids[start : min(start + step, share)]


def measure(path, positions, threads=2, ours=True):
    """Compare one model.

    Returns
    -------
    dict
        "positions", "reference" ({"perplexity"}), "llama.cpp", "numainfer" (``Tally.summary``), "ratio" of the mean
        divergences, and "texts": the same divergences text by text.
    """
    reference = ReferenceModel(path)
    engines = {"llama.cpp": open_llama_cpp(path, threads=threads, n_ctx=WINDOW)}
    try:
        if ours:
            engines["numainfer"] = Worker("ours:Ours", str(path), threads=threads, n_ctx=WINDOW)
        tallies = {name: Tally() for name in ("reference", *engines)}
        texts = {}
        peer = engines["llama.cpp"]
        count = 0
        for text, ids in windows(peer.tokenize, peer.bos(), positions):
            exact = reference.logits(ids)
            outputs = {name: engine.logits(ids) for name, engine in engines.items()}
            count += len(ids)
            # float64 log-probabilities of 512 x 262k values would take gigabytes: go in slices that overlap by one,
            # since a position's loss needs the id after it.
            for at in range(0, len(ids), 64):
                part, rows = ids[at : at + 65], slice(at, at + 64)
                log_p = ref.log_softmax(exact[rows])
                for name, tally in tallies.items():
                    log_q = log_p if name == "reference" else ref.log_softmax(outputs[name][rows])
                    tally.add(log_p, log_q, part)
                    texts.setdefault(text, {}).setdefault(name, []).append(tally.kl[-1])
    finally:
        for engine in engines.values():
            engine.close()
    result = {"model": Path(path).name, "positions": count}
    result |= {name: tally.summary() for name, tally in tallies.items()}
    result["texts"] = {t: {n: float(np.concatenate(k).mean()) for n, k in by.items() if n != "reference"}
                       for t, by in texts.items()}
    if ours:
        result["ratio"] = result["numainfer"]["kl"] / result["llama.cpp"]["kl"]
    return result


def main(argv=None):
    """Print a table, or one JSON object per model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma3"], help="smollm2, gemma3 or GGUF files")
    parser.add_argument("--positions", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-only", action="store_true", help="llama.cpp against the reference, without us")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    for name in args.models:
        result = measure(find_model(name), args.positions, args.threads, ours=not args.peer_only)
        if args.json:
            print(json.dumps(result), flush=True)
            continue
        print(f"{result['model']}: {result['positions']} positions")
        print(f"  {'':10} {'mean KL':>10} {'p99':>9} {'max':>9} {'perplexity':>11} {'same top-1':>11}")
        for engine in ("reference", "llama.cpp", "numainfer"):
            if r := result.get(engine):
                print(f"  {engine:10} {r['kl']:10.6f} {r['kl_p99']:9.5f} {r['kl_max']:9.5f} {r['perplexity']:11.4f} "
                      f"{r['same_top']:11.4f}")
        for text, by in result["texts"].items():
            print(f"  {text:10} " + ", ".join(f"{engine} {kl:.6f}" for engine, kl in by.items()))
        if "ratio" in result:
            print(f"  KL ours / llama.cpp: {result['ratio']:.3f}", flush=True)


if __name__ == "__main__":
    main()
