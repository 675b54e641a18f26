"""Same bits, whatever the number of threads and nodes, the placement, the chunks of the prompt, the order of the workers, the company."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from core_tools import fill_segment, logits, open_engine, pretend, python, same_bits, team_shape
from tiny_models import tiny
from tiny_recurrent import tiny_recurrent

from numainfer import _core
from numainfer.engine.architectures import llama
from numainfer.engine.ops import NODE, NONE

N_CTX = 700  # three chunks of KV memory
IDS = np.random.default_rng(8).integers(6, 280, 640).astype(np.int32)
SHAPES = ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, (1, 2)), (3, 1), (3, 2), (3, (2, 1, 3)))  # (nodes, workers on each)
SMALL = {"crew": 3, "piece_bytes": 1, "exact_groups": 8, "line_tokens": 4, "tile_groups": 1, "tile_tokens": 6}  # every way of cutting
MODELS = ("llama", "gemma3", "qwen3next")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """gemma3's kv-heads divide over 1 and 2 nodes, llama's single one over 1; a window of 60 crosses the chunks' borders.  qwen3next has
    three layers of six heads with recurrent state, whose last blocks of columns are not full."""
    folder = tmp_path_factory.mktemp("invariance")
    return {"llama": tiny(folder, "llama", "Q4_K", tied=False, context=N_CTX),
            "gemma3": tiny(folder, "gemma3", "Q4_0", heads=4, kv_heads=2, window=60, context=N_CTX),
            "qwen3next": tiny_recurrent(folder), "qwen35": tiny_recurrent(folder, "qwen35")}  # fmt: skip


@pytest.fixture(scope="module")
def wanted(paths):
    """Logits of all positions by one thread, in one step."""
    found = {}
    for name, path in paths.items():
        with open_engine(path, threads=1, n_batch=N_CTX) as engine:
            found[name] = logits(engine, IDS)
    return found


# ---- shapes of the team, chunks, company ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_threads_and_nodes(paths, wanted, monkeypatch, model, shape):
    pretend(monkeypatch, *shape)
    with open_engine(paths[model], n_batch=300) as engine:
        assert (engine.threads, len(engine.nodes)) == (len(team_shape(*shape)[0]), shape[0])
        same_bits(logits(engine, IDS), wanted[model])


@pytest.mark.parametrize("placement", ["replicate", "shard", "interleave", "local"])
@pytest.mark.parametrize("fake", [1, 2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_fake_nodes_and_placements(paths, wanted, monkeypatch, model, fake, placement):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(fake))
    with open_engine(paths[model], placement=placement) as engine:
        copies = {"replicate": fake, "shard": fake, "interleave": 1, "local": 1}[placement]
        assert len(engine.nodes) == (1 if placement == "local" else fake)
        assert len(engine.replicas.arenas) == copies
        same_bits(logits(engine, IDS), wanted[model])


@pytest.mark.parametrize("chunks", [[1], [2], [7], [255, 1, 1, 383], [256], [300, 1, 1, 1, 40], [13, 300, 1, 326]], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_chunks_of_the_prompt(paths, wanted, monkeypatch, model, chunks):
    pretend(monkeypatch, 2, 1)
    n = 270 if max(chunks) < 7 else 640  # the border of a chunk, and all
    with open_engine(paths[model], n_batch=N_CTX) as engine:
        same_bits(logits(engine, IDS[:n], chunks), wanted[model][:n])


@pytest.mark.parametrize("n_batch", [1, 5, 33])
def test_n_batch(paths, wanted, n_batch):
    with open_engine(paths["llama"], n_batch=n_batch) as engine:
        same_bits(logits(engine, IDS[:270]), wanted["llama"][:270])


def test_rows_that_are_wanted(paths, wanted):
    with open_engine(paths["llama"], n_batch=N_CTX) as engine:
        for rows in ([639], [0], [5, 600, 5], list(range(0, 640, 3)), []):
            kv = engine.new_kv()
            same_bits(engine.step([(kv, IDS, 0)], rows), wanted["llama"][rows])
            kv.close()


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_company_in_the_same_step(paths, wanted, monkeypatch, model, shape):
    """24 sequences: some decode (more than there are slots for parts), some bring prompts, some start late; each as if alone."""
    pretend(monkeypatch, *shape)
    rng = np.random.default_rng(shape[0])
    with open_engine(paths[model], n_batch=256) as engine:
        kvs, at = [engine.new_kv() for _ in range(24)], np.zeros(24, int)
        for i in (0, 5, 23):  # long ones: several chunks to fold
            logits(engine, IDS[: 250 + i], kv=kvs[i])
            at[i] = 250 + i
        for _ in range(12):
            order = rng.permutation(24)[: rng.integers(18, 25)]
            sizes = np.where(rng.random(len(order)) < 0.8, 1, rng.integers(2, 30, len(order)))
            segments = [(kvs[i], IDS[at[i] : at[i] + n], at[i]) for i, n in zip(order, sizes)]
            rows = np.concatenate([np.arange(at[i], at[i] + n) for i, n in zip(order, sizes)])
            same_bits(engine.step(segments, range(len(rows))), wanted[model][rows])
            at[order] += sizes


@pytest.mark.parametrize("model", MODELS)
def test_copies_of_kv(paths, wanted, monkeypatch, model):
    """A copy continues with the original's bits, and neither sees what the other appends."""
    for shape in ((1, 2), (2, 2), (3, 1)):
        pretend(monkeypatch, *shape)
        with open_engine(paths[model], n_batch=N_CTX) as engine:
            kv = engine.new_kv()
            logits(engine, IDS[:300], kv=kv)
            n = kv.rewindable(270)  # of recurrent layers the state of position 256 is there
            copy, empty, part = kv.copy(300), kv.copy(0), kv.copy(n)
            other = logits(engine, IDS[:100], kv=kv, start=300)
            same_bits(logits(engine, IDS[300:], kv=copy, start=300), wanted[model][300:])
            same_bits(logits(engine, IDS[:20], kv=empty), wanted[model][:20])
            same_bits(logits(engine, IDS[n:290], kv=part, start=n), wanted[model][n:290])
            assert n == (256 if model == "qwen3next" else 270)
            n = kv.rewindable(300)
            same_bits(logits(engine, np.append(IDS[n:300], IDS[:100]), kv=kv, start=n)[300 - n :], other)


