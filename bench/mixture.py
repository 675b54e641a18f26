"""A mixture of experts beside a dense model of ours and beside llama.cpp, all measured alternately in one run.

    python bench/mixture.py [moe64-q4_k FILE.gguf ...] [--dense 1b-q4_k] [--peer cyllama] [--peer llama-cpp-python=PYTHON]
                            [-p 512] [-n 64] [-s 16] [-r 5] [-t 2]

Per mixture: speed of a prompt and of decoding as ratios to every peer's; decoding's share of what the same threads can read, over the
bytes that a token really reads, beside the share that the dense model reaches in the same rounds; and so many sequences at once, beside
what their bytes and multiply-adds allow: of each matmul the longer of the time to read what was read of its weights, counted, and of
the time of its multiply-adds at the rate of this run's prompts. A peer that lives in another environment is given with its Python.
All are medians over rounds, each of which has every engine once; shares and ratios are taken round by round.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from models import find_model
from peers import open_peer
from worker import Worker

PAUSE = 0.05  # seconds: an OpenMP pool may spin for some milliseconds after its last step


def compare(path, dense, peers, n_prompt=512, n_gen=64, sequences=16, repeats=5, threads=2):
    """Measure one mixture.

    Parameters
    ----------
    path, dense : path-like
        GGUF files: the mixture, and the dense model.
    peers : dict
        Name of one of ``peers.PEERS`` -> the Python that has it, None for this one.
    n_prompt, n_gen : int
        Tokens of the prompt, and tokens decoded one by one.
    sequences : int
        That get a token each in every step of the last part.
    repeats, threads : int

    Returns
    -------
    dict
        "pp", "tg": tokens per second by engine ("ours", "dense", the peers); "share": of the read limit, by "ours" and "dense";
        "together": tokens per second of all sequences, "bound": of the same at best, "bytes": read in such a step of experts.
        Every value is a list, one number per round.
    """
    n_ctx = max(n_prompt, n_gen) + 8
    engines = {}
    try:
        for name, file in (("ours", path), ("dense", dense)):
            engines[name] = Worker("ours:Ours", str(file), threads=threads, n_ctx=n_ctx)
        for peer, python in peers.items():
            engines[peer] = open_peer(path, peer, python=python, threads=threads, n_ctx=n_ctx)
        read = {name: engines[name].bytes_per_token(n_gen) for name in ("ours", "dense")}
        macs = engines["ours"].prompt_macs(n_prompt)
        for engine in engines.values():  # first touch of weights, buffers and caches
            engine.time_prefill(n_prompt)
            engine.time_decode(4)
        found = {"pp": {name: [] for name in engines}, "tg": {name: [] for name in engines},
                 "share": {"ours": [], "dense": []}, "together": [], "bound": [], "bytes": []}  # fmt: skip
        for _ in range(repeats):
            for name, engine in engines.items():
                found["pp"][name].append(n_prompt / engine.time_prefill(n_prompt))
                time.sleep(PAUSE)
            for name, engine in engines.items():
                limits = [engine.read_limit()] if name in read else []
                found["tg"][name].append(n_gen / engine.time_decode(n_gen))
                if limits:
                    limits.append(engine.read_limit())
                    found["share"][name].append(found["tg"][name][-1] * read[name] / statistics.fmean(limits))
                time.sleep(PAUSE)
            if sequences > 1:
                limit = engines["ours"].read_limit()
                step = engines["ours"].together(sequences, n_gen // 4)
                limit = (limit + engines["ours"].read_limit()) / 2
                rate = macs * found["pp"]["ours"][-1] / n_prompt
                best = sum(max(n_bytes / limit, n_macs / rate) for n_bytes, n_macs in [*step["plain"], step["experts"]])
                found["together"].append(sequences / step["seconds"])
                found["bound"].append(sequences / best)
                found["bytes"].append(step["experts"][0])
        return found
    finally:
        for engine in engines.values():
            engine.close()


def report(name, found, sequences):
    """What `compare` found, as text."""
    def median(values):
        return statistics.median(values)

    def ratio(a, b):
        return median([x / y for x, y in zip(a, b)])

    lines = [f"{name}: prompt {median(found['pp']['ours']):.0f} tokens/s, decode {median(found['tg']['ours']):.1f} tokens/s"]
    for kind, says in (("pp", "prompt"), ("tg", "decode")):
        rest = [peer for peer in found[kind] if peer not in ("ours", "dense")]
        for peer in rest:
            lines.append(f"  {says}: {ratio(found[kind]['ours'], found[kind][peer]):.2f} x {peer} ({median(found[kind][peer]):.1f})")
    mine, dense = found["share"]["ours"], found["share"]["dense"]
    lines.append(f"  of the read limit: {median(mine):.2f}, the dense model {median(dense):.2f}, ratio {ratio(mine, dense):.2f}")
    if found["together"]:
        lines.append(f"  {sequences} sequences: {median(found['together']):.0f} tokens/s, at best {median(found['bound']):.0f}, "
                     f"share {ratio(found['together'], found['bound']):.2f}; {median(found['bytes']) / 1e6:.0f} MB of experts a step")
    return "\n".join(lines)


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["moe64-q4_k"], metavar="MODEL")
    parser.add_argument("--dense", default="1b-q4_k")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME[=PYTHON]")
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("-s", "--sequences", type=int, default=16)
    parser.add_argument("-r", "--repeats", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=2)
    args = parser.parse_args(argv)
    for name in ("prompt", "tokens", "sequences", "repeats", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: wanted 1 or more")
    peers = {name: python or None for name, _, python in (peer.partition("=") for peer in args.peer)}
    for name in args.models:
        found = compare(find_model(name), find_model(args.dense), peers, args.prompt, args.tokens, args.sequences, args.repeats,
                        args.threads)  # fmt: skip
        print(report(name, found, args.sequences), flush=True)


if __name__ == "__main__":
    main()
