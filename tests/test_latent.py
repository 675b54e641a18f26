"""Latent rows, whose first columns are the values: kernels against NumPy in float64, the same bits everywhere, and bytes."""

import numpy as np
import pytest
import reference as ref
from _cvec import CHUNK, KV_TYPES, LATENT_TILE, available, load, same
from core_tools import logits, open_engine, pretend, same_bits
from test_attend import fma_chain
from test_mixture_models import model as edited

from numainfer import _core
from numainfer.engine.ops import Attention
from numainfer.engine.plan import Plan
from numainfer.errors import PlanError
from numainfer.gguf.file import GGUFFile
from numainfer.measure.capacity import demand

SCALAR = load("scalar")


@pytest.fixture(params=available())
def vec(request):
    return load(request.param)


@pytest.fixture(params=KV_TYPES)
def kv_type(request):
    return request.param


# ---- the kernel -------------------------------------------------------------------------------------------------------


class Case:
    """Random queries (n, e), rows (256, e) as the memory gives them back, and what each query sees."""

    def __init__(self, seed, n_q, e, ev, kv_type):
        rng = np.random.default_rng(seed)
        self.kv_type, self.ev = kv_type, ev
        self.q = (rng.standard_normal((n_q, e)) * 2 / np.sqrt(e)).astype(np.float32)
        self.rows = ref.stored(rng.standard_normal((CHUNK, e)).astype(np.float32), kv_type)
        self.lo = rng.integers(0, CHUNK, n_q)
        self.hi = self.lo + 1 + (rng.random(n_q) * (CHUNK - self.lo)).astype(int)
        self.lo[::5], self.hi[::7] = 0, CHUNK

    def run(self, vec, cap=0.0, some=slice(None), positions=None, memory=None):
        """Parts m, l, acc of some of the queries; positions: those that are stored, into memory filled with a byte."""
        rows = vec.store(self.kv_type, "value", self.rows, memory, positions)
        return vec.attend_latent(self.kv_type, np.ascontiguousarray(self.q[some]), rows, self.ev, self.lo[some], self.hi[some], cap)


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize(("n_q", "e", "ev"), [(1, 64, 64), (7, 16, 16), (16, 80, 48), (17, 64, 64), (32, 80, 48), (33, 64, 48),
                                              (70, 48, 16), (20, 576, 512)])  # fmt: skip