def test_positions_that_are_taken_back(paths, wanted):
    """What a sequence leaves behind its end is not seen by those who write there anew."""
    with open_engine(paths["gemma3"]) as engine:
        kv = engine.new_kv()
        logits(engine, IDS[::-1][:500].copy(), kv=kv)
        for start in (0, 37, 256, 300):
            same_bits(logits(engine, IDS[start:400], kv=kv, start=start), wanted["gemma3"][start:400])


def test_hidden_states_too(paths, monkeypatch):
    found = []
    for shape in ((1, 1), (2, 2), (3, 1)):
        pretend(monkeypatch, *shape)
        with open_engine(paths["llama"]) as engine:
            found.append(logits(engine, IDS[:300], [200, 1, 1, 98], hidden=True))
            same_bits(found[-1], found[0])


@pytest.mark.parametrize("isa", _core.isa_available())
def test_instruction_sets(paths, wanted, isa):
    code = """if True:
        import sys, numpy as np
        from core_tools import logits, open_engine
        from numainfer import _core
        assert _core.isa() == sys.argv[1], _core.isa()
        ids = np.random.default_rng(8).integers(6, 280, 640)[:300].astype(np.int32)
        for path in sys.argv[2:]:
            with open_engine(path) as engine:
                print(logits(engine, ids, [290, 1]).tobytes().hex())
    """
    out = python(code, isa, *(paths[model] for model in MODELS), NUMAINFER_ISA=isa)
    for model, line in zip(MODELS, out.split(), strict=True):
        same_bits(np.frombuffer(bytes.fromhex(line), np.float32).reshape(300, -1), wanted[model][:300], model)


# ---- the shuffle test: workers one after another, in random order between barriers ------------------------------------


