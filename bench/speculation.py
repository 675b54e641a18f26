"""Answers with and without speculation, in turns: the ratio of their speeds, and what a step costs by its rows.

    python bench/speculation.py [MODEL] [-n 160] [-r 5] [--dictated]

Prompts ask for code to be edited, for a summary with quotations, and for plain text. What is compared is tokens per second after the first
one; ratios are medians of pairs. With --dictated (for models of random weights that have SmolLM2's tokenizer) answers are given: the code
with a name changed, random tokens, and what SmolLM2 says, which drafts that.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from models import find_model

import numainfer as ni

ROOT = Path(__file__).resolve().parent.parent
CODE = (ROOT / "numainfer" / "progress.py").read_text(encoding="utf-8")
TEXT = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")[:1600]
EDIT = f"Rename the parameter 'label' to 'title' in this code. Answer with the whole code.\n\n```python\n{CODE}```"
BEGIN = "Here is the whole code:\n\n```python\n"  # of the answer to that, lest a small model talks about it instead
QUOTE = f"Summarise this text. Quote whole sentences of it to support each point.\n\n{TEXT}"
PLAIN = ("Write a short story about a lighthouse keeper.", "Explain how rainbows form.", "What should I see in Rome in three days?",
         "Write a letter to a friend about your new garden.")  # fmt: skip


def dictate(ids):
    """A logits processor under which the model can only say ids."""

    def process(token_ids, logits):
        logits[:] = -np.inf
        logits[ids[len(token_ids)]] = 0
        return logits

    return process


def dictated(model, draft, n):
    """(name, prompt ids, keywords) of each."""
    tokens = model.tokenizer
    code, edited = (tokens.encode(text, add_special_tokens=False) for text in (CODE, CODE.replace("label", "title")))
    yield "edit", code[:1500], {"logits_processor": dictate(edited), "max_tokens": min(n, len(edited))}
    random = np.random.default_rng(0).integers(100, tokens.n_vocab, n).tolist()
    yield "random", code[:300], {"logits_processor": dictate(random), "max_tokens": n}
    prompt = tokens.chat_prompt(PLAIN[1])[0]
    said = draft.generate(prompt, max_tokens=n, ignore_eos=True).token_ids
    for speculate in (draft, "prompt"):
        options = {"logits_processor": dictate(said), "max_tokens": n, "speculate": speculate}
        yield "drafted" if speculate is draft else "the same", prompt, options


def real(model, n):
    """The same, of a model that makes sense."""
    tokens = model.tokenizer
    for name, texts in (("edit", [EDIT]), ("quote", [QUOTE]), ("plain", PLAIN)):
        for text in texts:
            begin = tokens.encode(BEGIN if name == "edit" else "", add_special_tokens=False)
            yield name, [*tokens.chat_prompt(text)[0], *begin], {"max_tokens": n}
    yield "plain, sampled", tokens.chat_prompt(PLAIN[0])[0], {"max_tokens": n, "temperature": 0.8, "seed": 1}


def compare(model, jobs, repeats):
    for name, prompt, options in jobs:
        pairs, speculate = [], options.pop("speculate", "prompt")
        with model.session() as with_, model.session() as without:  # so that prompts are computed once
            for _ in range(repeats + 1):
                found = [session.generate(prompt, ignore_eos=True, speculate=how, **options)
                         for session, how in ((without, None), (with_, speculate))]  # fmt: skip
                if found[0].token_ids != found[1].token_ids:
                    raise RuntimeError("speculation gave other tokens")
                pairs.append([done.timings.generation_tokens_per_second for done in found])
        ratios = [b / a for a, b in pairs[1:]]  # the first measured costs
        t = found[1].timings
        print(f"{name:>15}: {statistics.median(ratios):.2f} of the speed without ({', '.join(f'{r:.2f}' for r in ratios)}); "
              f"{t.generated_tokens} tokens in {t.generated_tokens - t.accepted} steps, {t.accepted} of {t.proposed} proposals accepted",
              flush=True)  # fmt: skip


def steps(model, context, repeats):
    """Print what steps over 1, 2, ... tokens of a sequence cost."""
    engine = model.runtime.engine
    kv, times = engine.new_kv(), {}
    for at in range(0, context, engine.n_batch):
        engine.step([(kv, np.full(min(engine.n_batch, context - at), 7, np.int32), at)], [])
    for _ in range(repeats):
        for rows in (1, 2, 3, 4, 5, 6, 8, 12, 16):
            start = time.perf_counter()
            engine.step([(kv, np.full(rows, 7, np.int32), context)], range(rows))
            times.setdefault(rows, []).append(time.perf_counter() - start)
    alone = statistics.median(times[1])
    print(f"a step of one token at {context}: {1e3 * alone:.1f} ms; of more: "
          + ", ".join(f"{rows}: {statistics.median(t) / alone:.2f} x" for rows, t in times.items() if rows > 1))  # fmt: skip
    kv.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("-n", "--tokens", type=int, default=160)
    parser.add_argument("-r", "--repeats", type=int, default=5)
    parser.add_argument("--dictated", action="store_true")
    args = parser.parse_args()
    with ni.load(find_model(args.model), n_ctx=2048) as model:
        print(f"{args.model}, {model.runtime.engine.threads} threads, {model.runtime.engine.isa}")
        steps(model, 512, 9)
        if args.dictated:
            with ni.load("smollm2", n_ctx=2048) as draft:
                compare(model, dictated(model, draft, args.tokens), args.repeats)
        else:
            compare(model, real(model, args.tokens), args.repeats)


if __name__ == "__main__":
    main()
