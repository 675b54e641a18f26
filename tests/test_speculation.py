"""Speculation: the same bits whatever is proposed, and less steps where proposals come true."""

import itertools
import math
import random
import threading
import time

import numpy as np
import pytest
from api_tools import force
from scheduler_tools import N, facts, prompts_of, spy_steps
from tiny_models import tiny
from tiny_recurrent import tiny_recurrent

import numainfer as ni
from numainfer.engine.engine import Lane
from numainfer.serving.speculation import BACK, FEW, MOST, Costs, Lookup

SAMPLED = {"temperature": 1.2, "seed": 5, "top_p": 0.95}


FEW_LETTERS = SAMPLED | {"logit_bias": {40: 30.0, 41: 30.0, 42: 30.0}, "ignore_eos": True}  # so that answers repeat themselves


def shout(token_ids, logits):
    """A logits processor that depends on all that came before."""
    logits[(7 * len(token_ids) + sum(token_ids)) % len(logits)] += 3
    return logits


SAMPLING = [
    {},
    SAMPLED,
    SAMPLED | {"min_p": 0.01, "top_k": 40, "logprobs": 3},
    SAMPLED | {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3, "logit_bias": {5: 2.0}},
    {"repetition_penalty": 1.3, "logprobs": 0, "min_tokens": 9, "ignore_eos": False},
    {"logits_processor": shout},
    SAMPLED | {"logits_processor": shout, "stop": ["e", "a"], "min_tokens": 4},
    {"stop": ["the", "in", "a"], "logprobs": 1},
    {"regex": "[a-d ]{5,60}"},
    SAMPLED | {"regex": "(ab|ba|the )*"},
    SAMPLED | {"choice": ["the other one", "the one", "none of these"]},
    {"stop_token_ids": list(range(40, 90)), "min_tokens": 3},
]


@pytest.fixture
def free_rows(monkeypatch):
    """Steps that cost the same whatever their rows: as much is proposed as may be."""
    monkeypatch.setattr(Costs, "seconds", lambda self, first, most: [1.0] * (most - first + 1))


class Oracle:
    """Proposes the answers that models will give, but for some tokens.

    Attributes
    ----------
    wrong : float
        How many of its proposals have a token that is not true.
    """

    def __init__(self, monkeypatch):
        self.answers, self.proposed, self.wrong, self._random = {}, 0, 0.6, random.Random(0)
        monkeypatch.setattr(Lookup, "chances", lambda lookup, most: [0.9**i for i in range(1, most + 1)])
        monkeypatch.setattr(Lookup, "propose", lambda lookup, k: self.propose(lookup, k))

    def knows(self, prompt, done):
        self.answers[tuple(prompt)] = list(done.token_ids)

    def propose(self, lookup, k):
        n = lookup._learns_from
        truth, at = self.answers[tuple(lookup._ids[:n])], lookup.n - n
        assert lookup._ids[n:] == truth[:at]  # the lookup has seen what was chosen, and nothing else
        found = (truth[at : at + k] + [1] * k)[:k]
        if self._random.random() < self.wrong:
            i = self._random.randrange(k)
            found[i] = (found[i] + self._random.randrange(1, N)) % N
        self.proposed += k
        return found


@pytest.fixture
def oracle(monkeypatch, free_rows):
    return Oracle(monkeypatch)


# ---- what is proposed ------------------------------------------------------------------------------------------------


def agreement(ids, at):
    n = 0
    while n < at and ids[at - 1 - n] == ids[len(ids) - 1 - n]:
        n += 1
    return n


@pytest.mark.parametrize("letters", [2, 3, 6])
def test_the_longest_agreement_and_of_equal_ones_the_latest(letters):
    rng = np.random.default_rng(letters)
    for _ in range(20):
        ids, lookup = [], Lookup()
        for token in rng.integers(0, letters, 4 * letters).tolist():
            ids.append(token)
            lookup.extend([token])
            found = max(((agreement(ids, at), at) for at in range(2, len(ids))), default=(0, 0))
            if found[0] < 2:
                assert lookup.length == 0 and lookup.chances(5) == []
            else:
                assert (lookup.length, lookup._at) == found
                period = len(ids) - found[1]
                assert lookup.propose(9) == [ids[found[1] + i % period] for i in range(9)]


