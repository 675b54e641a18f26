"""The C sampler against its NumPy twin: candidates, probabilities, draws, penalties, log-probabilities, bad logits."""

import math

import numpy as np
import pytest
from _sampler import adjusted, distribution, philox_uniform
from hypothesis import given, settings
from hypothesis import strategies as st

from numainfer import _core
from numainfer.errors import NumaInferError
from numainfer.serving.params import SamplingParams
from numainfer.serving.sampling import Sampler

INF = np.float32(np.inf)


def f32(*values):
    return np.array(values, np.float32)


def check_distribution(params, logits, prompt=(), output=(), stop_ids=()):
    sampler = Sampler(params, logits.size, prompt, stop_ids)
    for token in output:
        sampler.accept(token)
    before = logits.copy()
    ids, probs = sampler.distribution(logits)
    assert logits.tobytes() == before.tobytes(), "logits were not put back"
    expected, expected_probs, doubtful = distribution(params, adjusted(params, logits, prompt, output, stop_ids))
    chance = expected_probs > 1e-30  # float weights reach 0 at e^-87.7
    assert set(ids.tolist()) ^ set(expected[chance].tolist()) <= doubtful | set(expected[~chance].tolist())
    assert (np.diff(ids) > 0).all() and probs.sum() == pytest.approx(1)
    if not doubtful:
        twin = dict(zip(expected.tolist(), expected_probs))
        wanted = np.array([twin[i] for i in ids.tolist()])
        depth = np.log(wanted.max() / wanted)
        assert (abs(probs / wanted - 1) < 3e-7 * (1 + depth)).all()
    return ids


CUTS = [
    {},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 900},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"top_p": 0.999999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 1e-12},
    {"top_k": 40, "top_p": 0.9},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"top_p": 0.7, "min_p": 1e-4},
]


def shapes():
    rng = np.random.default_rng(5)
    n = 1000
    normal = (rng.standard_normal(n) * 3).astype(np.float32)
    yield "normal", normal
    yield "far from zero", normal + np.float32(1e4)
    yield "negative", normal - 50
    yield "coarse", np.round(normal)  # many ties
    yield "all equal", np.full(n, -2.5, np.float32)
    yield "zeros of both signs", np.where(np.arange(n) % 3, f32(0.0), f32(-0.0))
    yield "two values", np.where(np.arange(n) % 2, f32(1.0), f32(1.5))
    yield "rising", np.arange(n, dtype=np.float32) / 50
    yield "half masked", np.where(np.arange(n) % 2, normal, -INF)
    one = np.full(n, -INF)
    one[777] = -3
    yield "one finite", one
    infinite = normal.copy()
    infinite[[5, 600, 999]] = INF
    yield "three at +inf", infinite
    yield "huge", normal * np.float32(1e37)
    yield "tiny", normal * np.float32(1e-39)


@pytest.mark.parametrize("temperature", [1.0, 0.2, 7.0])
@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("logits", [pytest.param(x, id=name) for name, x in shapes()])
def test_candidates(logits, cuts, temperature):
    check_distribution(SamplingParams(temperature=temperature, **cuts), logits)


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 63, 64, 65, 4097])
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_candidates_at_block_edges(n, cuts):
    logits = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    logits[-1] = 4
    ids = check_distribution(SamplingParams(temperature=1, **cuts), logits)
    assert n - 1 in ids


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_candidates_of_a_large_vocabulary(cuts):
    logits = (np.random.default_rng(8).standard_normal(150_000) * 2.5).astype(np.float32)
    check_distribution(SamplingParams(temperature=0.8, **cuts), logits)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([0.0, -0.0, 1.0, 1.5, 2.0, -1.0, 30.0, -30.0, math.inf, -math.inf]), min_size=1, max_size=80
    ),
    st.integers(0, 90),
    st.sampled_from([1.0, 0.9, 0.5, 0.25, 0.1]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.sampled_from([1.0, 0.5, 1e-40, 1e30]),
)
def test_candidates_of_adversarial_logits(values, top_k, top_p, min_p, temperature):
    if max(values) > -math.inf:
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        check_distribution(params, np.array(values, np.float32))


def test_ties_go_to_the_lowest_id():
    logits = f32(1, 3, -0.0, 3, 0.0, 3)
    assert Sampler(SamplingParams(), 6).sample(logits)[0] == 1
    assert check_distribution(SamplingParams(temperature=1, top_k=2), logits).tolist() == [1, 3]
    assert check_distribution(SamplingParams(temperature=1, top_k=5), logits).tolist() == [0, 1, 2, 3, 5]
    equal = np.ones(10, np.float32)
    assert check_distribution(SamplingParams(temperature=1, top_p=0.9), equal).tolist() == list(range(9))
    assert check_distribution(SamplingParams(temperature=1, top_p=0.5), equal).tolist() == list(range(5))


