"""What a form costs per token: two streams in turns, one with a form, one without, in one process.

    python bench/forms.py MODEL [--tokens 240] [--rounds 5]

Prints for each form the median over pairs of turns, each of a few tokens, of the ratio of a token's time.
"""

import argparse
import statistics
import time

import numainfer as ni

TURN = 8  # tokens
NESTED = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "minItems": 60,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "age": {"type": "integer"},
                    "kind": {"enum": ["friend", "foe", "stranger"]},
                    "address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
                                "required": ["street", "city"], "additionalProperties": False},
                },
                "required": ["name", "age", "kind", "address"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["people"],
    "additionalProperties": False,
}  # fmt: skip
FORMS = {
    "json_schema": {"json_schema": NESTED},
    "regex": {"regex": r"([A-Z][a-z]{1,12}( [a-z]{1,12}){2,9}[.!?] ){200}"},
    "grammar": {"grammar": 'start: sum (";" sum)*\nsum: product ("+" product)*\nproduct: N ("*" N)*\nN: /[0-9]{1,4}/\n'},
}


def seconds_per_token(stream, n):
    """Computes at least n more tokens."""
    made, start = len(stream.result().token_ids), time.perf_counter()
    goal = made + n
    while len(stream.result().token_ids) < goal:
        next(stream)
    return (time.perf_counter() - start) / (len(stream.result().token_ids) - made)


def compare(model, form, temperature, seed, n_tokens):
    """Seconds per token of a stream without and with a form, in turns of some tokens each."""
    sampling = {"max_tokens": n_tokens, "ignore_eos": True, "temperature": temperature, "seed": seed}
    streams = [model.stream("Write:", **sampling), model.stream("Write:", **sampling, **form)]
    times = [[], []]
    for turn in range(n_tokens // TURN - 2):
        if any(len(stream.result().token_ids) + 2 * TURN > n_tokens for stream in streams):  # chunks of several tokens
            break
        for which in (0, 1) if turn % 2 else (1, 0):
            times[which].append(seconds_per_token(streams[which], TURN))
    for stream in streams:
        stream.cancel()
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with ni.load(args.model, n_ctx=args.tokens + 64) as model:
        for temperature in (0.0, 1.0):
            for name, form in FORMS.items():
                plain, formed = [], []
                for seed in range(args.rounds):
                    a, b = compare(model, form, temperature, seed, args.tokens)
                    plain += a[1:]
                    formed += b[1:]
                median, quiet = statistics.median, lambda times: sorted(times)[len(times) // 10]
                pairs = median(b / a for a, b in zip(plain, formed))
                print(f"temperature {temperature:g}, {name}: {1e3 * median(plain):.2f} ms a token without; with it {pairs:.3f} times "
                      f"as long (median of {len(plain)} pairs), {quiet(formed) / quiet(plain):.3f} by the 10th percentiles")


if __name__ == "__main__":
    main()
