"""How far from exact arithmetic are we, and how far is llama.cpp?

    python bench/accuracy.py [smollm2 | gemma3 | PATH ...] [--positions N] [--json]

The reference decodes the file's weights exactly and runs the forward pass in NumPy float32; ours and llama.cpp's
logits are compared with its over English, code and Chinese text. The bar: mean divergence at most 1.1 times, perplexity
within 0.5 % of llama.cpp's.

Rounding activations to 8 bits is chaotic: two runs that differ in the last bit of one float end as far from each
other as from the reference. So a perplexity carries noise of some tenths of a percent, which "loss" shows: the mean
difference of the loss from the reference's, and its standard error.
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
        self.kl, self.nll, self.exact_nll, self.same_top = [], [], [], []

    def add(self, log_p, log_q, ids):
        """log_p, log_q : float64 (n, V) of reference and engine; ids : the n inputs and, if there is one, the next."""
        self.kl.append((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))
        seen = np.arange(len(ids) - 1), ids[1:]
        self.nll.append(-log_q[seen])
        self.exact_nll.append(-log_p[seen])
        self.same_top.append(log_p.argmax(axis=-1) == log_q.argmax(axis=-1))

    def summary(self):
        """Means over all positions so far; "loss" is engine minus reference, nats, "loss_error" its standard error."""
        kl, nll = np.concatenate(self.kl), np.concatenate(self.nll)
        loss = nll - np.concatenate(self.exact_nll)
        return {
            "kl": float(kl.mean()),
            "kl_p99": float(np.quantile(kl, 0.99)),
            "kl_max": float(kl.max()),
            "perplexity": float(np.exp(nll.mean())),
            "loss": float(loss.mean()),
            "loss_error": float(loss.std() / np.sqrt(len(loss))),
            "same_top": float(np.concatenate(self.same_top).mean()),
        }


def windows(tokenize, bos, positions=None):
    """Cut the sample texts into runs of at most WINDOW ids.

    Parameters
    ----------
    positions : int, optional
        Take only so many ids, an equal share from each text.

    Yields
    ------
    (str, list of int)
        Name of the text, and ids with the model's BOS in front of every run.
    """
    head = [] if bos is None else [bos]
    step = WINDOW - len(head)
    for i, name in enumerate(TEXTS):
        ids = tokenize((ROOT / "tests" / "texts" / f"{name}.txt").read_text(encoding="utf-8"), False, False)
        if positions is not None:
            share = positions * (i + 1) // len(TEXTS) - positions * i // len(TEXTS)
            if len(ids) < share:
                raise SystemExit(f"tests/texts/{name}.txt has {len(ids)} tokens for this model, wanted {share}")
            ids = ids[:share]
        for start in range(0, len(ids), step):
            yield name, head + ids[start : start + step]


def measure(path, positions=None, threads=2, ours=True):
    """Compare one model.

    Returns
    -------
    dict
        "positions"; "reference", "llama.cpp", "numainfer" (``Tally.summary``); "kl_ratio", "perplexity_ratio", ours to
        llama.cpp's; "texts": the mean divergences text by text.
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
        for key in ("kl", "perplexity"):
            result[f"{key}_ratio"] = result["numainfer"][key] / result["llama.cpp"][key]
    return result


def main(argv=None):
    """Print a table, or one JSON object per model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma3"], help="smollm2, gemma3 or GGUF files")
    parser.add_argument("--positions", type=int, help="take only so many; by default all, about 3,000")
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
        print(f"  {'':10} {'mean KL':>10} {'p99':>9} {'max':>9} {'perplexity':>11} {'loss':>19} {'same top-1':>11}")
        for engine in ("reference", "llama.cpp", "numainfer"):
            if r := result.get(engine):
                print(f"  {engine:10} {r['kl']:10.6f} {r['kl_p99']:9.5f} {r['kl_max']:9.5f} {r['perplexity']:11.4f} "
                      f"{r['loss']:+9.5f} +- {r['loss_error']:.4f} {r['same_top']:11.4f}")
        for text, by in result["texts"].items():
            print(f"  {text:10} " + ", ".join(f"{engine} {kl:.6f}" for engine, kl in by.items()))
        if "kl_ratio" in result:
            kl, perplexity = result["kl_ratio"], result["perplexity_ratio"]
            print(f"  ours / llama.cpp: KL {kl:.3f}, perplexity {perplexity:.5f}", flush=True)


if __name__ == "__main__":
    main()