def test_it_is_all_the_same_how_many_tokens_come_at_once():
    ids = np.random.default_rng(0).integers(0, 5, 200).tolist()
    one, many = Lookup(150), Lookup(150)
    for token in ids:
        one.extend([token])
    for at in (0, 40, 41, 150):
        many.extend(ids[at : {0: 40, 40: 41, 41: 150, 150: 200}[at]])
    assert (one.length, one._at, one.propose(5), one.chances(5)) == (many.length, many._at, many.propose(5), many.chances(5))


def test_chances_follow_what_came_true():
    def after(ids, n_prompt=0):
        lookup = Lookup(n_prompt)
        lookup.extend(ids)
        assert lookup.length >= 2
        found = lookup.chances(MOST)
        assert found == sorted(found, reverse=True) and all(0 < p <= 1 for p in found)
        return found

    sure = after([1, 2, 3, 4, 5, 6, 7, 8] * 20)
    assert len(sure) == MOST and sure[0] > 0.95 and sure[-1] > 0.6
    rng = np.random.default_rng(1)
    wrong = []
    for i in range(60):
        wrong += [1, 2, 10 + i]
    wrong += [1, 2]
    assert after(wrong) == []
    assert after(wrong, len(wrong))[0] > 0.1  # of a prompt nothing is learnt
    assert len(after([*rng.integers(0, 1000, 500).tolist(), 1, 2, 3, 1, 2])) < MOST


def test_lookup_costs_little():
    rng = np.random.default_rng(2)
    texts = [rng.integers(0, 49152, 4000).tolist(), rng.integers(0, 12, 4000).tolist(), [7] * 4000, [1, 2, 3, 4] * 1000]
    for ids in texts:
        lookup, costs = Lookup(), Costs()
        lookup.extend(ids[:2000])
        costs.took(1, 1.0)
        start = time.thread_time()
        for token in ids[2000:]:
            lookup.extend([token])
            lookup.chances(MOST)
        assert time.thread_time() - start < 2000 * 60e-6  # 3 to 12 us on a quiet machine


# ---- how much is proposed --------------------------------------------------------------------------------------------


def test_the_geometric_mean_of_the_speeds_grows_most(monkeypatch):
    rng = np.random.default_rng(3)
    for _ in range(60):
        n_answers = int(rng.integers(1, 4))
        chances = [np.cumprod(rng.uniform(0.3, 1, int(rng.integers(0, 4)))).tolist() for _ in range(n_answers)]
        seconds = [1.0, *(1 + np.cumsum(rng.uniform(0, 0.4, 9))).tolist()]
        costs = Costs()
        monkeypatch.setattr(costs, "seconds", lambda first, most, seconds=seconds: seconds[: most - first + 1])

        def speed(counts, chances=chances, seconds=seconds):
            tokens = [1 + sum(own[:k]) for own, k in zip(chances, counts)]
            return math.prod(tokens) / seconds[sum(counts)] ** len(counts)

        ways = itertools.product(*(range(len(own) + 1) for own in chances))
        best = max(speed(counts) for counts in ways)
        best = best if math.log(best) > 0.03 else 1.0  # not worth it
        assert speed(costs.allot(chances, [0.0] * n_answers, n_answers + 9)) == pytest.approx(best)
        few = costs.allot(chances, [0.0] * n_answers, n_answers + 1)
        assert sum(few) <= 1
    assert costs.allot([[]], [0.0], 10) == [0] and costs.allot([[0.9]], [0.0], 0) == [0] and costs.allot([], [], 5) == []


def test_costs_are_measured_again():
    costs = Costs()
    assert costs.seconds(1, 9) == []  # the sequences' rows alone come first
    costs.took(1, 1.0)
    assert costs.seconds(1, 9) == pytest.approx([1.0, 1.05, 1.1])  # few at first
    costs.took(4, 1.6)
    assert costs.seconds(1, 6) == pytest.approx([1.0, 1.2, 1.4, 1.6, 1.7, 1.8])
    assert len(costs.seconds(1, 20)) == 7 and costs.seconds(2, 9) == []
    for disturbed in (50.0, 1.0, 1.0):
        costs.took(1, disturbed)
    assert costs.seconds(1, 1) == [1.0]
    for _ in range(63):
        costs.took(4, 1.6)
        assert costs.seconds(1, 9)
    costs.took(4, 1.6)
    assert costs.seconds(1, 9) == []  # and again, for a longer sequence costs more
    for _ in range(513):
        costs.took(1, 1.0)
    assert costs.seconds(1, 4)[3] == pytest.approx(1.3, abs=0.001)  # what is old counts less, so that it is tried again
    for _ in range(512):
        costs.took(1, 2.0)
    assert costs.seconds(1, 9) == pytest.approx([2.0, 2.1, 2.2])
    costs.took(4, 5.0)
    assert costs.seconds(1, 4) == pytest.approx([2.0, 3.0, 4.0, 5.0])