@pytest.mark.parametrize("min_p", [0.05, 0.1, 0.3, 0.7, 1e-3])
def test_min_p_to_the_last_bit(min_p):
    for top in (0.0, 3.7, -20.0):
        limit = np.float32(np.float32(top) + math.log(min_p))
        around = [limit, np.nextafter(limit, INF), np.nextafter(limit, -INF)]
        check_distribution(SamplingParams(temperature=1, min_p=min_p), f32(top, *around))


def test_greedy_is_argmax():
    rng = np.random.default_rng(0)
    for n in [1, 31, 32, 33, 5000]:
        for _ in range(20):
            logits = np.round(rng.standard_normal(n) * 2).astype(np.float32)
            assert Sampler(SamplingParams(), n).sample(logits)[0] == logits.argmax()


def test_uniform_matches_the_published_generator():
    # Random123's known answers for philox4x32-10: counter and key all 0 start with 6627e8d5 e169c58d.
    assert _core.sample_uniform(0, 0) == (0xE169C58D6627E8D5 >> 11) * 2.0**-53
    for seed, position in [(1, 0), (2**64 - 1, 2**64 - 1), (0x123456789ABCDEF0, 77), (5, 2**32), (2**32, 5)]:
        assert _core.sample_uniform(seed, position) == philox_uniform(seed, position)


