"""Our speed as a ratio to llama.cpp's, both measured alternately in one run.

    python bench/compare.py [smollm2 gemma3 1b-q4_k FILE.gguf ...] [-p 512] [-n 128] [-r 5] [-t 2] [--isa avx2] [--json]
    python bench/compare.py --before CHECKOUT [MODEL ...]
    python bench/compare.py --write

Each engine is loaded in a process of its own and stays loaded. A round is: their prompt, ours, their decode, ours; what
is compared are medians over the rounds, so a machine that slows down slows both. Bare times from different runs say
nothing. Beside our decode stands its share of what the same threads can read, measured before and after each. A row per
model is appended to bench/results/compare.csv; ``--write`` puts the newest of them into README.md and docs/speed.md.
``--before`` compares with another checkout of ours instead, built there in place, and records nothing.
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
from peers import PEERS, find_peer, open_peer
from worker import Worker

ROOT = HERE.parent
RESULTS = HERE / "results" / "compare.csv"
MARK = "<!-- python bench/compare.py --write -->"
MAX_FOREIGN = 0.03  # share of all processor time that other processes may take
PAUSE = 0.05  # seconds: an OpenMP pool may spin for some milliseconds after its last step


def compare(path, n_prompt=512, n_gen=128, repeats=5, threads=2, ours=True, flash_attention=None, peer=None, isa=None,
            before=None):
    """Measure one model.

    Parameters
    ----------
    path : path-like
    n_prompt, n_gen : int
        Tokens of the prompt, and tokens decoded one by one in an empty context.
    repeats, threads : int
    ours : bool
        False: the peer alone.
    flash_attention : bool, optional
        The peer's; by default it chooses.
    peer : str, optional
        One of ``peers.PEERS``; by default the first that is installed.
    isa : str, optional
        Our kernels; by default the best of this machine.
    before : path-like, optional
        A checkout of ours that is the peer.

    Returns
    -------
    dict
        "model"; per engine "peer" and "numainfer": ``info()`` plus "pp" and "tg", medians in tokens per second, and
        "pp_spread", "tg_spread", (largest - smallest) / median; of ours also "bytes_per_token" (weights, keys and values)
        and "share" of the read limit, median; "pp_ratio", "tg_ratio", ours / the peer's; "foreign", the share of all
        processor time that went to other processes meanwhile.
    """
    n_ctx = max(n_prompt, n_gen) + 8
    env = {"NUMAINFER_ISA": isa} if isa else {}
    if before:
        engines = {"peer": Worker("ours:Ours", str(path), threads=threads, n_ctx=n_ctx, env=env, root=before)}
    else:
        engines = {"peer": open_peer(path, peer, threads=threads, n_ctx=n_ctx, flash_attention=flash_attention)}
    try:
        if ours:
            engines["numainfer"] = Worker("ours:Ours", str(path), threads=threads, n_ctx=n_ctx, env=env)
            size, shares = engines["numainfer"].bytes_per_token(n_gen), []
        rates = {name: {"pp": [], "tg": []} for name in engines}
        for engine in engines.values():  # first touch of weights, buffers and caches
            engine.time_prefill(min(n_prompt, 64))
            engine.time_decode(4)
        before, used = time.perf_counter(), _busy_seconds() - sum(e.cpu_seconds() for e in engines.values())
        for _ in range(repeats):
            for name, engine in engines.items():
                rates[name]["pp"].append(n_prompt / engine.time_prefill(n_prompt))
                time.sleep(PAUSE)
            for name, engine in engines.items():
                limits = [engine.read_limit()] if name == "numainfer" else []
                rates[name]["tg"].append(n_gen / engine.time_decode(n_gen))
                if limits:
                    limits.append(engine.read_limit())
                    shares.append(rates[name]["tg"][-1] * size / statistics.fmean(limits))
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
        result["numainfer"] |= {"bytes_per_token": size, "share": statistics.median(shares)}
        for kind in ("pp", "tg"):
            result[f"{kind}_ratio"] = result["numainfer"][kind] / result["peer"][kind]
    return result


def record(result, path=RESULTS):
    """Add one row to the CSV of results, with everything needed to judge it later.

    Older rows stay; columns that they did not have are empty for them.
    """
    ours, peer = result["numainfer"], result["peer"]
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
        "bytes_per_token": ours["bytes_per_token"],
        "read_share": f"{ours['share']:.3f}",
        "version": ours["version"],
        "peer": f"{peer['engine']} {peer['version']}",
        "peer_isa": peer["isa"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [*_recorded(path), row]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, dict.fromkeys([*row, *(key for old in rows for key in old)]))
        writer.writeheader()
        writer.writerows(rows)


def _recorded(path):
    """Rows of the CSV, oldest first."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _newest(path):
    """The newest row of every model, kernels, threads and peer that is recorded, those keys first."""
    rows = {tuple(row[key] for key in ("model", "isa", "threads", "peer")): row for row in _recorded(path)}
    return sorted(rows.items(), key=lambda item: (item[0][0].lower(), *item[0]))


