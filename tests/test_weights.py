"""From the file to the nodes' memory: what lies where, that it is the file's, and that nothing is left behind."""

import ctypes
import mmap
import os
import re
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from _ckernels import address, formats
from core_tools import Sheet, logits, open_engine, open_team, pretend, python, same_bits
from gguf_tools import GGUF, part
from random_blocks import TYPES, random_weights
from tiny_models import tiny

from numainfer import _core
from numainfer.engine import store
from numainfer.errors import CorruptModel, ModelClosed, UnsupportedModel
from numainfer.gguf.file import GGUFFile
from numainfer.machine import topology as topologies
from numainfer.engine.copies import Replicas
from numainfer.engine.weights import FORMATS, Matrix, Vector

IDS = np.arange(20, dtype=np.int32) + 6


def block(kind):
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    rng = np.random.default_rng(6)
    tensors = {kind: (random_weights(rng, 53, 2 * block(kind) if block(kind) > 1 else 40, kind), kind) for kind in TYPES}
    tensors |= {f"vector {kind}": (random_weights(rng, 1, 64, kind)[0], kind) for kind in ("F32", "F16", "BF16", "Q8_0")}
    tensors["big"] = random_weights(rng, 2100, 1024, "F32"), "F32"
    sheet = Sheet(tmp_path_factory.mktemp("weights") / "sheet.gguf", tensors)
    yield sheet
    sheet.close()


