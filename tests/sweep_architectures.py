"""Other settings of the tiny models against llama.cpp: run by hand, with a Python that has llama-cpp-python 0.3.36.

python tests/sweep_architectures.py --llama /path/to/python [--only qwen3moe,gpt-oss] [--case heads] [--keep FOLDER]

For each model of ``archs/templates.json.gz`` that numainfer runs, and each change of settings below that applies to it, a file is written,
both run it, and what differs by more than the tolerance is printed, as is what one of the two refuses.  What a sweep finds becomes a golden
(``archs/more.py``) or a test.
"""

import argparse
import contextlib
import logging
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

ARCHS = Path(__file__).resolve().parent / "archs"
sys.path[:0] = [str(ARCHS.parent.parent), str(ARCHS)]

from changes import CASES  # noqa: E402
from llama_cpp_logits import run as llama_logits  # noqa: E402
from make_gguf import make, templates  # noqa: E402

import numainfer as ni  # noqa: E402
from numainfer.engine.architectures import SUPPORTED  # noqa: E402

# ---- running -------------------------------------------------------------------------------------------------------------------------


def ours(path, ids, **options):
    with ni.load(path, threads=1, **options) as model:
        return model.logits(ids, all=True)


def compare(name, label, n, folder, python, ids, tolerance, options):
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', f'{name} {label}'.lower())[:120]}.gguf"
    make(name, str(path), n.t)
    try:
        found = ours(path, ids, **options)
    except ni.NumaInferError as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0]
    except Exception as error:  # noqa: BLE001  whatever it is, it is a finding
        found = f"!!! {type(error).__name__}: {error}".splitlines()[0]
    wanted = llama_logits(path, ids, python)
    if isinstance(found, str) or isinstance(wanted, str):
        if isinstance(found, str) and isinstance(wanted, str):
            return "both refuse", f"{found[:150]} | llama.cpp: {wanted}"
        return ("OURS REFUSES", found[:300]) if isinstance(found, str) else ("llama.cpp refuses", wanted)
    if not np.isfinite(wanted).all():
        return "llama.cpp not finite", ""
    error = np.abs(found - wanted).max(axis=1) / np.abs(wanted).max()
    bad = int((error > tolerance).sum())
    verdict = "ok" if bad == 0 else "few" if bad <= 3 else "DIFFERS"
    return verdict, f"max {error.max():.1e}, median {np.median(error):.1e}, {bad} positions beyond"


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--llama", required=True, help="a Python that can import llama_cpp")
    parse.add_argument("--only", default="", help="names of models, by commas")
    parse.add_argument("--case", default="", help="names of changes, by commas")
    parse.add_argument("--kv", default="f16", help="our type of keys and values")
    parse.add_argument("--tolerance", type=float, default=3e-3)
    parse.add_argument("--all", action="store_true", help="print what agrees, too")
    parse.add_argument("--keep", help="folder for the files")
    args = parse.parse_args()
    logging.disable(logging.WARNING)
    ids = np.load(ARCHS / "expected.npz")["ids"].astype(np.int32)
    counts = {}
    with contextlib.ExitStack() as stack:
        folder = Path(args.keep or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        for name, t in templates().items():
            if t["arch"] not in SUPPORTED or (args.only and name not in args.only.split(",")):
                continue
            for kind, change in CASES.items():
                if args.case and kind not in args.case.split(","):
                    continue
                for label, n in change(t):
                    verdict, more = compare(name, f"{kind} {label}", n, folder, args.llama, ids, args.tolerance, {"kv_type": args.kv})
                    counts[verdict] = counts.get(verdict, 0) + 1
                    if args.all or verdict not in ("ok", "both refuse", "llama.cpp refuses"):
                        print(f"{name:18} {kind:12} {label:34} {verdict:14} {more}", flush=True)
                    if not args.keep:
                        for file in folder.iterdir():
                            file.unlink()
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