def full_table(path=RESULTS):
    """All of `_newest` as a table in Markdown."""
    lines = ["| model | kernels | threads | prompt | x | decode | x | of read limit | against | commit |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for _, row in _newest(path):
        lines.append(f"| {row['model'].removesuffix('.gguf')} | {row['isa']} | {row['threads']} | {row['n_prompt']} | "
                     f"{float(row['pp_ratio']):.1f} | {row['n_gen']} | {float(row['tg_ratio']):.1f} | {_limit(row)} | "
                     f"{row['peer']} | {row['commit']} |")
    return "\n".join(lines)


def short_table(path=RESULTS):
    """A line per model: prompt, decode and share of the read limit against the peers of `COLUMNS`, as a table in Markdown."""
    found = {}
    for (model, isa, threads, peer), row in _newest(path):
        for i, (_, kernels, name) in enumerate(COLUMNS):
            if threads == "2" and isa == kernels and name in peer:
                found.setdefault(model.removesuffix(".gguf"), {})[i] = row
    heads = [f"{title}: {kind}" for title, _, _ in COLUMNS for kind in ("prompt", "decode")]
    lines = [f"| model | {' | '.join(heads)} | of the memory's limit |", "|---|" + "---:|" * (len(heads) + 1)]
    for model, rows in sorted(found.items(), key=lambda item: item[0].startswith("1b-")):  # real ones first
        cells = [f"{float(rows[i][kind]):.1f} x" if i in rows else "" for i in range(len(COLUMNS)) for kind in ("pp_ratio", "tg_ratio")]
        lines.append(f"| {model} | {' | '.join(cells)} | {_limit(rows[min(rows)])} |")
    return "\n".join(lines)


COLUMNS = (("AVX-512", "avx512", "llama-cpp-python"), ("AVX2", "avx2", "cyllama"))  # title, our kernels, whose package
TABLES = ((ROOT / "README.md", short_table), (ROOT / "docs" / "speed.md", full_table))


def _limit(row):
    return f"{float(row['read_share']):.0%}" if row.get("read_share") else ""


def with_table(text, table):
    """A page's text with the table between its two marks."""
    before, after = text.partition(MARK)[0], text.rpartition(MARK)[2]
    if text.count(MARK) != 2:
        raise ValueError(f"found {text.count(MARK)} marks, wanted 2: {MARK}")
    return f"{before}{MARK}\n\n{table}\n\n{MARK}{after}"


def write_tables():
    """Put what was recorded last into the pages."""
    for page, table in TABLES:
        page.write_text(with_table(page.read_text(encoding="utf-8"), table()), encoding="utf-8")


def _busy_seconds():
    """Processor time that anyone on this machine, or its host, has used so far."""
    user, nice, system, _, _, irq, softirq, steal = Path("/proc/stat").read_text(encoding="ascii").split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


def _commit():
    def git(*words):
        return subprocess.run(["git", "-C", HERE, *words], capture_output=True, text=True, check=False).stdout.strip()

    head = git("rev-parse", "--short", "HEAD")
    return (head if head != "HEAD" else "") + ("+changes" if git("status", "--porcelain", "--", "..", ":!results") else "")


def _cpu():
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def table(results):
    """The results as text, a line per model."""
    width = max(len(r["model"]) for r in results)
    columns = f"{'ours':>8} {'peer':>8} {'ratio':>6}"
    lines = [f"{'':{width}}  {'prompt, tokens/s':^24}   {'decode, tokens/s':^24}      read",
             f"{'model':{width}}  {columns}   {columns}  MB/token  of limit"]
    for r in results:
        cells, mine = [], r.get("numainfer")
        for kind in ("pp", "tg"):
            peer = r["peer"][kind]
            cells.append(f"{mine[kind]:8.1f} {peer:8.1f} {mine[kind] / peer:6.2f}" if mine else f"{'-':>8} {peer:8.1f} {'-':>6}")
        read = f"{mine['bytes_per_token'] / 1e6:8.1f} {mine['share']:9.0%}" if mine else ""
        lines.append(f"{r['model']:{width}}  {'   '.join(cells)}  {read}".rstrip())
    for name in ("numainfer", "peer"):
        if info := results[0].get(name):
            lines.append(f"{name}: {info['engine']} {info['version']}; {info['isa']}; {info['threads']} threads")
    engines = [r[name] for r in results for name in ("numainfer", "peer") if name in r]
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
    parser.add_argument("--peer", choices=PEERS, help="the package to compare with; by default the first installed")
    parser.add_argument("--before", metavar="CHECKOUT", help="compare with this checkout of ours, built in place, instead of a peer")
    parser.add_argument("--isa", help="our kernels, such as avx2; by default the best of this machine")
    parser.add_argument("--flash-attention", choices=["on", "off"], help="the peer's; by default it chooses")
    parser.add_argument("--peer-only", action="store_true", help="measure the peer alone, record nothing")
    parser.add_argument("--no-record", action="store_true", help="leave the CSV alone")
    parser.add_argument("--json", action="store_true", help="one JSON object per model instead of the table")
    parser.add_argument("--write", action="store_true", help="measure nothing, put what was recorded last into README.md and docs/speed.md")
    args = parser.parse_args(argv)
    if args.write:
        write_tables()
        return
    peer = None if args.before else find_peer(args.peer)
    flash = None if args.flash_attention is None else args.flash_attention == "on"
    results = []
    for name in args.models:
        path = find_model(name)
        result = compare(path, args.prompt, args.gen, args.repeats, args.threads, not args.peer_only, flash, peer, args.isa,
                         args.before)
        results.append(result)
        if not args.peer_only and not args.no_record and not args.before and result["foreign"] <= MAX_FOREIGN:
            record(result)
        if args.json:
            print(json.dumps(result), flush=True)
    if not args.json:
        print(table(results))


if __name__ == "__main__":
    main()