# ---- the same bits ---------------------------------------------------------------------------------------------------


def repeating(n=4, seed=0):
    """Prompts that repeat themselves, of lengths that step over a block's end."""
    return [np.concatenate([np.tile(p, 3), p[:7]]) for p in prompts_of((5, 77, 20, 30)[:n], seed)]


def counts(done):
    return done.timings.proposed, done.timings.accepted


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_whatever_is_proposed(load_tiny, oracle, sampling):
    if {"regex", "choice"} & sampling.keys():
        pytest.importorskip("llguidance")
    model, total = load_tiny(2), np.zeros(2, int)
    prompts, sampling = repeating(), {"max_tokens": 24, "ignore_eos": True} | sampling
    plain = [model.generate(p, **sampling) for p in prompts]
    for p, done in zip(prompts, plain):
        oracle.knows(p.tolist(), done)
        assert counts(done) == (0, 0)
    wanted = [facts(done) for done in plain]
    for p, want in zip(prompts, wanted):
        done = model.generate(p, speculate="prompt", **sampling)
        assert facts(done) == want
        total += counts(done)
        stream = model.stream(p, speculate="prompt", **sampling)
        chunks = list(stream)
        assert facts(stream.result()) == want and "".join(map(str, chunks)) == want[0]
        assert tuple(i for chunk in chunks for i in chunk.token_ids) == want[1]
    for mode in ("latency", "throughput"):
        done = model.generate(prompts, speculate="prompt", mode=mode, **sampling)
        assert [facts(d) for d in done] == wanted
        total += np.sum([counts(d) for d in done], axis=0)
    proposed, accepted = total
    assert 0 < accepted < proposed <= oracle.proposed


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "f32"])
def test_every_kind_of_cache(load_tiny, oracle, name, kv_type):
    """Windows of 8 positions among them; answers step over the end of a block, and end where the context does."""
    model = load_tiny(3, name, kv_type=kv_type, n_ctx=300)
    for length in (240, 255, 256, 257, 290):
        (prompt,) = prompts_of((length,), length)
        done = model.generate(prompt, max_tokens=None, ignore_eos=True)
        oracle.knows(prompt.tolist(), done)
        found = model.generate(prompt, max_tokens=None, ignore_eos=True, speculate="prompt")
        assert facts(found) == facts(done) and found.finish_reason == "length" and found.usage.total_tokens == 301
        assert found.timings.accepted > 0


def test_lookups_of_their_own(load_tiny, free_rows):
    model, some = load_tiny(), 0
    for sampling in ({}, SAMPLED, FEW_LETTERS, FEW_LETTERS | {"presence_penalty": 1.0, "logprobs": 2}):
        for p in repeating(seed=1):
            sampling = {"max_tokens": 40, "ignore_eos": True} | sampling
            done = model.generate(p, speculate="prompt", **sampling)
            assert facts(done) == facts(model.generate(p, **sampling))
            assert done.timings.accepted <= done.timings.proposed
            some += done.timings.accepted
    assert some > 0


def test_a_list_of_some_that_ask_for_it(load_tiny, free_rows, monkeypatch):
    model, prompts = load_tiny(), prompts_of([9] * 40)
    each = [ni.SamplingParams(max_tokens=20, speculate="prompt" if i % 2 else None, **FEW_LETTERS) for i in range(len(prompts))]
    wanted = [facts(model.generate(p, max_tokens=20, **FEW_LETTERS)) for p in prompts]
    done = model.generate(prompts, each)
    assert [facts(d) for d in done] == wanted and all(d.timings.proposed == 0 for d in done[::2])
    few = model.generate(prompts[:FEW], each[:FEW])
    assert sum(d.timings.proposed for d in few) > 0
    steps = spy_steps(monkeypatch)
    model.generate(prompts[: FEW + 1], [own.replace(speculate="prompt") for own in each[: FEW + 1]])
    assert max(rows for _, rows, *_ in steps[-8:]) <= FEW + MOST