class Shuffled:
    """Prompts and decoding steps of an engine's plan, with changed barriers if told, all on fresh memory."""

    def __init__(self, engine, prompt=41, sizes=None):
        self.engine, self.prompt, self.sizes = engine, prompt, sizes
        self.ops, self.tensors = engine.plan.arrays()
        self.weights = [engine.replicas.entry(w) for w in engine.plan.weights]

    def run(self, seed, ops=None):
        """Logits of two prompts, a decoding step of both, and one of a single sequence; seed 0: by the real threads.

        Before each step the plan's memory and the result hold NaN: what nobody wrote shows.
        """
        e, n = self.engine, len(self.engine.nodes)
        core = _core.Plan(e.lane.team, self.ops if ops is None else ops, self.tensors, self.weights, e.plan.arena_bytes, e.n_batch,
                          range(n), e.nodes, self.sizes)  # fmt: skip
        kv, out = [e.new_kv(), e.new_kv()], []
        for i, steps in enumerate(([(0, self.prompt, 0), (1, 19, 0)], [(0, 1, self.prompt), (1, 1, 19)], [(1, 1, 20)])):
            table, row = np.zeros(len(steps), _core.SEGMENT_DTYPE), 0
            coming = []
            for record, (which, count, pos0) in zip(table, steps):
                coming.append(fill_segment(record, kv[which], row, count, pos0))
                row += count
            rows = np.arange(row, dtype=np.int32)
            result = np.full((len(rows), e.n_vocab), np.nan, np.float32)
            core.fill(np.nan)
            core.run(IDS[100 * i : 100 * i + row] % e.n_vocab, table, rows, result, seed and seed + i)
            for states, (which, count, pos0) in zip(coming, steps):
                kv[which].states.done(pos0, pos0 + count, states)
            out.append(result)
        core.close()
        for memory in kv:
            memory.close()
        return np.concatenate(out)


@pytest.mark.parametrize("shape", [(1, 2), (1, 5), (2, 2), (3, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_shuffled_workers(paths, monkeypatch, model, shape):
    pretend(monkeypatch, *shape)
    with open_engine(paths[model], n_batch=64) as engine:
        shuffled = Shuffled(engine)
        threaded = shuffled.run(0)
        for seed in range(1, 21):
            same_bits(shuffled.run(seed), threaded, f"seed {seed}")


@pytest.mark.parametrize(("fake", "threads"), [(1, 2), (2, 2), (3, 3)])
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_shuffled_workers_on_real_models(request, monkeypatch, name, fake, threads):
    path = request.getfixturevalue(name).path
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(fake))
    with open_engine(path, n_ctx=512, n_batch=64, threads=threads) as engine:
        shuffled = Shuffled(engine)
        threaded = shuffled.run(0)
        same_bits(shuffled.run(fake), threaded)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Rows of two slabs and a bit, so that groups are cut; the wanted bits are one worker's."""
    path = tiny(tmp_path_factory.mktemp("wide"), "llama", "Q4_0", tied=False, width=544, heads=5, feed_forward=1056, context=N_CTX)
    with open_engine(path, threads=1, n_batch=64) as engine:
        return path, Shuffled(engine).run(0)


@pytest.mark.parametrize("placement", ["replicate", "shard"])
@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (2, (2, 5)), (3, 4)], ids=str)
def test_small_pieces_of_work(wide, monkeypatch, shape, placement):
    """Shared pieces, groups that two workers share, grids: in any order the bits of one worker, and nothing is left out."""
    path, wanted = wide
    pretend(monkeypatch, *shape)
    with open_engine(path, n_batch=64, placement=placement) as engine:
        for sizes in (SMALL, SMALL | {"crew": 2, "exact_groups": 100}):
            shuffled = Shuffled(engine, sizes=sizes)
            for seed in range(6):
                same_bits(shuffled.run(seed), wanted, f"seed {seed}")