def test_attend_latent(vec, kv_type, n_q, e, ev, cap):
    case = Case(n_q * 1000 + e, n_q, e, ev, kv_type)
    got = case.run(vec, cap)
    for x, a, b, m, den, acc in zip(case.q.astype(np.float64), case.lo, case.hi, *got, strict=True):
        rows = case.rows[a:b].astype(np.float64)
        s = rows @ x
        s = cap * np.tanh(s / cap) if cap else s
        p = np.exp(s - s.max())
        np.testing.assert_allclose(m, s.max(), rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(den, p.sum(), rtol=1e-5)
        np.testing.assert_allclose(acc, p @ rows[:, :ev], rtol=2e-5, atol=2e-5)
    for g, w in zip(got, case.run(SCALAR, cap), strict=True):
        same(g, w)


def test_the_order_of_the_contract(vec, kv_type):
    case = Case(7, 9, 80, 48, kv_type)
    for q, lo, hi, m, den, acc in zip(case.q, case.lo, case.hi, *case.run(vec), strict=True):
        s = fma_chain(q[:, None], case.rows.T)[lo:hi]
        p = vec.exp(s - s.max())
        same(m, s.max())
        same(den, np.add.accumulate(p)[-1])
        same(acc, fma_chain(p[:, None], case.rows[lo:hi, :48]))


def test_a_query_does_not_depend_on_its_company(vec, kv_type):
    case = Case(8, 70, 48, 32, kv_type)
    whole = case.run(vec)
    pieces = [slice(a, a + n) for n in (2, 15, 16, 17, LATENT_TILE, 33, 60) for a in (0, 7)]
    for part in [slice(j, j + 1) for j in range(0, 70, 3)] + pieces:
        for g, w in zip(case.run(vec, some=part), whole, strict=True):
            same(g, w[part])


def test_masked_positions_are_not_seen(vec, kv_type):
    """Other finite memory at masked positions, and anything at all where no query looks, changes no bit."""
    case = Case(9, 20, 64, 64, kv_type)
    case.lo, case.hi = case.lo % 100 + 30, case.hi % 100 + 131
    case.lo[3], case.hi[3] = 77, 78
    first, rows = case.run(vec), case.rows
    for j in range(20):
        case.rows = rows.copy()
        case.rows[: case.lo[j]], case.rows[case.hi[j] :] = 60000, -60000
        for g, w in zip(case.run(vec), first, strict=True):
            same(g[j], w[j])
    case.rows = rows
    for byte in (0xFF, 0x7C, 0x80):  # NaNs; infinities and large numbers
        for g, w in zip(case.run(vec, positions=range(case.lo.min(), case.hi.max()), memory=byte), first, strict=True):
            same(g, w)


def test_far_scores_and_none(vec, kv_type):
    """Probabilities that underflow count as nothing; a query that sees nothing leaves the others alone."""
    case = Case(10, 20, 32, 32, kv_type)
    case.q *= 100
    first = case.run(vec)
    for g, w in zip(first, case.run(SCALAR), strict=True):
        same(g, w)
    case.lo[2] = case.hi[2] = 50
    got = case.run(vec)
    others = np.arange(20) != 2
    for g, w in zip(got, first, strict=True):
        same(g[others], w[others])
    assert got[0][2] == -np.inf and got[1][2] == 0 and (got[2][2] == 0).all()


def test_sums_that_round_to_minus_zero(vec):
    """1 - 1.16 units of the least subnormal rounds to -0, which adding a masked position would turn into +0."""
    case = Case(12, 2, 32, 16, "f16")
    case.q[:], case.q[:, 16] = 0, 1
    case.rows[:] = 0
    case.rows[:3, 16], case.rows[1, :16], case.rows[2, :16] = (0, -87.25, -86.5), 2.0**-24, -(2.0**-24)
    case.lo, case.hi = np.array([0, 0]), np.array([3, 9])
    both, alone = case.run(vec), case.run(vec, some=slice(0, 1))
    assert (alone[2] == 0).all() and not np.signbit(alone[2]).any()
    same(both[2][:1], alone[2])


# ---- whole models -----------------------------------------------------------------------------------------------------

N_CTX = 700  # three chunks
IDS = np.random.default_rng(5).integers(6, 120, 620).astype(np.int32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """DeepSeek's tiny model with a longer context."""
    return edited(tmp_path_factory.mktemp("latent"), "deepseek2", {"context_length": N_CTX})


@pytest.fixture(scope="module")
def wanted(path):
    """Logits of all positions by one thread, in one step, for each type."""
    found = {}
    for kv_type in KV_TYPES:
        with open_engine(path, threads=1, n_batch=N_CTX, kv_type=kv_type) as engine:
            found[kv_type] = logits(engine, IDS)
    return found


@pytest.mark.parametrize("shape", [(1, 2), (1, 3), (2, 1), (3, 2), (2, (1, 2))], ids=str)
def test_teams_and_chunks(path, wanted, monkeypatch, kv_type, shape):
    pretend(monkeypatch, *shape)
    with open_engine(path, n_batch=300, kv_type=kv_type) as engine:
        for chunks in ([300], [1, 255, 2, 1, 40], [7]):
            same_bits(logits(engine, IDS, chunks), wanted[kv_type])


@pytest.mark.parametrize("placement", ["replicate", "shard", "interleave", "local"])
def test_placements(path, wanted, monkeypatch, kv_type, placement):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    with open_engine(path, placement=placement, kv_type=kv_type) as engine:
        same_bits(logits(engine, IDS, [500, 1]), wanted[kv_type])


def test_isas(path, wanted, kv_type):
    first = _core.isa()
    try:
        for isa in available():
            _core.isa_select(isa)
            with open_engine(path, threads=2, kv_type=kv_type) as engine:
                same_bits(logits(engine, IDS[:300], [290, 1]), wanted[kv_type][:300])
    finally:
        _core.isa_select(first)


def test_company_copies_and_positions_taken_back(path, wanted, monkeypatch, kv_type):
    for shape in ((1, 2), (2, 1), (3, 1)):
        pretend(monkeypatch, *shape)
        with open_engine(path, n_batch=N_CTX, kv_type=kv_type) as engine:
            kv = engine.new_kv()
            logits(engine, IDS[::-1][:500].copy(), kv=kv)
            same_bits(logits(engine, IDS[:300], kv=kv), wanted[kv_type][:300])
            copy, part = kv.copy(300), kv.copy(17)
            logits(engine, IDS[:100], kv=kv, start=300)
            both = engine.step([(copy, IDS[300:301], 300), (part, IDS[17:90], 17), (engine.new_kv(), IDS[:1], 0)], range(75))
            same_bits(both, wanted[kv_type][[300, *range(17, 90), 0]])
            same_bits(logits(engine, IDS[301:], kv=copy, start=301), wanted[kv_type][301:])


# ---- bytes ------------------------------------------------------------------------------------------------------------


DEEPSEEK = Attention(128, 1, 576, 512, 64, False, 0.1, rope_first=512)


def latent_plan(kv_type, layers=1, a=DEEPSEEK):
    made = Plan(1, 8, 1024, kv_type=kv_type)
    for _ in range(layers):
        q, k = (made._tensor(name, width, 1, "f") for name, width in (("q", a.heads * a.key_length), ("k", a.kv_heads * a.key_length)))
        q.first = k.first = 0
        made.attend(q, k, None, a)
    return made


@pytest.mark.parametrize("layers", [1, 4, 61])
def test_bytes_of_a_position(layers):
    for kv_type, limit in (("f16", 1160), ("bf16", 1160), ("q8_0", 1160 * 34 / 64)):
        made = latent_plan(kv_type, layers)
        made.kv.place()
        assert all(layer.position_bytes <= limit for layer in made.kv.layers)
        assert made.kv.read_bytes(100) <= 100 * layers * limit
        padding = 1 if layers < 61 else 9 / 8  # for the sake of huge pages; or else of whole ones
        assert made.kv.bytes_per_token <= padding * layers * limit + 4096 // CHUNK


def test_bytes_of_a_model(path):
    with GGUFFile(path) as file:
        for kv_type, position in (("f16", 2 * 576), ("bf16", 2 * 576), ("q8_0", 576 + 2 * 18)):
            need = demand(file, 1, N_CTX, kv_type=kv_type)
            assert need.kv_read(500) == 500 * 4 * position
            with open_engine(path, kv_type=kv_type) as engine:
                kv = engine.new_kv()
                engine.step([(kv, IDS[:300], 0)], [])
                assert sum(kind.block_bytes for kind, *_ in kv.blocks()) == engine.plan.kv.bytes(300)
                kv.close()


def test_values_are_no_wider_than_keys():
    with pytest.raises(PlanError, match="first of the keys can be no wider"):
        latent_plan("f16", a=Attention(2, 1, 32, 48, 0, False, 1.0))
    with pytest.raises(PlanError, match="at most the key width, from rope_first on"):
        latent_plan("f16", a=Attention(2, 1, 48, 32, 16, False, 1.0, rope_first=48))
