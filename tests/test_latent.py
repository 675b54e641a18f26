"""Latent rows, whose first columns are the values: kernels against NumPy in float64, the same bits everywhere, and bytes."""

import functools

import numpy as np
import pytest
from _cvec import CHUNK, KV_TYPES, LATENT_TILE, load, same
from core_tools import instruction_set, logits, logits_by_kv_type, open_engine, pretend, same_bits, thinned
from test_attend import TOLERANCE, Case, fma_chain
from test_mixture_models import model as edited

from numainfer import _core
from numainfer.engine.ops import Attention
from numainfer.engine.plan import Plan
from numainfer.errors import PlanError
from numainfer.gguf.file import GGUFFile
from numainfer.measure.capacity import demand

SCALAR = load("scalar")


# ---- the kernel -------------------------------------------------------------------------------------------------------


class Latent(Case):
    """A case whose values are the first columns of its keys, which the memory keeps once."""

    def __init__(self, seed, n_q, e, ev, kv_type):
        super().__init__(seed, n_q, e, ev, kv_type)
        self.v, self.tolerance = self.k[:, :ev], TOLERANCE["f32"]  # q8_0 is multiplied as floats

    def keep(self, vec, rows=None, memory=None):
        """A chunk; rows: positions that are stored, into memory filled with a byte."""
        return vec.store(self.kv_type, "value", self.k, memory, rows)

    def run(self, vec, cap=0.0, some=slice(None), kept=None):
        """Parts m, l, acc of some of the queries over what `keep` gave."""
        kept = self.keep(vec) if kept is None else kept
        return vec.attend_latent(self.kv_type, np.ascontiguousarray(self.q[some]), kept, self.ev, self.lo[some], self.hi[some], cap)


@functools.cache
def known(kv_type, n_q, e, ev, cap):
    """A case, its chunk, and the parts that NumPy and the scalar table give."""
    case = Latent(n_q * 1000 + e, n_q, e, ev, kv_type)
    kept = case.keep(SCALAR)
    return case, kept, case.twin(cap), case.run(SCALAR, cap, kept=kept)


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize(("n_q", "e", "ev"), [(1, 64, 64), (7, 16, 16), (16, 80, 48), (17, 64, 64), (32, 80, 48), (33, 64, 48),
                                              (70, 48, 16), (20, 576, 512)])  # fmt: skip
def test_attend_latent(vec, kv_type, n_q, e, ev, cap):
    case, kept, exact, wanted = known(kv_type, n_q, e, ev, cap)
    got = case.run(vec, cap, kept=kept)
    case.check(got, exact)
    for g, w in zip(got, wanted, strict=True):
        same(g, w)


def test_the_order_of_the_contract(vec, kv_type):
    case = Latent(7, 9, 80, 48, kv_type)
    for q, lo, hi, m, den, acc in zip(case.q, case.lo, case.hi, *case.run(vec), strict=True):
        s = fma_chain(q[:, None], case.k.T)[lo:hi]
        p = vec.exp(s - s.max())
        same(m, s.max())
        same(den, np.add.accumulate(p)[-1])
        same(acc, fma_chain(p[:, None], case.k[lo:hi, :48]))


def test_a_query_does_not_depend_on_its_company(vec, kv_type):
    case = Latent(8, 70, 48, 32, kv_type)
    kept = case.keep(vec)
    whole = case.run(vec, kept=kept)
    pieces = [slice(a, a + n) for n in (2, 15, 16, 17, LATENT_TILE, 33, 60) for a in (0, 7)]
    for part in [slice(j, j + 1) for j in range(0, 70, 3)] + pieces:
        for g, w in zip(case.run(vec, some=part, kept=kept), whole, strict=True):
            same(g, w[part])


def test_masked_positions_are_not_seen(vec, kv_type):
    """Other finite memory at masked positions, and anything at all where no query looks, changes no bit."""
    case = Latent(9, 20, 64, 64, kv_type)
    case.lo, case.hi = case.lo % 100 + 30, case.hi % 100 + 131
    case.lo[3], case.hi[3] = 77, 78
    first, rows = case.run(vec), case.k
    for j in range(20):
        case.k = rows.copy()
        case.k[: case.lo[j]], case.k[case.hi[j] :] = 60000, -60000
        for g, w in zip(case.run(vec), first, strict=True):
            same(g[j], w[j])
    case.k = rows
    for byte in (0xFF, 0x7C, 0x80):  # NaNs; infinities and large numbers
        for g, w in zip(case.run(vec, kept=case.keep(vec, range(case.lo.min(), case.hi.max()), byte)), first, strict=True):
            same(g, w)


def test_far_scores_and_none(vec, kv_type):
    """Probabilities that underflow count as nothing; a query that sees nothing leaves the others alone."""
    case = Latent(10, 20, 32, 32, kv_type)
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
    case = Latent(12, 2, 32, 16, "f16")
    case.q[:], case.q[:, 16] = 0, 1
    case.k[:] = 0
    case.k[:3, 16], case.k[1, :16], case.k[2, :16] = (0, -87.25, -86.5), 2.0**-24, -(2.0**-24)
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
    return logits_by_kv_type(path, IDS, n_batch=N_CTX)


@pytest.mark.parametrize(("shape", "kv_type", "chunks"), thinned(
    [(1, 2), (1, 3), (2, 1), (3, 2), (2, (1, 2))], KV_TYPES, [[300], [1, 255, 2, 1, 40], [7]], one_in=2), ids=str)  # fmt: skip
def test_teams_and_chunks(path, wanted, monkeypatch, kv_type, shape, chunks):
    pretend(monkeypatch, *shape)
    with open_engine(path, n_batch=300, kv_type=kv_type) as engine:
        same_bits(logits(engine, IDS, chunks), wanted[kv_type])


@pytest.mark.parametrize("placement", ["replicate", "shard", "interleave", "local"])
def test_placements(path, wanted, monkeypatch, kv_type, placement):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", "2")
    with open_engine(path, placement=placement, kv_type=kv_type) as engine:
        same_bits(logits(engine, IDS, [500, 1, 1, 1, 117]), wanted[kv_type])


@pytest.mark.parametrize("isa", _core.isa_available())
def test_isas(path, wanted, kv_type, isa):
    with instruction_set(isa), open_engine(path, threads=2, kv_type=kv_type) as engine:
        same_bits(logits(engine, IDS[:300], [290, 1]), wanted[kv_type][:300])


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