def unpacked(entry, node):
    """A matrix back from a node's copy, (n, k) float64, or (experts, n, k); rows of other nodes' shards are NaN."""
    code, n, k, addresses, bounds, experts = entry
    group_bytes, rows = _core.packed_bytes(code, 1, k), np.full((experts, n, k), np.nan)
    kind = next(name for name, f in FORMATS.items() if f["code"] == code)
    groups = range(-(-n // _core.ROWS)) if bounds is None else range(bounds[node], bounds[node + 1])
    for e in range(experts):
        for g in groups:
            at = addresses[node] + (e * len(groups) + g) * group_bytes
            packed = np.frombuffer(ctypes.string_at(at, group_bytes), np.uint8)
            for r in range(min(_core.ROWS, n - g * _core.ROWS)):
                rows[e, g * _core.ROWS + r] = row_of(kind, packed, r, k)
    return rows if experts > 1 else rows[0]


def row_of(kind, packed, row, k):
    """Row `row` of a packed group by the C core's own table of formats."""
    out = np.empty(k, np.float32)
    formats()[kind].unpack_row(address(packed), row, k, address(out))
    return out


@pytest.mark.parametrize("policy", ["replicate", "shard", "interleave"])
def test_rows_of_a_matrix_are_a_matrix(sheet, policy):
    """Parts of one tensor, each packed as if it were a tensor of its own; one of them is not asked for."""
    weights = [w for kind in TYPES for w in sheet.catalog.rows(kind, 16, 1, 36) if w.n > 1][::-1]
    bounds = {w.name: [0, 1, 1 if w.n == 16 else 3] for w in weights} if policy == "shard" else None
    seen = []
    with open_team(2, 1) as team:
        replicas = Replicas(weights, [0, 0], policy, bounds)
        replicas.fill(team, sheet.file, lambda done, total: seen.append((done, total)))
        for w in weights:
            for node in range(2):
                found = unpacked(replicas.entry(w), node)
                there = ~np.isnan(found)
                wanted = sheet.exact[w.tensor][w.first : w.first + w.n].astype(np.float32)
                np.testing.assert_array_equal(found[there], wanted[there])
                first, end = bounds[w.name][node : node + 2] if bounds else (0, 3)  # row groups of 16
                assert there.all(1).tolist() == [first <= row // 16 < end for row in range(w.n)]
        replicas.close()
    rows = {kind: sheet.file.tensors[kind].n_bytes // 53 for kind in TYPES}
    assert seen[-1] == (52 * sum(rows.values()),) * 2


def test_rows_must_be_all_of_a_matrix(sheet):
    assert sheet.catalog.rows("F32", 20, 33) == sheet.catalog.rows("F32", 20, 33)
    with pytest.raises(CorruptModel, match=r"tensor 'F32' has 53 rows, wanted 52 rows: 20 \+ 32"):
        sheet.catalog.rows("F32", 20, 32)
    with pytest.raises(CorruptModel, match="tensor 'vector F32' has 64 values, wanted 64 rows"):
        sheet.catalog.rows("vector F32", 64)


@pytest.mark.parametrize(("n_nodes", "workers"), [(1, 1), (1, 3), (3, 2)])
def test_every_copy_holds_the_file(sheet, n_nodes, workers):
    weights = [sheet[name] for name in sheet.exact]
    with open_team(n_nodes, workers) as team:
        replicas = Replicas(weights, [0] * n_nodes, "replicate")
        replicas.fill(team, sheet.file)
        assert len(replicas.arenas) == n_nodes
        for w in weights:
            entry = replicas.entry(w)
            assert len(set(entry[3])) == n_nodes  # real duplicates
            for node in range(n_nodes):
                if isinstance(w, Vector):
                    found = np.frombuffer(ctypes.string_at(entry[3][node], 4 * w.n), np.float32)
                else:
                    found = unpacked(entry, node)
                np.testing.assert_array_equal(found, sheet.exact[w.name].reshape(found.shape).astype(np.float32))
        replicas.close()
        assert replicas.arenas == []


def test_shards_hold_their_own_rows_and_no_others(sheet):
    w = sheet["big"]
    bounds = {"big": [0, 40, 41, 132]}
    with open_team(3, 2) as team:
        replicas = Replicas([w, sheet["Q4_K"]], [0, 0, 0], "shard", bounds | {"Q4_K": [0, 2, 2, 4]})
        replicas.fill(team, sheet.file)
        for node, rows in enumerate([(0, 640), (640, 656), (656, 2100)]):
            found = unpacked(replicas.entry(w), node)
            np.testing.assert_array_equal(found[slice(*rows)], sheet.exact["big"][slice(*rows)])
            assert np.isnan(found[: rows[0]]).all() and np.isnan(found[rows[1] :]).all()
        q4 = [unpacked(replicas.entry(sheet["Q4_K"]), node) for node in range(3)]
        np.testing.assert_array_equal(q4[0][:32], sheet.exact["Q4_K"][:32])
        np.testing.assert_array_equal(q4[2][32:], sheet.exact["Q4_K"][32:])
        whole = -(-w.packed_bytes // 64) * 64 + sheet["Q4_K"].packed_bytes
        assert whole <= sum(arena.bytes for arena in replicas.arenas) <= whole + 3 * 4096 + 6 * 64
        replicas.close()


def test_interleaved_is_one_copy_for_all(sheet):
    with open_team(3, 1) as team:
        replicas = Replicas([sheet["Q6_K"]], [0, 0, 0], "interleave")
        replicas.fill(team, sheet.file)
        addresses = replicas.entry(sheet["Q6_K"])[3]
        assert len(addresses) == 3 and len(set(addresses)) == 1 and len(replicas.arenas) == 1
        np.testing.assert_array_equal(unpacked(replicas.entry(sheet["Q6_K"]), 0), sheet.exact["Q6_K"])
        replicas.close()


def test_all_nodes_pack_a_copy_that_they_share(sheet):
    """And each its own copies, where they have some."""
    w, tensor, n = sheet["big"], sheet.file.tensors["big"], 20
    arenas = [_core.Arena(n * w.packed_bytes, huge=True) for _ in range(2)]
    with open_team(3, 2) as team, tensor.open() as file:

        def taken(*addresses):
            counts = np.zeros(6, np.int64)
            pieces = [((w.code, w.n, w.k, [a + i * w.packed_bytes for a in addresses], None, 1), (file.fileno(), tensor.offset), 4 * w.k)
                      for i in range(n)]
            assert team.fill(pieces, np.zeros(n, np.uint8), taken=counts) == -1
            return counts.reshape(3, 2).sum(axis=1).tolist()

        a, b = (arena.address for arena in arenas)
        runs = taken(a, a, b)
        assert runs[0] + runs[1] == runs[2] > n  # two nodes share the one's runs
        for _ in range(50):  # a worker may come too late for any
            shared = taken(a, a, a)
            assert sum(shared) == runs[2]
            if all(shared):
                break
        assert all(shared), shared
        found = [unpacked((w.code, w.n, w.k, [at + (n - 1) * w.packed_bytes], None, 1), 0) for at in (a, b)]
        for each in found:
            np.testing.assert_array_equal(each, sheet.exact["big"])
    for arena in arenas:
        arena.close()


def test_weights_do_not_overlap(sheet):
    weights = [sheet[name] for name in sheet.exact]
    replicas = Replicas(weights, [0, 0], "replicate")
    for node, arena in enumerate(replicas.arenas):
        places = sorted((replicas.entry(w)[3][node], w.packed_bytes) for w in weights)
        assert places[0][0] == arena.address and places[0][0] % 64 == 0
        assert all(a + size <= b and b % 64 == 0 for (a, size), (b, _) in pairwise(places))
        assert places[-1][0] + places[-1][1] <= arena.address + arena.bytes
    replicas.close()


def test_progress_counts_the_bytes_of_all_matrices(sheet):
    matrices, seen = [sheet[name] for name in (*TYPES, "big")], []
    with open_team(1, 2) as team:
        replicas = Replicas(matrices, [0], "local")
        replicas.fill(team, sheet.file, lambda done, total: seen.append((done, total)))
        replicas.close()
    total = sum(sheet.file.tensors[w.name].n_bytes for w in matrices)
    assert seen[-1] == (total, total) and {t for _, t in seen} == {total}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})  # strictly upwards


def test_catalog(sheet):
    q, v = sheet["Q5_K"], sheet["vector F16"]
    assert isinstance(q, Matrix) and (q.type, q.n, q.k, q.short_name) == ("Q5_K", 53, 512, "Q5_K")
    assert isinstance(v, Vector) and v.values.dtype == np.float32
    np.testing.assert_array_equal(v.values, sheet.exact["vector F16"])
    assert sheet["Q5_K"] is q and "Q5_K" in sheet.catalog and "x" not in sheet.catalog and sheet.catalog.get("x") is None
    with pytest.raises(CorruptModel, match="tensor 'x' is missing; architecture 'sheet' needs it"):
        sheet["x"]
    assert Matrix("blk.3.attn_q.weight", "F32", 1, 1).short_name == "attn_q"


def test_the_caller_hears_what_is_in_place(sheet):
    """While the workers go on, every tick says how far all of them are, and what comes before that is there."""
    w, copies, ticks = sheet["big"], 24, []
    arena, tensor = _core.Arena(copies * w.packed_bytes, huge=True), sheet.file.tensors["big"]
    group_bytes, groups = _core.packed_bytes(w.code, 1, w.k), -(-w.n // _core.ROWS)
    file = tensor.open()
    pieces = [((w.code, w.n, w.k, [arena.address + i * w.packed_bytes], None, 1), (file.fileno(), tensor.offset), 4 * w.k)
              for i in range(copies)]

    def tick(piece, row):
        assert 0 <= row < w.n and row % _core.ROWS == 0
        ticks.append(piece * groups + row // _core.ROWS)
        for at in {ticks[-1] // 2, ticks[-1] - 1} - {-1, ticks[-1]}:
            packed, first = np.frombuffer(arena.read(at * group_bytes, group_bytes), np.uint8), at % groups * _core.ROWS
            np.testing.assert_array_equal(row_of("F32", packed, 3, w.k), sheet.exact["big"][first + 3].astype(np.float32))

    nonzero = np.zeros(copies, np.uint8)
    with open_team(1, 2) as team:
        assert team.fill(pieces, nonzero, tick) == -1
        assert nonzero.all() and ticks and ticks == sorted(ticks) and ticks[-1] > 0
        assert team.fill([], np.zeros(0, np.uint8)) == -1
        with pytest.raises(ValueError, match="1 pieces, but 2 flags"):
            team.fill(pieces[:1], np.zeros(2, np.uint8))
        with pytest.raises(ValueError, match="2 workers, but 3 counts"):
            team.fill(pieces[:1], np.zeros(1, np.uint8), taken=np.zeros(3, np.int64))
    arena.close()
    file.close()


# ---- loading ends early ------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def test_a_load_that_fails_leaves_nothing_behind(tmp_path):
    """An error in the middle of loading (of the progress callback, of the machine) frees threads and memory at once."""
    out = python("""if True:
        import os, sys, time
        from core_tools import open_engine
        from numainfer import _core
        from numainfer.engine import store

        def left():
            return len(os.listdir("/proc/self/task")), int(open("/proc/self/statm").read().split()[0]) * 4096

        class Stop(BaseException):
            pass

        def progress(done, total):
            if done > total / 2:
                raise Stop

        def attempt():
            try:
                with open_engine(sys.argv[1], progress=progress, placement="replicate"):
                    raise SystemExit("was not stopped")
            except Stop:
                pass
            end = time.monotonic() + 5
            while len(os.listdir("/proc/self/task")) > before[0] and time.monotonic() < end:
                time.sleep(0.01)

        before = left()
        attempt()
        first = left()
        for _ in range(20):
            attempt()
        after = left()
        assert after[0] == before[0], (before, after)
        assert after[1] - first[1] < 16 << 20, (first, after)
        assert not store._entries
        print("fine")
    """, tiny(tmp_path, "llama", "F32", layers=8), NUMAINFER_FAKE_NODES="2")
    assert out.strip() == "fine"


def write_zeros(path, start, end):
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(bytes(end - start))


def by_offset(path):
    with GGUFFile(path) as file:
        return sorted(file.tensors.values(), key=lambda t: t.offset)


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "F32"])
def test_zeros_to_the_end_are_a_broken_download(tmp_path, kind):
    path = tiny(tmp_path, "llama", kind)
    tensors = by_offset(path)
    last = [t for t in tensors if len(t.shape) == 2][-1]
    end = tensors[-1].offset + tensors[-1].n_bytes
    write_zeros(path, last.offset, end)  # with the vectors behind it, if there are any
    with pytest.raises(CorruptModel, match=f"{re.escape(last.name)}.*all of its {last.n_bytes} bytes are zero") as caught:
        with open_engine(path):
            pass
    assert caught.value.offset == last.offset and caught.value.path == str(path)
    with open(path, "r+b") as file:  # rows of zeros at the end of a matrix are padding
        file.seek(last.offset)
        file.write(b"\1")
    with open_engine(path):
        pass


def test_one_value_makes_a_matrix_not_zero():
    code, rows, nonzero = FORMATS["F32"]["code"], np.zeros((48, 64), np.float32), np.zeros(1, np.uint8)
    arena = _core.Arena(_core.packed_bytes(code, *rows.shape))
    with open_team() as team:
        for last in (0, 1):
            rows[-1, -1] = last
            team.fill([((code, *rows.shape, [arena.address], None, 1), rows.ctypes.data, rows.strides[0])], nonzero)
            assert nonzero[0] == last
    arena.close()


def test_a_matrix_of_zeros_in_the_midst_is_told(tmp_path, caplog):
    """A block that somebody made the identity."""
    path = tiny(tmp_path, "llama", "Q8_0")
    with open_engine(path) as engine:
        before = logits(engine, IDS)
    for tensor in by_offset(path):
        if tensor.name in ("blk.0.attn_output.weight", "blk.0.ffn_down.weight"):
            write_zeros(path, tensor.offset, tensor.offset + tensor.n_bytes)
    with caplog.at_level("WARNING", "numainfer"), open_engine(path) as engine:
        after = logits(engine, IDS)
    assert np.isfinite(after).all() and (after != before).any()
    told = [r.getMessage() for r in caplog.records if "zero" in r.getMessage()]
    assert len(told) == 1 and "blk.0.attn_output.weight" in told[0] and "blk.0.ffn_down.weight" in told[0] and str(path) in told[0]


def ends_in_zeros(file, caplog):
    """What check_complete says: the offset that it raises with, or the warnings that it logs."""
    caplog.clear()
    with GGUFFile(file) as gguf, caplog.at_level("WARNING", "numainfer"):
        try:
            gguf.check_complete()
        except CorruptModel as e:
            assert e.path == str(file) or "-of-" in str(file)
            return e.path, e.offset
    return [r.getMessage() for r in caplog.records]


def test_where_zeros_at_the_end_begin(tmp_path, caplog):
    big = bytes(range(256)) * 4096 * 3  # 3 MiB

    def model(*tensors):
        g = GGUF()
        for i, (dims, data) in enumerate(tensors):
            g.tensor(f"t{i}", dims, 0, data)
        return g.write(tmp_path / "m.gguf")

    matrix, vector = (1024, 768), (64,)
    path = model((matrix, big), (matrix, bytes(len(big))), (vector, bytes(256)))
    second = by_offset(path)[1].offset
    assert ends_in_zeros(path, caplog) == (str(path), second)
    assert ends_in_zeros(model((matrix, big), (matrix, bytes(len(big))), (vector, bytes(255) + b"\1")), caplog) == []
    assert ends_in_zeros(model((matrix, big), (vector, bytes(256))), caplog) == []  # a bias may be zero
    assert ends_in_zeros(model((matrix, bytes(len(big))), (matrix, big)), caplog) == []
    for kept, n in ((1 << 20, 1), ((2 << 20) - 1, 1), ((2 << 20) + 1, 0)):
        assert len(ends_in_zeros(model((matrix, b"\1" * kept + bytes(len(big) - kept))), caplog)) == n, kept
    (told,) = ends_in_zeros(model((matrix, b"\1" * 1000 + bytes(len(big) - 1000)), (vector, bytes(256))), caplog)
    assert f"ends in {len(big) - 1000} bytes of zeros" in told and "'t0'" in told


def test_every_part_of_a_split_model_must_be_complete(tmp_path, caplog):
    paths = [tmp_path / f"m-{i + 1:05}-of-00003.gguf" for i in range(3)]
    for zero in (None, 0, 1, 2):
        for i, path in enumerate(paths):
            g = part(i, 3, 6)
            g.tensor(f"m{i}", (8, 4), 0, bytes(128) if i == zero else b"\1" * 128).write(path)
        found = ends_in_zeros(paths[0], caplog)
        assert found == [] if zero is None else found[0] == str(paths[zero])


def test_a_file_that_is_closed_while_it_is_read(sheet):
    """The load's descriptors are its own: it ends, and does not read whatever file gets their numbers next."""
    file, others = GGUFFile(sheet.file.path), []

    def close(done, total):
        file.close()
        others.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(20))

    with open_team(1, 2) as team:
        replicas = Replicas([sheet["big"]], [0], "local")
        with pytest.raises(ModelClosed):
            replicas.fill(team, file, close)
        replicas.close()
    for fd in others:
        os.close(fd)


def test_the_piece_that_the_file_cannot_give_is_named(sheet, tmp_path):
    w, tensor = sheet["big"], sheet.file.tensors["big"]
    (tmp_path / "short").write_bytes(bytes(tensor.data[:-1]))
    arena, sink = _core.Arena(w.packed_bytes), os.open(tmp_path, os.O_RDONLY)  # a folder cannot be read
    entry = w.code, w.n, w.k, [arena.address], None, 1
    with open_team(1, 2) as team, tensor.open() as whole, open(tmp_path / "short", "rb") as short:
        good = (entry, (whole.fileno(), tensor.offset), 4 * w.k)
        for bad in short.fileno(), sink:
            assert team.fill([good, (entry, (bad, 0), 4 * w.k), good], np.zeros(3, np.uint8)) == 1
        assert team.fill([good], np.zeros(1, np.uint8)) == -1
    os.close(sink)
    arena.close()


def test_vectors_of_zeros_are_fine(tmp_path):
    path = tiny(tmp_path, "llama", "Q8_0")
    with GGUFFile(path) as gguf:
        norm = gguf.tensors["blk.0.attn_norm.weight"]
    with open(path, "r+b") as file:
        file.seek(norm.offset)
        file.write(bytes(norm.n_bytes))
    with open_engine(path):
        pass


def test_interrupt_while_loading(tmp_path):
    """Ctrl-C ends the load with KeyboardInterrupt; the next load works."""
    path = tiny(tmp_path, "llama", "F32", layers=8)
    out = python("""if True:
        import os, signal, sys
        from core_tools import open_engine

        calls = []

        def progress(done, total):
            calls.append(done)
            if len(calls) == 1:
                os.kill(os.getpid(), signal.SIGINT)

        try:
            with open_engine(sys.argv[1], progress=progress):
                print("was not stopped")
        except KeyboardInterrupt:
            with open_engine(sys.argv[1]) as engine:
                print("fine", len(calls))
    """, path)
    assert out.strip() == "fine 1"


def test_types_we_lack_are_named(tmp_path):
    sheet = Sheet(tmp_path / "sheet.gguf", {"cube": np.ones((2, 3, 2, 32), np.float32)})
    with pytest.raises(UnsupportedModel, match=r"shape of tensor cube = \(2, 3, 2, 32\)"):
        sheet["cube"]
    sheet.close()


# ---- experts -----------------------------------------------------------------------------------------------------------


EXPERTS, ROW_COUNTS = 5, (1, 16, 37, 96)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """(E, N, K) of every type, with odd and even numbers of rows; one that takes many runs of 2 MiB, each of several experts."""
    rng = np.random.default_rng(7)
    tensors = {}
    for kind in TYPES:
        k = 2 * block(kind) if block(kind) > 1 else 40
        for n in ROW_COUNTS:
            tensors[f"{kind} {n}"] = np.stack([random_weights(rng, n, k, kind) for _ in range(EXPERTS)]), kind
    tensors["long"] = rng.standard_normal((40, 70, 1024)).astype(np.float32)
    tensors["plain"] = rng.standard_normal((64, 96)).astype(np.float32)
    sheet = Sheet(tmp_path_factory.mktemp("experts") / "sheet.gguf", tensors)
    yield sheet
    sheet.close()


@pytest.mark.parametrize("n_nodes", [1, 2, 3])
@pytest.mark.parametrize("policy", ["replicate", "interleave", "local", "shard"])
def test_every_expert_lies_where_it_should(experts, policy, n_nodes):
    """Of each expert every node holds the rows of its share, packed as a matrix of its own."""
    if policy == "local" and n_nodes > 1:
        pytest.skip("local is one node")
    weights = [experts[name] for name in experts.exact]
    with open_team(n_nodes, 2) as team:
        bounds = {}
        for w in weights:
            groups = -(-w.n // _core.ROWS)
            bounds[w.name] = [groups * i // n_nodes for i in range(n_nodes + 1)]
        replicas = Replicas(weights, [0] * n_nodes, policy, bounds if policy == "shard" else None)
        for arena in replicas.arenas:  # nothing that is right by being fresh
            ctypes.memset(arena.address, 0xA5, arena.bytes)
        replicas.fill(team, experts.file)
        for w in weights:
            exact, seen = experts.exact[w.name].astype(np.float32), np.zeros((w.experts, w.n), bool).squeeze()
            for node in range(n_nodes):
                found = unpacked(replicas.entry(w), node)
                rows = slice(None) if policy != "shard" else slice(*(bounds[w.name][i] * _core.ROWS for i in (node, node + 1)))
                np.testing.assert_array_equal(found[..., rows, :], exact[..., rows, :])
                assert np.isfinite(found).all(axis=-1).sum() == exact[..., rows, 0].size
                seen[..., rows] = True
            assert seen.all()
        total = sum(-(-w.packed_bytes // 64) * 64 for w in weights)
        copies = {"replicate": n_nodes}.get(policy, 1)
        assert copies * total <= sum(arena.bytes for arena in replicas.arenas) <= copies * total + n_nodes * (4096 + 64 * len(weights))
        replicas.close()


def test_shards_of_experts_do_not_overlap(experts):
    weights = [experts[name] for name in experts.exact]
    bounds = {w.name: [0, (-(-w.n // _core.ROWS) + 1) // 3, -(-w.n // _core.ROWS)] for w in weights}
    replicas = Replicas(weights, [0, 0], "shard", bounds)
    for node, arena in enumerate(replicas.arenas):
        places = []
        for w in weights:
            group, (first, end) = _core.packed_bytes(w.code, 1, w.k), bounds[w.name][node : node + 2]
            start = replicas.entry(w)[3][node] + first * group
            places.append((start, start + w.experts * (end - first) * group))
        places.sort()
        assert places[0][0] >= arena.address and places[-1][1] <= arena.address + arena.bytes
        assert all(a_end <= b for (_, a_end), (b, _) in pairwise(places)) and all(start % 64 == 0 for start, _ in places)
    replicas.close()


def test_experts_in_the_catalog(experts):
    w = experts["Q4_K 37"]
    assert isinstance(w, Matrix) and (w.experts, w.n, w.k, w.bias) == (EXPERTS, 37, 512, None)
    assert w.packed_bytes == EXPERTS * _core.packed_bytes(w.code, 37, 512) and experts["plain"].experts == 1
    assert w.path == str(experts.file.path)


def test_progress_counts_rows_of_all_experts(experts):
    """What is told to be in place is there, in the experts' order; and it counts up to the file's bytes."""
    w, seen, ticks = experts["long"], [], []
    with open_team(1, 2) as team:
        replicas = Replicas([w], [0], "local")
        replicas.fill(team, experts.file, lambda done, total: seen.append((done, total)))
        n_bytes = experts.file.tensors["long"].n_bytes
        assert seen[-1] == (n_bytes, n_bytes) and all(done % (4 * w.k) == 0 for done, _ in seen)

        def tick(piece, row):
            assert 0 <= row < w.experts * w.n and row % w.n % _core.ROWS == 0
            ticks.append(piece * w.experts * w.n + row)

        with experts.file.tensors["long"].open() as file:
            pieces = [(replicas.entry(w), (file.fileno(), experts.file.tensors["long"].offset), 4 * w.k)] * 60
            assert team.fill(pieces, np.zeros(60, np.uint8), tick) == -1
        assert ticks and ticks == sorted(ticks) and ticks[-1] > 0
        replicas.close()


def test_a_bias_goes_with_its_weight(tmp_path):
    rng = np.random.default_rng(8)
    tensors = {"a.weight": (48, 64), "a.bias": 48, "b.weight": (48, 64), "up.weight": (3, 48, 64), "up.bias": (3, 48), "n.weight": 64,
               "n.bias": 64, "bias.weight": 64, "alone.bias": 64}  # fmt: skip
    sheet = Sheet(tmp_path / "sheet.gguf", {name: rng.standard_normal(shape) for name, shape in tensors.items()})
    for name in ("a", "up", "n"):
        found, wanted = sheet[f"{name}.weight"].bias, sheet.exact[f"{name}.bias"].ravel()
        np.testing.assert_array_equal(found.values, wanted)
        assert found.name == f"{name}.bias" and found.path == str(sheet.file.path) and sheet[f"{name}.weight"].bias is found
    assert sheet["b.weight"].bias is None and sheet["bias.weight"].bias is None and isinstance(sheet["alone.bias"], Vector)
    sheet.close()
    for weight, bias, says in (((48, 64), 47, r"tensor 'a.bias' has the shape \(47,\), wanted \(48,\), a value for each row of a.weight"),
                               ((48, 64), (1, 48), r"tensor 'a.bias' has the shape \(1, 48\), wanted \(48,\)"),
                               ((3, 48, 64), 48, r"tensor 'a.bias' has the shape \(48,\), wanted \(3, 48\)"),
                               (64, 32, r"tensor 'a.bias' has the shape \(32,\), wanted \(64,\)")):  # fmt: skip
        sheet = Sheet(tmp_path / "wrong.gguf", {"a.weight": np.ones(weight), "a.bias": np.ones(bias), "wide": np.ones((2, 96))})
        with pytest.raises(CorruptModel, match=says):
            sheet["a.weight"]
        sheet.close()


# ---- sharing between loads of the same file ---------------------------------------------------------------------------


def test_a_second_load_attaches_to_the_replicas_that_stand(tmp_path, monkeypatch):
    path, others = tiny(tmp_path, "llama", "Q8_0"), set(store._entries)
    pretend(monkeypatch, 2, 1)
    with open_engine(path, placement="replicate") as a:
        wanted, arenas = logits(a, IDS), a.replicas.arenas
        with open_engine(path, placement="replicate", n_ctx=64, n_batch=3) as b:
            assert b.replicas is a.replicas
        same_bits(logits(a, IDS), wanted)  # still there
        with open_engine(path, placement="shard") as c:
            assert c.replicas is not a.replicas
            same_bits(logits(c, IDS), wanted)
        with open_engine(path, placement="interleave") as c:
            assert c.replicas is not a.replicas and len(c.replicas.arenas) == 1
        link = tmp_path / "link.gguf"
        link.symlink_to(path)
        with open_engine(link, placement="replicate") as d:
            assert d.replicas is a.replicas
    assert set(store._entries) == others and all(arena.address == 0 for arena in arenas)


def test_a_second_load_waits_while_the_first_one_fills():
    began, filled, made, shares = threading.Event(), threading.Event(), [], []

    def make():
        made.append(SimpleNamespace(close=lambda: None))
        began.set()
        filled.wait(10)
        return made[-1]

    threads = [threading.Thread(target=lambda: shares.append(store.Share("a file", make))) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert began.wait(10)
    time.sleep(0.05)
    assert not shares and len(made) == 1
    filled.set()
    for thread in threads:
        thread.join(10)
    assert [share.replicas for share in shares] == made * 2
    for share in shares:
        share.close()
    assert not store.stands("a file")


def test_copies_of_other_workers_or_nodes_are_not_shared(tmp_path, monkeypatch):
    path = tiny(tmp_path, "llama", "Q8_0")
    pretend(monkeypatch, 2, 2)
    with open_engine(path, placement="shard", threads=[1, 2]) as a, open_engine(path, placement="shard", threads=[2, 1]) as b:
        assert b.replicas is not a.replicas
        same_bits(logits(b, IDS), logits(a, IDS))
    real = topologies.topology().nodes[0]
    nodes = tuple(topologies.Node(number, real.cpus[:1], real.total, real.free) for number in (0, 1))
    monkeypatch.setattr(topologies, "topology", lambda: topologies.Topology(nodes))
    with open_engine(path, nodes=[0], verify=False) as a, open_engine(path, nodes=[1], verify=False) as b:
        assert b.replicas is not a.replicas


def test_a_changed_file_is_loaded_anew(tmp_path):
    path = tiny(tmp_path, "llama", "Q8_0", name="m")
    with open_engine(path) as a:
        before = logits(a, IDS)
        os.remove(path)
        tiny(tmp_path, "llama", "Q8_0", name="m", seed=1)
        with open_engine(path) as b:
            assert b.replicas is not a.replicas
            assert (logits(b, IDS) != before).any()
        same_bits(logits(a, IDS), before)


def test_another_file_of_equal_size_and_time_is_loaded_anew(tmp_path):
    """As ``cp -p`` and ``tar x`` leave them."""
    path, new = tiny(tmp_path, "llama", "Q8_0", name="m"), tiny(tmp_path, "llama", "Q8_0", name="n", seed=1)
    for file in path, new:
        os.utime(file, ns=(10**18, 10**18))
    with open_engine(path) as a:
        os.replace(new, path)
        with open_engine(path) as b:
            assert b.replicas is not a.replicas


def test_a_file_that_is_written_to_while_it_is_read(tmp_path):
    path = tiny(tmp_path, "llama", "Q8_0", name="m")
    new = tiny(tmp_path, "llama", "Q8_0", name="n", seed=1).read_bytes()

    def overwrite(done, total):
        with open(path, "r+b") as file:
            file.write(new)

    others = set(store._entries)
    with pytest.raises(CorruptModel, match="written to while it was read"), open_engine(path, progress=overwrite):
        pass
    assert set(store._entries) == others


def test_a_load_within_the_load_of_the_same_file(tmp_path):
    path, errors = tiny(tmp_path, "llama", "Q8_0"), []

    def again(done, total):
        if not errors:
            with pytest.raises(RuntimeError) as e, open_engine(path):
                pass
            errors.append(str(e.value))

    with open_engine(path, progress=again) as engine:
        assert len(errors) == 1 and "in the midst of loading" in errors[0]
        assert logits(engine, IDS).any()


def test_a_failed_fill_does_not_poison_the_store():
    def fail():
        raise Stop

    for _ in range(2):
        with pytest.raises(Stop):
            store.Share("key", fail)
        assert "key" not in store._entries


# ---- the page cache ----------------------------------------------------------------------------------------------------


def resident(path):
    """Share of a file's pages in the page cache, by mincore."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as memory:
        whole = np.frombuffer(memory, np.uint8)
        pages = np.empty(-(-len(whole) // mmap.PAGESIZE), np.uint8)
        if libc.mincore(whole.ctypes.data, len(whole), pages.ctypes.data):
            pytest.skip(f"mincore: {os.strerror(ctypes.get_errno())}")
        del whole
    return (pages & 1).mean()


def test_the_file_does_not_stay_in_the_page_cache(tmp_path):
    path = tiny(tmp_path, "llama", "F32", layers=10, width=512, feed_forward=512)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)  # pages that are not written yet cannot be dropped
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    if resident(path) > 0.1:
        pytest.skip("this file system keeps its pages")
    path.read_bytes()
    assert resident(path) > 0.9
    with open_engine(path):
        assert resident(path) < 0.1


def test_reading_after_the_release_gives_the_same_bytes(tmp_path):
    path = tiny(tmp_path, "llama", "Q4_0")
    with GGUFFile(path) as file:
        before = {name: bytes(tensor.data) for name, tensor in file.tensors.items()}
        for tensor in file.tensors.values():
            tensor.release(0, tensor.n_bytes)
        assert {name: bytes(tensor.data) for name, tensor in file.tensors.items()} == before