def test_the_steps_are_fewer(load_tiny, oracle, monkeypatch):
    model, (prompt,) = load_tiny(), prompts_of((30,))
    done = model.generate(prompt, max_tokens=60, ignore_eos=True)
    oracle.knows(prompt.tolist(), done)
    oracle.wrong = 0.0
    steps = spy_steps(monkeypatch)
    found = model.generate(prompt, max_tokens=60, ignore_eos=True, speculate="prompt")
    assert facts(found) == facts(done)
    assert [rows for _, rows, *_ in steps] == [30, *[1 + MOST] * 3, 11]  # the last has room for so many
    assert counts(found) == (55, 55)
    assert found.timings.generated_tokens == 59
    (lane,) = model.stats().lanes
    assert (lane.proposed, lane.accepted) == (55, 55)


def test_nothing_is_proposed_while_prompts_are_read(load_tiny, oracle, monkeypatch):
    model, prompts = load_tiny(n_batch=16), prompts_of((5, 200))
    wanted = [model.generate(p, max_tokens=50, ignore_eos=True) for p in prompts]
    for p, done in zip(prompts, wanted):
        oracle.knows(p.tolist(), done)
    seen = []
    spy_steps(monkeypatch, lambda lane, segments: seen.append([(pos0, len(ids)) for _, ids, pos0 in segments]))
    done = model.generate(prompts, max_tokens=50, ignore_eos=True, speculate="prompt")
    assert [facts(d) for d in done] == [facts(d) for d in wanted]
    beside = [first[1] for first, *others in seen if first[0] >= 5 and any(pos0 < 200 for pos0, _ in others)]
    assert beside == [1] * 13 and max(n for step in seen[-6:] for _, n in step) > 3


def test_one_that_ends_in_the_midst_of_a_step(load_tiny, oracle, monkeypatch):
    model, prompts = load_tiny(), prompts_of((20, 30, 25))
    for p in prompts:
        oracle.knows(p.tolist(), model.generate(p, max_tokens=60, ignore_eos=True, **SAMPLED))
    wanted = [facts(model.generate(p, max_tokens=60, ignore_eos=True, **SAMPLED)) for p in prompts]
    requests, real = [], Lane.step

    def step(lane, segments, out_rows, **options):
        out = real(lane, segments, out_rows, **options)
        active = {id(r.cache): r for r in list(model.runtime.loop._reserved)}
        if len(segments) == 3 and len(segments[1][1]) > 1 and segments[1][2] > 36 and not requests:
            requests.append(active[id(segments[1][0])])
            requests[0].cancelled = True
            requests[0].end()
        return out

    monkeypatch.setattr(Lane, "step", step)
    done = model.generate(prompts, max_tokens=60, ignore_eos=True, speculate="prompt", **SAMPLED)
    assert len(requests) == 1 and done[1].finish_reason == "cancelled" and done[1].token_ids == wanted[1][1][: len(done[1].token_ids)]
    assert [facts(done[0]), facts(done[2])] == [wanted[0], wanted[2]]


# ---- sequences that are kept -----------------------------------------------------------------------------------------


def test_sessions(load_tiny, oracle):
    model = load_tiny(n_ctx=400)
    (prompt,) = prompts_of((250,), 4)
    plain, session, total = model.session(), model.session(), np.zeros(2, int)
    for _ in range(4):
        done = plain.generate(prompt, max_tokens=11, ignore_eos=True)
        oracle.knows(prompt.tolist(), done)
        found = session.generate(prompt, max_tokens=11, ignore_eos=True, speculate="prompt")
        assert facts(found) == facts(done)
        total += counts(found)
        assert (session.ids, session.n_past) == (plain.ids, plain.n_past)
        assert session._sequence.cache.n == session.n_past  # nothing that was proposed in vain stays
        prompt = np.array([*session.ids, 5, 6, 7], np.int32)
    assert 0 < total[1] < total[0]
    fork = session.fork()
    assert facts(fork.generate(prompt, max_tokens=5)) == facts(plain.generate(prompt, max_tokens=5))
    for one in (plain, session, fork):
        one.close()