@pytest.mark.parametrize("shape", [(2, 1), (2, (1, 3)), (3, (2, 1, 3))], ids=str)
def test_a_matrix_that_two_matmuls_read(paths, monkeypatch, shape):
    """A node holds the same rows of a matrix whatever others share its op: here gate and up, together and each by itself."""
    def layer(p, x, w, a, rope, experts):
        q, k, v = p.matmul(x.norm(w.attn_norm), w.attn_q, w.attn_k, w.attn_v)
        x.add(p.matmul(p.attend(q, k, v, a, rope), w.attn_output))
        gate, up = p.matmul(x.norm(w.ffn_norm), w.ffn_gate, w.ffn_up)
        x.add(p.matmul(p.gated(gate, up, "silu"), w.ffn_down))
        h = x.norm(w.ffn_norm)
        x.add(p.matmul(p.gated(p.matmul(h, w.ffn_gate), p.matmul(h, w.ffn_up), "silu"), w.ffn_down))

    monkeypatch.setattr(llama, "layer", layer)
    with open_engine(paths["llama"], threads=1, n_batch=100) as engine:
        wanted = logits(engine, IDS[:120])
    pretend(monkeypatch, *shape)
    for placement in ("shard", "replicate"):
        with open_engine(paths["llama"], placement=placement, n_batch=100) as engine:
            same_bits(logits(engine, IDS[:120], [100, 1, 19]), wanted)


@pytest.mark.parametrize(("model", "shape"), [("llama", (1, 3)), ("llama", (3, 2)), ("gemma3", (2, (1, 2))),
                                              ("qwen35", (1, 3)), ("qwen35", (2, (1, 3)))], ids=str)
def test_every_barrier_that_is_taken_away_is_missed(paths, monkeypatch, model, shape):
    """The shuffle test can fail: without any single barrier, or with one within the nodes only, some order gives other bits.

    gemma3's workers are not dealt evenly: on even nodes each would multiply the very rows of q, k and v that its own heads need.
    """
    pretend(monkeypatch, *shape)
    with open_engine(paths[model], n_batch=64) as engine:
        shuffled = Shuffled(engine)
        right = shuffled.run(0)
        for i in np.flatnonzero(shuffled.ops["barrier"]):
            is_ = shuffled.ops["barrier"][i]
            for level in range(NONE, is_ if shape[0] > 1 else NODE):
                ops = shuffled.ops.copy()
                ops["barrier"][i] = level
                runs = (shuffled.run(10 * seed, ops).view(np.uint32) for seed in range(1, 30))
                noticed = any((run != right.view(np.uint32)).any() for run in runs)
                assert noticed, f"barrier {level} for {is_} before op {i} goes unnoticed\n{engine.plan}"


def test_a_weaker_barrier_would_be_enough_where_a_node_is_alone(paths, monkeypatch):
    """On one node a barrier within the node is one of the team: the test tells them apart only where they differ."""
    pretend(monkeypatch, 1, 3)
    with open_engine(paths["llama"], n_batch=64) as engine:
        shuffled = Shuffled(engine)
        ops = shuffled.ops.copy()
        ops["barrier"] = np.minimum(ops["barrier"], NODE)
        same_bits(shuffled.run(7, ops), shuffled.run(0))


# ---- one lane per node -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_lanes_of_single_nodes(paths, wanted, monkeypatch, model, shape):
    """All nodes at once, each with sequences of its own; then a sequence wanders from lane to lane."""
    pretend(monkeypatch, *shape)
    with open_engine(paths[model], placement="replicate", n_batch=256) as engine:
        lanes = engine.node_lanes()
        assert [len(lane.team) for lane in lanes] == [shape[1]] * shape[0] and engine.lane not in lanes

        def sequence(lane):
            kv, out = engine.new_kv(), []
            for at, n in ((0, 200), (200, 1), (201, 1), (202, 98)):
                out.append(lane.step([(kv, IDS[at : at + n], at)], range(n)))
            kv.close()
            return np.concatenate(out)

        with ThreadPoolExecutor() as pool:
            for found in pool.map(sequence, lanes):
                same_bits(found, wanted[model][:300])
        kv = engine.new_kv()
        for i, lane in enumerate([*lanes, engine.lane, *lanes]):
            same_bits(lane.step([(kv, IDS[60 * i : 60 * i + 60], 60 * i)], range(60)), wanted[model][60 * i : 60 * i + 60])
        kv.close()


def test_a_model_without_copies_has_one_lane(paths, monkeypatch):
    for placement in ("shard", "interleave"):
        pretend(monkeypatch, 2, 1)
        with open_engine(paths["llama"], placement=placement) as engine:
            assert engine.node_lanes() == [engine.lane]
