"""Our speed as a ratio to llama.cpp's, both measured alternately in one run.

    python bench/compare.py [smollm2 gemma3 1b-q4_k FILE.gguf ...] [-p 512] [-n 128] [-r 5] [-t 2] [--json]

Each engine is loaded in a process of its own and stays loaded. A round is: their prompt, ours, their decode, ours; what
is compared are medians over the rounds, so a machine that slows down slows both. Bare times from different runs say
nothing. A row per model is appended to bench/results/compare.csv.
"""

import argparse
import csv
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from models import find_model
from peers import open_llama_cpp
from worker import Worker

RESULTS = HERE / "results" / "compare.csv"
MAX_FOREIGN = 0.03  # share of all processor time that other processes may take
PAUSE = 0.05  # seconds: an OpenMP pool may spin for some milliseconds after its last step


def compare(path, n_prompt=512, n_gen=128, repeats=5, threads=2, ours=True, flash_attention=None):
    """Measure one model.

    Returns
    -------
    dict
        "model"; per engine "llama.cpp" and "numainfer": ``info()`` plus "pp" and "tg", medians in tokens per second,
        and "pp_spread", "tg_spread", (largest - smallest) / median; "pp_ratio", "tg_ratio", ours / llama.cpp's;
        "foreign", the share of all processor time that went to other processes meanwhile.
    """
    n_ctx = max(n_prompt, n_gen) + 8
    engines = {"llama.cpp": open_llama_cpp(path, threads=threads, n_ctx=n_ctx, flash_attention=flash_attention)}
    try:
        if ours:
            engines["numainfer"] = Worker("ours:Ours", str(path), threads=threads, n_ctx=n_ctx)
        rates = {name: {"pp": [], "tg": []} for name in engines}
        for engine in engines.values():  # first touch of weights, buffers and caches
            engine.time_prefill(min(n_prompt, 64))
            engine.time_decode(4)
        before, used = time.perf_counter(), _busy_seconds() - sum(e.cpu_seconds() for e in engines.values())
        for _ in range(repeats):
            for kind, verb, n in (("pp", "time_prefill", n_prompt), ("tg", "time_decode", n_gen)):
                for name, engine in engines.items():
                    rates[name][kind].append(n / engine.call(verb, n))
                    time.sleep(PAUSE)
        used = _busy_seconds() - sum(e.cpu_seconds() for e in engines.values()) - used
        result = {"model": Path(path).name, "n_prompt": n_prompt, "n_gen": n_gen, "repeats": repeats,
                  "foreign": max(0.0, used / (time.perf_counter() - before) / os.cpu_count())}
        for name, engine in engines.items():
            row = result[name] = engine.info()
            for kind, values in rates[name].items():
                row[kind] = statistics.median(values)
                row[f"{kind}_spread"] = (max(values) - min(values)) / row[kind]
    finally:
        for engine in engines.values():
            engine.close()
    if ours:
        for kind in ("pp", "tg"):
            result[f"{kind}_ratio"] = result["numainfer"][kind] / result["llama.cpp"][kind]
    return result


def record(result, path=RESULTS):
    """Add one row to the CSV of results, with everything needed to judge it later.

    Older rows stay; columns that they did not have are empty for them.
    """
    ours, peer = result["numainfer"], result["llama.cpp"]
    row = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": _commit(),
        "cpu": _cpu(),
        "isa": ours["isa"],
        "threads": ours["threads"],
        "model": result["model"],
        "n_prompt": result["n_prompt"],
        "n_gen": result["n_gen"],
        "repeats": result["repeats"],
        "foreign": f"{result['foreign']:.3f}",
        "pp_ratio": f"{result['pp_ratio']:.3f}",
        "tg_ratio": f"{result['tg_ratio']:.3f}",
        "pp_ours": f"{ours['pp']:.1f}",
        "pp_peer": f"{peer['pp']:.1f}",
        "tg_ours": f"{ours['tg']:.2f}",
        "tg_peer": f"{peer['tg']:.2f}",
        "version": ours["version"],
        "peer": f"llama.cpp {peer['version']}",
        "peer_isa": peer["isa"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    rows.append(row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, dict.fromkeys([*row, *(key for old in rows for key in old)]))
        writer.writeheader()
        writer.writerows(rows)


def _busy_seconds():
    """Processor time that anyone on this machine, or its host, has used so far."""
    user, nice, system, _, _, irq, softirq, steal = Path("/proc/stat").read_text(encoding="ascii").split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


def _commit():
    def git(*words):
        return subprocess.run(["git", "-C", HERE, *words], capture_output=True, text=True, check=False).stdout.strip()

    head = git("rev-parse", "--short", "HEAD")
    return (head if head != "HEAD" else "") + ("+changes" if git("status", "--porcelain", "--", "..") else "")


def _cpu():
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def table(results):
    """The results as text, a line per model."""
    width = max(len(r["model"]) for r in results)
    columns = f"{'ours':>8} {'llama.cpp':>10} {'ratio':>8}"
    lines = [f"{'':{width}}  {'prompt, tokens/s':^28}   {'decode, tokens/s':^28}",
             f"{'model':{width}}  {columns}   {columns}"]
    for r in results:
        cells = []
        for kind in ("pp", "tg"):
            peer, ours = r["llama.cpp"][kind], r.get("numainfer", {}).get(kind)
            cells.append(f"{ours:8.1f} {peer:10.1f} {ours / peer:8.2f}" if ours else f"{'-':>8} {peer:10.1f} {'-':>8}")
        lines.append(f"{r['model']:{width}}  " + "   ".join(cells))
    for name in ("numainfer", "llama.cpp"):
        if info := results[0].get(name):
            lines.append(f"{name}: {info['version']}; {info['isa']}; {info['threads']} threads")
    engines = [r[name] for r in results for name in ("numainfer", "llama.cpp") if name in r]
    spread = max(engine[f"{kind}_spread"] for engine in engines for kind in ("pp", "tg"))
    lines.append(f"medians of {results[0]['repeats']} interleaved rounds; largest spread {spread:.0%}")
    foreign = max(r["foreign"] for r in results)
    if foreign > MAX_FOREIGN:
        lines.append(f"NOT COMPARABLE: other processes used {foreign:.0%} of the processors, at most "
                     f"{MAX_FOREIGN:.0%} is fair; nothing was recorded for such models")
    return "\n".join(lines)


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma3"])
    parser.add_argument("-p", "--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("-n", "--gen", type=int, default=128, help="tokens decoded one by one")
    parser.add_argument("-r", "--repeats", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--flash-attention", choices=["on", "off"], help="llama.cpp's; by default it chooses")
    parser.add_argument("--peer-only", action="store_true", help="measure llama.cpp alone, record nothing")
    parser.add_argument("--no-record", action="store_true", help="leave the CSV alone")
    parser.add_argument("--json", action="store_true", help="one JSON object per model instead of the table")
    args = parser.parse_args(argv)
    flash = None if args.flash_attention is None else args.flash_attention == "on"
    results = []
    for name in args.models:
        path = find_model(name)
        result = compare(path, args.prompt, args.gen, args.repeats, args.threads, not args.peer_only, flash)
        results.append(result)
        if not args.peer_only and not args.no_record and result["foreign"] <= MAX_FOREIGN:
            record(result)
        if args.json:
            print(json.dumps(result), flush=True)
    if not args.json:
        print(table(results))


if __name__ == "__main__":
    main()