def test_a_fork_in_the_midst(load_tiny, oracle):
    model = load_tiny()
    (prompt,) = prompts_of((40,), 5)
    whole = model.generate(prompt, max_tokens=60, ignore_eos=True)
    oracle.knows(prompt.tolist(), whole)
    with model.session() as session:
        stream = session.stream(prompt, max_tokens=60, ignore_eos=True, speculate="prompt")
        for _ in range(3):
            next(stream)
            with session.fork() as fork:
                assert fork.ids == [*prompt.tolist(), *whole.token_ids][: len(fork.ids)] and len(fork.ids) >= 40
                longer = np.array([*fork.ids, 9], np.int32)
                assert facts(fork.generate(longer, max_tokens=4))[:4] == facts(model.generate(longer, max_tokens=4))[:4]
        assert facts(stream.finish()) == facts(whole)


# ---- ends in the midst -----------------------------------------------------------------------------------------------


def test_ends_among_proposals_that_are_right(load_tiny, oracle):
    model, (prompt,) = load_tiny(), prompts_of((30,))
    whole = model.generate(prompt, max_tokens=60, ignore_eos=True, **SAMPLED)
    oracle.knows(prompt.tolist(), whole)
    oracle.wrong = 0.0
    for n in range(1, 24):
        done = model.generate(prompt, max_tokens=n, ignore_eos=True, speculate="prompt", **SAMPLED)
        assert (done.token_ids, done.finish_reason) == (whole.token_ids[:n], "length")
    for i in range(1, 24):
        token = whole.token_ids[i]
        n = whole.token_ids.index(token) + 1
        done = model.generate(prompt, max_tokens=60, ignore_eos=True, stop_token_ids=[token], speculate="prompt", **SAMPLED)
        assert (done.token_ids, done.finish_reason) == (whole.token_ids[:n], "stop")
        with model.session() as session:
            session.generate(prompt, max_tokens=60, ignore_eos=True, stop_token_ids=[token], speculate="prompt", **SAMPLED)
            assert session._sequence.cache.n == session.n_past == 30 + n - 1


def test_a_processor_is_called_as_without(load_tiny, oracle):
    model, (prompt,) = load_tiny(), prompts_of((30,))
    script = [40 + i * i % 50 for i in range(30)]
    calls = []

    def process(token_ids, logits):
        calls.append(token_ids)
        if len(token_ids) == 25:
            raise KeyError("enough")
        return force(script)(token_ids, logits)

    for speculate in (None, "prompt"):
        calls.clear()
        oracle.answers[tuple(prompt.tolist())] = script
        with pytest.raises(KeyError, match="enough"):
            model.generate(prompt, max_tokens=30, logits_processor=process, speculate=speculate)
        assert calls == [tuple(script[:i]) for i in range(26)]
    assert oracle.proposed > 0


def test_cancelled_in_the_midst(load_tiny, oracle):
    model, (prompt,) = load_tiny(), prompts_of((30,))
    whole = model.generate(prompt, max_tokens=200, ignore_eos=True)
    oracle.knows(prompt.tolist(), whole)
    for n in (1, 2, 3):
        stream = model.stream(prompt, max_tokens=200, ignore_eos=True, speculate="prompt")
        for _ in range(n):
            next(stream)
        stream.cancel()
        done = stream.result()
        assert done.finish_reason == "cancelled" and done.token_ids == whole.token_ids[: len(done.token_ids)]
        assert done.timings.proposed >= done.timings.accepted and len(done.token_ids) < 200


def test_a_stream_is_not_computed_further_ahead(load_tiny, oracle):
    model, (prompt,) = load_tiny(), prompts_of((30,))
    whole = model.generate(prompt, max_tokens=100, ignore_eos=True)
    oracle.knows(prompt.tolist(), whole)
    with model.stream(prompt, max_tokens=100, ignore_eos=True, speculate="prompt") as stream:
        next(stream)
        request, deadline = stream._request, time.monotonic() + 10

        def ahead():
            return len(request.generation.token_ids) - request._asked

        while ahead() < 16 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert request.paused and ahead() == 16


def test_threads(load_tiny, oracle):
    model, prompts = load_tiny(2), prompts_of([20 + i for i in range(6)])
    wanted = []
    for p in prompts:
        done = model.generate(p, max_tokens=30, ignore_eos=True, **SAMPLED)
        oracle.knows(p.tolist(), done)
        wanted.append(facts(done))
    found = [None] * len(prompts)

    def work(i):
        found[i] = facts(model.generate(prompts[i], max_tokens=30, ignore_eos=True, speculate="prompt" if i % 3 else None, **SAMPLED))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


# ---- where it is of no use -------------------------------------------------------------------------------------------


