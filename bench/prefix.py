"""Prompts that begin alike: as a list, in a session, and each computed from its first token on.

    python bench/prefix.py [MODEL] [-n 16] [-r 5] [--shared 377]

Six questions about one text of so many tokens. In turns in one process, each way from an empty memory of prefixes; the ratios are medians
of rounds. "later" is the list once more, when its prompts are known.  Answers must be the same.
"""

import argparse
import statistics
import time

from models import find_model

import numainfer as ni

TEXT = """The lighthouse of Skarholm stands on a rock four miles from the coast. It was built between 1861 and 1867 by masons from the
mainland, who lived in a wooden barrack on the rock from April to October and lost two of their number to the sea. The tower is of grey
granite, each course dovetailed into the one below, and rises forty-one metres above high water. Its lamp burned colza oil at first, then
paraffin, and since 1923 it has been electric. The keepers were three at a time, one of them always ashore; they were relieved every
fourth week, weather permitting, which in winter it often did not. In January 1899 the relief boat could not land for fifty-three days,
and the keepers lived on ship's biscuit and rain water. The last of them, Anna Lindqvist, who had come as a girl of nineteen to help her
father, left the rock in 1978, when the light was made automatic. She kept a diary of the birds that struck the lantern on migration:
redwings, starlings, goldcrests, once a bittern. The diary is now in the museum at Harnes. """
QUESTIONS = ("Who was the last keeper?", "How high is the tower?", "When was the lamp made electric?", "What did the keepers eat in 1899?",
             "Where is the diary kept?", "How many masons were lost?")  # fmt: skip


def seconds(work):
    start = time.perf_counter()
    done = work()
    return time.perf_counter() - start, done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("-n", "--tokens", type=int, default=16)
    parser.add_argument("-r", "--repeats", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--shared", type=int, default=377, help="tokens that the prompts share")
    args = parser.parse_args()
    with ni.load(find_model(args.model), n_ctx=args.shared + args.tokens + 64, threads=args.threads) as model:
        text = model.tokenizer.encode(TEXT * (args.shared // 200 + 1))[: args.shared]
        tails = [model.tokenizer.encode(f"\nQuestion: {q}\nAnswer:", add_special_tokens=False) for q in QUESTIONS]
        prompts = [text + tail for tail in tails]
        params, prefixes = ni.SamplingParams(max_tokens=args.tokens, ignore_eos=True), model.runtime.prefixes

        def fresh():
            prefixes.reclaim()

        def alone():
            done = []
            for prompt in prompts:
                fresh()
                done.append(model.generate(prompt, params))
            return done

        def in_a_session():
            fresh()
            with model.session() as session:
                return session.generate(prompts, params)

        def as_a_list():
            fresh()
            return model.generate(prompts, params)

        def one_by_one():
            fresh()
            return [model.generate(prompt, params) for prompt in prompts]

        ways = {"alone": alone, "session": in_a_session, "list": as_a_list, "later": lambda: model.generate(prompts, params),
                "one by one": one_by_one}  # fmt: skip
        found = {name: [] for name in ways}
        for i in range(args.repeats + 1):  # the first warms up
            for name, way in ways.items():
                t, done = seconds(way)
                found[name] += [t] * (i > 0)
                answers = [d.token_ids for d in done]
                if name == "alone":
                    right = answers
                if answers != right:
                    raise RuntimeError(f"{name}: other tokens than those of the prompts alone")
                cached = [d.usage.cached_tokens for d in done]
                if i == args.repeats:
                    print(f"{name:>10}: {statistics.median(found[name]):7.3f} s, cached tokens {cached}")
        for name in ("list", "later", "one by one", "alone"):
            ratio = statistics.median(a / b for a, b in zip(found[name], found["session"]))
            print(f"{name} / session: {ratio:.2f}")


if __name__ == "__main__":
    main()