def chi_square_limit(degrees):
    """The 1 - 1e-6 quantile of chi-square (Wilson and Hilferty's approximation)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.7534 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize(
    "cuts", [{}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 30, "top_p": 0.9}], ids=str
)
def test_draws_follow_the_distribution(cuts):
    n, draws = 70, 20_000
    logits = np.random.default_rng(3).standard_normal(n).astype(np.float32) * 2
    params = SamplingParams(temperature=1.3, seed=11, **cuts)
    sampler = Sampler(params, n)
    counts = np.bincount([sampler.sample(logits)[0] for _ in range(draws)], minlength=n)
    ids, probs, doubtful = distribution(params, logits)
    assert not doubtful and counts[ids].sum() == draws, "a token without a chance was drawn"
    expected = probs * draws
    rare = expected < 5
    observed = np.append(counts[ids][~rare], counts[ids][rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5:
        observed, expected = (
            np.append(observed[:-2], observed[-2:].sum()),
            np.append(expected[:-2], expected[-2:].sum()),
        )
    assert ((observed - expected) ** 2 / expected).sum() < chi_square_limit(expected.size - 1)


def test_draws_are_the_inverse_of_the_cumulative_distribution():
    logits = np.random.default_rng(4).standard_normal(500).astype(np.float32)
    for cuts in [{}, {"top_k": 100}, {"top_p": 0.7}]:
        sampler = Sampler(SamplingParams(temperature=1, seed=9, **cuts), 500)
        ids, probs = sampler.distribution(logits)
        for position in range(200):
            u = philox_uniform(9, position)
            assert sampler.sample(logits)[0] == ids[np.searchsorted(np.cumsum(probs), u, side="right")]


def test_seeds():
    logits = np.zeros(1000, np.float32)

    def tokens(seed, count=20):
        sampler = Sampler(SamplingParams(temperature=1, seed=seed), 1000)
        return [sampler.sample(logits)[0] for _ in range(count)]

    assert tokens(5) == tokens(5) != tokens(6)
    assert tokens(None) != tokens(None)
    resumed = Sampler(SamplingParams(temperature=1, seed=5), 1000)
    for token in tokens(5, 8):
        resumed.accept(token)  # as after a fork: the draw depends on seed and position only
    assert [resumed.sample(logits)[0] for _ in range(12)] == tokens(5)[8:]
    drawn = Sampler(SamplingParams(temperature=1), 1000)
    assert drawn.sample(logits)[0] == tokens(drawn.seed, 1)[0]


@pytest.mark.parametrize(
    "penalties",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.5},
        {"presence_penalty": 1.5},
        {"frequency_penalty": -0.7},
        {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.9},
        {"repetition_penalty": 1e308},
        {"repetition_penalty": 1e-308},
        {"repetition_penalty": 1.2, "presence_penalty": -2, "logit_bias": {3: 5.5, 0: -100, 7: 0.1}},
        {"logit_bias": {49: 2, 1: -3.3}, "min_tokens": 6},
        {"frequency_penalty": 2, "min_tokens": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_penalties_and_bias(penalties, masked):
    logits = np.random.default_rng(2).standard_normal(50).astype(np.float32) * 3
    logits[20] = 0
    if masked:
        logits[[7, 11]] = -INF
        logits[3] = INF
    prompt, output, stop_ids = [1, 2, 3, 3, 20, 11], [3, 7, 7, 7, 30], [0, 7, 49, 7]
    params = SamplingParams(temperature=0.9, **penalties)
    for changes in ({}, {"top_k": 5}, {"temperature": 0}):
        with np.errstate(over="ignore"):
            check_distribution(params.replace(**changes), logits, prompt, output, stop_ids)


def test_min_tokens_holds_stop_tokens_off():
    logits = f32(0, 9, 1)
    sampler = Sampler(SamplingParams(min_tokens=2), 3, stop_ids=[1])
    assert [sampler.sample(logits)[0] for _ in range(4)] == [2, 2, 1, 1]


def test_logits_processor():
    calls = []

    def forbid_repeats(token_ids, logits):
        calls.append(token_ids)
        logits[list(token_ids)] = -np.inf
        return logits

    logits = f32(1, 4, 3, 2)
    sampler = Sampler(SamplingParams(logits_processor=forbid_repeats, logprobs=1, logit_bias={2: 0.5}), 4)
    results = [sampler.sample(logits) for _ in range(4)]
    assert [token for token, _ in results] == [1, 2, 3, 0]
    assert calls == [(), (1,), (1, 2), (1, 2, 3)] and (logits == f32(1, 4, 3, 2)).all()
    assert {logprob.top[0][0] for _, logprob in results} == {1}, "log-probabilities are the model's own"
    with pytest.raises(NumaInferError, match="token 4: all are -inf"):
        sampler.sample(logits)


@pytest.mark.parametrize(
    "result, error",
    [
        (None, TypeError),
        (np.zeros(4), TypeError),
        ([0.0] * 4, TypeError),
        (np.zeros(5, np.float32), ValueError),
        (np.zeros((1, 4), np.float32), ValueError),
    ],
)
def test_bad_result_of_logits_processor(result, error):
    sampler = Sampler(SamplingParams(logits_processor=lambda token_ids, logits: result), 4)
    with pytest.raises(error, match="the result of logits_processor: found"):
        sampler.sample(np.zeros(4, np.float32))


@pytest.mark.parametrize("shape", list(shapes()), ids=lambda shape: shape[0])
@pytest.mark.parametrize("k", [0, 1, 5, 20])
def test_logprobs(shape, k):
    name, logits = shape
    x = logits.astype(np.float64)
    x = np.where(x == np.inf, 0, -np.inf) if np.isposinf(x).any() else x - x.max()
    expected = x - math.log(np.exp(x).sum())
    order = [i for i in np.argsort(-x, kind="stable") if name == "three at +inf" or x[i] > -np.inf]
    sampler = Sampler(
        SamplingParams(logprobs=k, temperature=3, top_k=50, repetition_penalty=2, seed=1), logits.size, [5]
    )
    for _ in range(5):
        token, found = sampler.sample(logits)
        assert found.token_id == token
        assert found.logprob == pytest.approx(expected[token], rel=2e-7, abs=1e-6)
        assert order[found.rank - 1] == token
        if name == "three at +inf":
            assert [i for i, _ in found.top[:3]] == order[: min(k, 3)]
        else:
            assert [i for i, _ in found.top] == order[:k]
        assert [p for _, p in found.top] == pytest.approx([expected[i] for i, _ in found.top], rel=2e-7, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1},
        {"temperature": 1, "top_k": 3},
        {"temperature": 1, "top_p": 0.5},
        {"min_tokens": 3, "repetition_penalty": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF])
@pytest.mark.parametrize("position", [0, 31, 32, 99])
def test_nan_is_refused(settings, bits, position):
    logits = np.zeros(100, np.float32)
    logits.view(np.uint32)[position] = bits
    before = logits.tobytes()
    sampler = Sampler(SamplingParams(**settings), 100, prompt_ids=[position], stop_ids=[position])
    with pytest.raises(NumaInferError, match="token 0: found NaN"):
        sampler.sample(logits)
    with pytest.raises(NumaInferError, match="NaN"):
        sampler.distribution(logits)
    assert logits.tobytes() == before and sampler.token_ids == []


def test_no_candidate_is_refused():
    sampler = Sampler(SamplingParams(temperature=1), 40)
    with pytest.raises(NumaInferError, match="all are -inf"):
        sampler.sample(np.full(40, -INF))
    only_stop = Sampler(SamplingParams(min_tokens=1), 3, stop_ids=[2])
    with pytest.raises(NumaInferError, match="all are -inf"):
        only_stop.sample(f32(-INF, -INF, 1))


def test_bad_arrays_and_ids_are_refused():
    sampler = Sampler(SamplingParams(), 4)
    for bad, error in [
        (np.zeros(4), TypeError),
        ([0.0] * 4, TypeError),
        (np.zeros(3, np.float32), ValueError),
        (np.zeros(8, np.float32)[::2], ValueError),
        (np.zeros((2, 2), np.float32), ValueError),
    ]:
        with pytest.raises(error, match="logits: found"):
            sampler.sample(bad)
    frozen = np.zeros(4, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        sampler.sample(frozen)
    for token in (-1, 4):
        with pytest.raises(ValueError, match=f"token id {token}"):
            sampler.accept(token)
        with pytest.raises(ValueError, match=f"prompt id {token}: must be from 0 to 3"):
            Sampler(SamplingParams(), 4, [0, token])
        with pytest.raises(ValueError, match=f"stop token id {token}"):
            Sampler(SamplingParams(), 4, [0], [token])
    with pytest.raises(ValueError, match="logit_bias id 4"):
        Sampler(SamplingParams(logit_bias={4: 1.0}), 4)


def test_binding_refuses_what_would_be_unsafe():
    scratch, logits, none = _core.SampleScratch(4), np.zeros(4, np.float32), np.zeros(0, np.int32)
    good = {
        "temperature": 1,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
        "repetition_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "min_tokens": 0,
        "seed": 0,
    }
    sampler = _core.Sampler(4, none, none, np.zeros(0, np.float32), none, **good)
    rows, mask = logits[None], np.zeros(1, np.uint32)
    for bad in (rows[:, :3], np.zeros((0, 4), np.float32)):
        with pytest.raises(ValueError, match="logits: found"):
            _core.choose(None, scratch, [sampler], bad)
    with pytest.raises(ValueError, match="scratch for 3"):
        _core.choose(None, _core.SampleScratch(3), [sampler], rows)
    two = np.zeros((2, 4), np.float32)
    for own in ((logits[:3], None), (np.zeros(5, np.float32), None), (None, mask[:0]), (None, np.zeros(2, np.uint32))):
        with pytest.raises(ValueError, match="sequence 0: found"):
            _core.choose(None, scratch, [sampler], rows, (0,), None, {0: own})
    with pytest.raises(ValueError, match="the first of 2 rows"):
        _core.choose(None, scratch, [sampler], two, (0,), [np.zeros(1, np.int32)], {0: (None, mask)})
    for first in ((1,), (-1,)):
        with pytest.raises(ValueError, match="logits: found"):
            _core.choose(None, scratch, [sampler], rows, first)
    with pytest.raises(ValueError, match="1 sequences, but 2 rows"):
        _core.choose(None, scratch, [sampler], two, (0, 1))
    sampler.holds = True
    with pytest.raises(ValueError, match="takes one row"):
        _core.choose(None, scratch, [sampler], two, (0,), [np.zeros(1, np.int32)])
    sampler.holds = False
    with pytest.raises(ValueError, match="n_threads = 0"):
        _core.SampleScratch(4, 0)
    with pytest.raises(ValueError, match="the sampler is for 4"):
        sampler.distribution(logits, scratch, np.zeros(3, np.int32), np.zeros(4))
    assert sampler.token_ids == []
    nan = math.nan
    for change in [
        {"temperature": nan},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": nan},
        {"min_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"presence_penalty": nan},
        {"frequency_penalty": math.inf},
    ]:
        with pytest.raises(ValueError, match="out of range"):
            _core.Sampler(4, none, none, np.zeros(0, np.float32), none, **good | change)
    for change in [(0, none), (-5, none), (4, np.array([4], np.int32))]:
        with pytest.raises(ValueError, match="out of range"):
            _core.Sampler(change[0], change[1], none, np.zeros(0, np.float32), none, **good)


def test_stop_tokens_in_any_order():
    for stop_ids in ([9, 3, 200, 7, 1], [1, 3, 7, 9, 200], [200, 9, 7, 3, 1], [3, 3, 1, 200, 9, 7]):
        sampler = Sampler(SamplingParams(), 300, (), stop_ids)
        assert [i for i in range(300) if sampler.core.accept(i) == "stop"] == [1, 3, 7, 9, 200]


def test_a_token_with_two_biases_has_both_and_is_put_back():
    options = dict.fromkeys(("top_k", "min_p", "presence_penalty", "frequency_penalty", "min_tokens", "seed"), 0)
    empty, ids = np.empty(0, np.int32), np.array([2, 5, 2], np.int32)
    core = _core.Sampler(8, empty, ids, f32(3, 6, 4), empty, temperature=1.0, top_p=1.0, repetition_penalty=1.0, **options)
    logits, ids, probs = np.zeros(8, np.float32), np.empty(8, np.int32), np.empty(8)
    assert core.distribution(logits, _core.SampleScratch(8), ids, probs) == 8
    assert not logits.any() and ids.tolist() == list(range(8)) and math.log(probs[2] / probs[5]) == pytest.approx(1, abs=1e-6)