def test_it_switches_itself_off(load_tiny, monkeypatch):
    took, found = Costs.took, []
    for of_a_row in (2.0, 0.0):
        monkeypatch.setattr(Costs, "took", lambda self, rows, _, of_a_row=of_a_row: took(self, rows, 1.0 + of_a_row * (rows - 1)))
        done = load_tiny().generate(prompts_of((20,))[0], max_tokens=200, speculate="prompt", **FEW_LETTERS)
        found.append(done.timings.proposed)
    assert 0 < found[0] <= 6 and found[1] > 60  # few, to see what rows cost


@pytest.mark.parametrize(("architecture", "nodes"), [("qwen3next", 2), ("qwen35", 1)])
def test_recurrent_layers(tmp_path, monkeypatch, oracle, architecture, nodes):
    """Steps leave a state at each proposed position: the sequence goes on from wherever the proposal was wrong."""
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
    prompts, sampling = prompts_of((20, 250)), SAMPLED | {"max_tokens": 30, "ignore_eos": True}
    with ni.load(tiny_recurrent(tmp_path, architecture), n_ctx=400, prefix_cache=0) as model:
        layout, pool = model.plan.kv.states, model.runtime.engine.caches.state_pool
        plain = [model.generate(p, **sampling) for p in prompts]
        wanted = [facts(done) for done in plain]
        for p, done in zip(prompts, plain):
            oracle.knows(p.tolist(), done)
        steps, sizes = spy_steps(monkeypatch, lambda lane, segments: sizes.append(max(len(ids) for _, ids, _ in segments))), []
        for oracle.wrong in (0.0, 0.7):
            done = [*model.generate(prompts, speculate="prompt", mode="throughput", **sampling)]
            steps.clear(), sizes.clear()
            done.append(model.generate(prompts[1], speculate="prompt", **sampling))
            assert [facts(d) for d in done] == [*wanted, wanted[1]]
            proposed, accepted = counts(done[-1])
            assert 0 < accepted and (accepted < proposed) == (oracle.wrong > 0) and max(sizes[1:]) == 1 + BACK
            assert oracle.wrong or len(steps) == 1 + 4  # 29 tokens, at most 8 in a step
        stream = model.stream(prompts[0], speculate="prompt", **sampling)
        most = max(pool.n_out for _ in stream)
        assert facts(stream.result()) == wanted[0] and BACK < most <= layout.blocks(50) + BACK and pool.n_out == 0
        assert stream._request.n_bytes == model.plan.kv.bytes(49) + BACK * layout.block_bytes
        with model.session() as session:
            assert facts(session.generate(prompts[0], speculate="prompt", **sampling)) == wanted[0]
            assert pool.n_out <= layout.blocks(50) + BACK
            longer = np.array([*session.ids, 7, 8], np.int32)
            with session.fork() as fork:
                assert facts(fork.generate(longer, **sampling))[:3] == facts(session.generate(longer, **sampling))[:3]
            assert session.n_past == len(longer) + 29


@pytest.mark.parametrize("given", ["draft", True, 3, ["prompt"], ""])
def test_what_it_may_be(given):
    with pytest.raises(ValueError, match='speculate = .*: must be "prompt", "mtp", a Model of the same vocabulary that drafts, or None'):
        ni.SamplingParams(speculate=given)


def test_a_long_prompt_is_taken_in_bit_by_bit(tmp_path, free_rows, monkeypatch):
    from numainfer.serving import answer

    monkeypatch.setattr(answer, "AT_ONCE", 50)
    with ni.load(tiny(tmp_path, context=1024)) as model:
        p = np.tile(prompts_of((20,))[0], 30)
        steps = spy_steps(monkeypatch)
        done = model.generate(p, max_tokens=40, speculate="prompt", **FEW_LETTERS)
        assert [rows for _, rows, *_ in steps if rows < 64][:11] == [1] * 11
        assert facts(done)[:4] == facts(model.generate(p, max_tokens=40, **FEW_LETTERS))[:4] and done.timings.proposed > 0


def test_a_real_model(smollm2, free_rows):
    code = "def area(width, height):\n    return width * height\n\n\ndef volume(w, h, depth):\n    return area(w, h) * depth\n"
    messages = [{"role": "user", "content": f"Repeat this code:\n```python\n{code}```"}]
    done = smollm2.chat(messages, max_tokens=60, temperature=0)
    found = smollm2.chat(messages, max_tokens=60, temperature=0, speculate="prompt")
    assert facts(found) == facts(done) and found.timings.accepted > 15
