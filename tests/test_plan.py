"""The plan by itself: barriers where they must stand and nowhere else, memory that is never shared by what lives, errors that tell."""

import gc
from itertools import pairwise
from time import thread_time

import numpy as np
import pytest
from core_tools import GOLDEN, Sheet, open_team
from tiny_models import tiny

from numainfer import _core
from numainfer.engine.architectures import build
from numainfer.engine.architectures.blocks import Residual
from numainfer.errors import CorruptModel, PlanError, UnsupportedModel
from numainfer.gguf.file import GGUFFile
from numainfer.engine.ops import NODE, PER_NODE, SHARED, TEAM, Attention, Cost
from numainfer.engine.plan import Plan
from numainfer.engine.weights import Catalog, Matrix, Vector

SIGNATURES = dict(_core.ops())


def plan_of(path, n_nodes, **more):
    with GGUFFile(path) as file:
        return build(Plan(n_nodes, more.pop("n_batch", 64), more.pop("n_ctx", 300), **more), Catalog(file))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Three layers of 6 heads over 2 kv-heads."""
    return tiny(tmp_path_factory.mktemp("plan"), "llama", "Q4_K", layers=3, heads=6, kv_heads=2)


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("plan"), "gemma3", "Q8_0", layers=7, heads=4, kv_heads=2)


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    rng = np.random.default_rng(0)
    shapes = {"table": (37, 64), "square": (64, 64), "down": (32, 64), "wide": (96, 64), "norm": 64, "short": 32, "narrow": 16,
              "experts": (5, 48, 64)}
    sheet = Sheet(tmp_path_factory.mktemp("plan") / "sheet.gguf", {name: rng.standard_normal(s) for name, s in shapes.items()})
    yield sheet
    sheet.close()


# ---- barriers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_nodes", "team_barriers", "node_barriers"), [(1, 5, 5), (2, 5, 7), (3, 6, 6), (4, 6, 6)])
@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_a_dense_layer_has_five_team_barriers(request, model, n_nodes, team_barriers, node_barriers):
    """q/k/v, attention, its output, gate/up, down; one more where a kv-head's chunks lie on several nodes."""
    plan = plan_of(request.getfixturevalue(model), n_nodes)
    starts = [i for i, op in enumerate(plan.ops) if op.name == "norm" and not op.selected][::2]
    ends = [*starts[1:], next(i for i, op in enumerate(plan.ops) if op.selected)]
    # A layer, from after its first norm up to the next one's, so that each stage's barrier belongs to the op that waits.
    for i, (start, end) in enumerate(zip(starts, ends)):
        levels = [op.barrier for op in plan.ops[start + 1 : end + 1]]
        assert (levels.count(TEAM), levels.count(NODE)) == (team_barriers, node_barriers), f"layer {i}\n{plan}"


def accesses(plan, op):
    """(first byte, end, storage, written) of each operand; the KV memory is bytes of its own."""
    found = []
    for part, tensor in zip(SIGNATURES[op.name].split(), op.tensors):
        if tensor is not None:
            start, size = tensor.offset, tensor.parts(plan.n_batch)[1]
            if tensor.name.startswith("kv "):
                start, size = 2**60 + 2 * int(tensor.name.split()[1]), 1
            found.append((start, start + size, tensor.storage, part.partition(":")[2][0] == "w"))
    return found


def conflicts(plan):
    """(i, j, level): ops i < j touch the same bytes, one of them writing; the barrier that must stand between them."""
    touched, found = [accesses(plan, op) for op in plan.ops], []
    for j, second in enumerate(touched):
        for i, first in enumerate(touched[:j]):
            levels = [TEAM if a_storage == SHARED else NODE for a0, a1, a_storage, a_writes in first
                      for b0, b1, b_storage, b_writes in second
                      if a_storage == b_storage and (a_writes or b_writes) and a0 < b1 and b0 < a1]  # fmt: skip
            if levels:
                found.append((i, j, max(levels)))
    return found


def missing(pairs, levels):
    """Conflicts without a barrier of the needed strength between the ops."""
    return [(i, j) for i, j, level in pairs if level > max(levels[i + 1 : j + 1])]


@pytest.mark.parametrize("n_nodes", [1, 2, 3])
@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_barriers_are_enough_and_none_is_too_many(request, model, n_nodes):
    plan = plan_of(request.getfixturevalue(model), n_nodes, n_batch=3)
    levels, pairs = [op.barrier for op in plan.ops], conflicts(plan)
    assert not missing(pairs, levels)
    for i, level in enumerate(levels):
        if level:  # a weaker one, or none, would not do
            assert missing(pairs, levels[:i] + [level - 1] + levels[i + 1 :]), f"the barrier before op {i} is not needed\n{plan}"
    assert plan.barriers() == (levels.count(NODE), levels.count(TEAM))


# ---- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("n_nodes", [1, 2, 3])
@pytest.mark.parametrize("model", ["llama", "gemma3"])
def test_memory_is_never_shared_by_living_tensors(request, model, n_nodes, hidden):
    """Brute force over all ops and bytes: a tensor's bytes are its own from its first write to its last reader."""
    plan = plan_of(request.getfixturevalue(model), n_nodes, hidden=hidden, n_batch=2)
    owner = {SHARED: {}, PER_NODE: {}}
    for i, op in enumerate(plan.ops):
        operands = [(part.partition(":")[2][0] == "w", t) for part, t in zip(SIGNATURES[op.name].split(), op.tensors)
                    if t is not None and not t.name.startswith("kv ")]  # fmt: skip
        for written, tensor in sorted(operands, key=lambda o: not o[0]):  # what it writes first: that may not hit what it reads
            size, memory = tensor.parts(plan.n_batch)[1], owner[tensor.storage]
            assert tensor.offset >= 0 and tensor.offset % 64 == 0
            assert size > 0 and tensor.offset + size <= plan.arena_bytes[tensor.storage]
            for line in range(tensor.offset // 64, -(-(tensor.offset + size) // 64)):
                if written:
                    memory[line] = tensor
                assert memory.get(line) is tensor, f"op {i} ({op.name}): {tensor.name} was overwritten by {memory.get(line)}"
    sizes = [t.parts(plan.n_batch)[1] for t in plan.tensors if t.storage == PER_NODE]
    assert plan.arena_bytes[PER_NODE] < sum(sizes) / 2  # memory is reused


def test_forms_of_a_tensor_do_not_overlap(llama):
    plan = plan_of(llama, 2)
    _, tensors = plan.arrays()
    for record, tensor in zip(tensors, plan.tensors):
        if tensor.n_bytes or tensor.name.startswith("kv "):
            continue
        rows, width = plan.n_batch, tensor.width
        sizes = {"f": 4 * width, "q": width, "d": width // 8, "m": width // 8, "s": width // 8}
        used = sorted((record[form], record[form] + rows * size) for form, size in sizes.items() if record[form] >= 0)
        assert used and all(a1 <= b0 for (_, a1), (b0, _) in pairwise(used))
        assert used[0][0] == tensor.offset and used[-1][1] <= tensor.offset + tensor.parts(plan.n_batch)[1]
        assert (record["q"] >= 0) == (record["d"] >= 0) == ("q" in tensor.forms)


def test_only_the_forms_that_someone_reads_are_there(llama, tmp_path):
    def forms(path, name):
        return [t.forms for t in plan_of(path, 1).tensors if t.name == name]

    assert all(f == {"q", "m"} for f in forms(llama, "h"))  # Q4_K: quants, and sums for the minimum
    assert all(f == {"f"} for f in forms(tiny(tmp_path, "llama", "F16"), "h"))
    assert all(f == {"q", "s"} for f in forms(tiny(tmp_path, "llama", "Q4_0"), "h"))
    assert all(f == {"q"} for f in forms(tiny(tmp_path, "llama", "Q8_0"), "h"))


def test_memory_does_not_grow_with_the_layers(tmp_path):
    few, many = (plan_of(tiny(tmp_path, "llama", "Q8_0", layers=n, name=f"l{n}"), 2) for n in (2, 12))
    assert few.arena_bytes == many.arena_bytes
    assert many.kv_bytes == 6 * few.kv_bytes


# ---- errors ------------------------------------------------------------------------------------------------------------


def attend(p, s, q=64, k=32, v=32, rope=None, norms=None, **more):
    names = {32: "down", 64: "square", 96: "wide"}
    x = p.embed(s["table"])
    q, k, v = (p.matmul(x, s[names[n]]) for n in (q, k, v))
    shape = {"heads": 4, "kv_heads": 2, "key_length": 16, "value_length": 16, "rope_dim": 16, "neox": False, "scale": 0.25} | more
    rope = p.rope_table(s.catalog.constant(f"rope{rope}", np.ones(rope))) if rope else None
    return p.attend(q, k, v, Attention(**shape), rope, **(norms or {}))


def several(p, s, form="f", rows=3):
    """A tensor of three rows per token, as if an op had written it."""
    tensor = p._tensor("several", 64, PER_NODE, form, per_token=rows)
    tensor.first = 0
    return tensor


@pytest.mark.parametrize(("bad", "says"), [
    (lambda p, s: p.embed(s["norm"]), "embed: operand norm is a vector of 64 values, wanted a matrix"),
    (lambda p, s: p.matmul(p.embed(s["table"]), s["norm"]), "matmul: operand norm is a vector of 64 values, wanted a matrix"),
    (lambda p, s: p.matmul(p.matmul(p.embed(s["table"]), s["down"]), s["square"]),
     r"matmul: operand W \(square\) has width 64, wanted 32"),
    (lambda p, s: p.logits(p.embed(s["table"]), s["short"]), "matmul: operand short is a vector"),
    (lambda p, s: p.norm(p.embed(s["table"]), s["short"], 1e-6), r"norm: operand w \(short\) has width 32, wanted 64"),
    (lambda p, s: p.norm(p.embed(s["table"]), s["square"], 1e-6),
     r"norm: operand w \(square\) is a matrix of 64 x 64 values, wanted a vector of 64"),
    (lambda p, s: p.norm(p.embed(s["table"]), s["norm"], 1e-6, p.matmul(p.embed(s["table"]), s["down"])),
     r"norm: operand y \(down\) has width 32, wanted 64"),
    (lambda p, s: p.norm(p.embed(s["table"]), s["norm"], 1e-6, p.embed(s["table"]), s["short"]),
     r"norm: operand post \(short\) has width 32, wanted 64"),
    (lambda p, s: p.gated(p.embed(s["table"]), p.matmul(p.embed(s["table"]), s["down"]), "silu"),
     r"gated: operand up \(down\) has width 32, wanted 64"),
    (lambda p, s: attend(p, s, q=32), r"attend: operand q \(down\) has width 32, wanted 64"),
    (lambda p, s: attend(p, s, k=64), r"attend: operand k \(square\) has width 64, wanted 32"),
    (lambda p, s: attend(p, s, v=96), r"attend: operand v \(wide\) has width 96, wanted 32"),
    (lambda p, s: attend(p, s, norms={"q_norm": s["short"]}), r"attend: operand q_norm \(short\) has width 32, wanted 16"),
    (lambda p, s: attend(p, s, norms={"k_norm": s["short"]}), r"attend: operand k_norm \(short\) has width 32, wanted 16"),
    (lambda p, s: attend(p, s, heads=8, kv_heads=3, key_length=8, q=64, k=32), r"attend: operand k \(down\) has width 32, wanted 24"),
    (lambda p, s: p.matmul(p.embed(s["table"]), s["experts"]),
     "matmul: operand experts has 5 matrices of 48 x 64 values, wanted 1"),
    (lambda p, s: p.embed(s["experts"]), "embed: operand experts has 5 matrices of 48 x 64 values, wanted 1"),
    (lambda p, s: p.norm(p.embed(s["table"]), s["norm"], 1e-6, p.embed(s["table"]), z=p.matmul(p.embed(s["table"]), s["down"])),
     r"norm: operand z \(down\) has width 32, wanted 64"),
    (lambda p, s: p.add(p.embed(s["table"]), p.embed(s["table"]), z=p.embed(s["table"]), z_post=s["short"]),
     r"add: operand z_post \(short\) has width 32, wanted 64"),
])  # fmt: skip
def test_errors_name_op_operand_found_and_wanted(sheet, bad, says):
    plan = Plan(2, 8, 64)
    with pytest.raises(CorruptModel, match=f"sheet.gguf: {says}"):
        bad(plan, sheet)


@pytest.mark.parametrize(("bad", "says"), [
    (lambda p, s: p.matmul(p.embed(s["table"])), "one to three matrices, found 0"),
    (lambda p, s: p.matmul(p.embed(s["table"]), *[s["square"]] * 4), "one to three matrices, found 4"),
    (lambda p, s: p.gated(p.embed(s["table"]), p.embed(s["table"]), "tanh"), "gated: activation 'tanh'; wanted one of silu, gelu, sigmoid"),
    (lambda p, s: attend(p, s, rope=9), r"attend: operand rope \(rope\) has width 18, wanted 16"),
    (lambda p, s: attend(p, s, q=96, k=64, v=64, heads=3, kv_heads=2, key_length=32, value_length=32), "heads must be a multiple of"),
    (lambda p, s: attend(p, s, rope_dim=17), "rope_dim even"),
    (lambda p, s: attend(p, s, rope_dim=18), "at most the key width"),
    (lambda p, s: p.norm(p.embed(s["table"]), Vector("ours", np.ones(32, np.float32)), 1e-6),
     r"norm: operand w \(ours\) has width 32, wanted 64"),
    (lambda p, s: p.matmul(p.embed(s["table"]), Matrix("ours", "F32", 16, 32)), r"matmul: operand W \(ours\) has width 32, wanted 64"),
    (lambda p, s: p.norm(p.embed(s["table"]), s["norm"], 1e-6, z=p.embed(s["table"])), "norm: operand z without y"),
    (lambda p, s: p.norm(several(p, s), s["norm"], 1e-6, selected=True), r"norm: operand x \(several\) has 3 rows per token, wanted 1"),
    (lambda p, s: p.norm(p.embed(s["table"]), s["norm"], 1e-6, several(p, s)), r"norm: operand y \(several\) has 3 rows per token"),
    (lambda p, s: p.add(several(p, s), p.embed(s["table"])), r"add: operand y \(x\) has 1 row per token, wanted 3"),
    (lambda p, s: p.gated(several(p, s), p.embed(s["table"]), "silu"), r"gated: operand up \(x\) has 1 row per token, wanted 3"),
    (lambda p, s: p.logits(several(p, s), s["square"]), r"logits: operand h \(several\) has 3 rows per token, wanted 1"),
    (lambda p, s: p.matmul(several(p, s, "i"), s["square"]), r"matmul: operand h \(several\) holds ids, wanted floats"),
    (lambda p, s: p.matmul(p.matmul(p.embed(s["table"]), s["square"]), Matrix("ours", "Q8_0", 64, 64)),
     r"matmul: operand h \(square\) is a matrix's product, which nobody quantises"),
    (lambda p, s: p.norm(several(p, s, "i"), s["norm"], 1e-6), r"norm: operand x \(several\) holds ids, wanted floats"),
    (lambda p, s: p.gated(several(p, s, "i"), several(p, s), "silu"), r"gated: operand gate \(several\) holds ids, wanted floats"),
])  # fmt: skip
def test_what_an_architecture_does_wrong_is_not_the_files_fault(sheet, bad, says):
    plan = Plan(2, 8, 64)
    with pytest.raises(PlanError, match=says):
        bad(plan, sheet)


def test_kv_memory_beyond_what_an_op_can_name(sheet):
    attend(Plan(1, 8, 2**39 - 256), sheet)
    with pytest.raises(PlanError, match="attend: a context of 549755813888 tokens; wanted less than 549755813888"):
        attend(Plan(1, 8, 2**39), sheet)


def test_reading_before_writing_is_refused(sheet):
    other = Plan(1, 8, 64)
    x = other.embed(sheet["table"])
    y = other.matmul(x, sheet["square"])
    y.first = -1
    with pytest.raises(PlanError, match=r"gated: operand gate \(square\) is read before any op writes it"):
        other.gated(y, x, "silu")


def test_core_refuses_what_it_would_use_blindly(sheet):
    plan = Plan(1, 8, 64)
    plan.logits(plan.embed(sheet["table"]), sheet["square"])
    plan.compile()
    with open_team() as team:
        for field, value, says in (("code", 99, "op 1 has code 99; codes are 0 to"), ("t", 5, "op 1 .matmul. names tensor 5 of 1"),
                                   ("w", 7, "op 1 .matmul. names weight 7 of 2")):  # fmt: skip
            ops, tensors = plan.arrays()
            ops[field].reshape(2, -1)[1, 0] = value
            with pytest.raises(ValueError, match=says):
                _core.Plan(team, ops, tensors, [(0, 1, 1, [0], None, 1)] * 2, plan.arena_bytes, 8, [0], [0])


@pytest.mark.parametrize(("build", "says"), [
    (lambda p, s, x: p.matmul(x, s["square"], s["down"]), r"op 1 \(matmul\) writes square of width 64, but no op reads it"),
    (lambda p, s, x: p.gated(p.matmul(x, s["square"]), x, "silu"), r"op \d \(gated\) writes a of width 64"),
    (lambda p, s, x: p.norm(x, s["norm"], 1e-6, x), r"op 1 \(norm\) writes x of width 64"),
    (lambda p, s, x: p.embed(s["table"]), r"op 1 \(embed\) writes x of width 64"),
], ids=["matmul", "gated", "stream", "embed"])  # fmt: skip
@pytest.mark.parametrize("n_nodes", [1, 2])
def test_a_tensor_that_nobody_reads_is_refused(sheet, n_nodes, build, says):
    plan = Plan(n_nodes, 8, 64)
    x = plan.embed(sheet["table"])
    build(plan, sheet, x)
    plan.logits(x, sheet["square"])
    with pytest.raises(PlanError, match=says):
        plan.compile()


def test_rotations_that_no_layer_reads_are_left_out(sheet):
    """A file may say that no layer has a window, or that all have one: the other layers' table is not its fault."""
    made = []
    for extra in (False, True):
        plan = Plan(2, 8, 64)
        x = plan.embed(sheet["table"])
        if extra:
            plan.rope_table(sheet.catalog.constant("unread", np.ones(8)))
        plan.logits(plan.norm(x, sheet["norm"], 1e-6)[1], sheet["square"])
        made.append(plan.compile())
    assert str(made[0]) == str(made[1]) and made[0].weights == made[1].weights
    assert [(t.first, t.last) for t in made[0].tensors] == [(t.first, t.last) for t in made[1].tensors]


def test_a_weight_that_is_asked_for_and_not_used_is_refused(tmp_path):
    """The architecture forgot it; while values that it computes with (rope_freqs), and the logits' matrix of hidden states, need no op."""
    with GGUFFile(tiny(tmp_path, "llama", "Q8_0", tied=False, rope_freqs=True)) as file:
        for hidden in (False, True):
            build(Plan(1, 8, 64, hidden=hidden), Catalog(file))
    with GGUFFile(tiny(tmp_path, "llama", "Q8_0", layers=2, name="two")) as file:
        catalog, plan = Catalog(file), Plan(1, 8, 64)
        assert catalog.get("blk.1.ffn_norm_2.weight") is None
        x = plan.embed(catalog["token_embd.weight"])
        plan.logits(plan.norm(x, catalog["output_norm.weight"], 1e-6, selected=True)[1], catalog["token_embd.weight"])
        with pytest.raises(UnsupportedModel, match="tensor = 'blk.0.attn_norm.weight, .* and 15 more' is not supported"):
            catalog.check_all_used(plan.weights)
        catalog["blk.1.attn_q.weight"]
        with pytest.raises(PlanError, match="tensor blk.1.attn_q.weight was asked for, but no op of 'llama' reads it"):
            catalog.check_all_used(plan.weights)


def test_work_per_layer_does_not_grow_with_the_number_of_layers(sheet):
    """Nothing is searched for among all that came before: 32 times the layers would take 1,024 times as long, not about 32."""

    def seconds(layers):
        plan, start = Plan(2, 8, 64), thread_time()
        x = Residual(plan, plan.embed(sheet["table"]), 1e-6)
        for i in range(layers):
            h = x.norm(Vector(f"{i} norm", np.ones(64, np.float32)))
            a, b = plan.matmul(h, Matrix(f"{i} gate", "F32", 64, 64), Matrix(f"{i} up", "F32", 64, 64))
            x.add(plan.matmul(plan.gated(a, b, "silu"), Matrix(f"{i} down", "F32", 64, 64)))
        plan.logits(x.norm(sheet["norm"], selected=True), sheet["square"])
        plan.compile().arrays()
        return thread_time() - start

    gc.collect()
    gc.disable()  # its passes over all that the process holds belong to other tests
    try:
        few, many = min(seconds(128) for _ in range(5)), min(seconds(4096) for _ in range(2))
    finally:
        gc.enable()
    assert many < 200 * few, (few, many)


# ---- what ops cost -----------------------------------------------------------------------------------------------------


def test_an_op_tells_its_cost(sheet):
    plan = Plan(1, 8, 64)
    x = plan.embed(sheet["table"])
    a, b = plan.matmul(x, sheet["square"], sheet["wide"])
    plan.logits(x, sheet["down"])
    embed, both, last = plan.ops
    assert embed.cost(5) == Cost(0, 0, 0)
    size = {name: sheet[name].packed_bytes for name in ("square", "wide", "down")}
    assert both.cost(1) == Cost(size["square"] + size["wide"], 160 * 64) and both.cost(7) == Cost(both.cost(1).n_bytes, 7 * 160 * 64)
    assert [(w.name, n, macs) for w, n, macs in last.products(3)] == [("down", size["down"], 3 * 32 * 64)]
    assert both.cost(0) == Cost(0, 0, 0)
    plan.add(x, a)
    assert plan.ops[-1].cost(3) == Cost(0, 0, 3 * 64 * 4)  # of what a matrix made every node reads all
    two = Plan(2, 8, 64)
    two.add(two.embed(sheet["table"]), two.matmul(two.embed(sheet["table"]), sheet["square"]))
    assert [op.cost(3).exchanged for op in two.ops] == [0, 0, 0, 3 * 64 * 4, 0] and two.ops[3].name == "gather"
    several_rows = Plan(1, 8, 64)
    h = several(several_rows, sheet)
    several_rows.matmul(h, sheet["square"])
    assert several_rows.ops[-1].cost(2) == Cost(size["square"], 2 * 3 * 64 * 64)


# ---- looking -----------------------------------------------------------------------------------------------------------


def test_print_shows_ops_operands_and_barriers(llama):
    plan = plan_of(llama, 2)
    text = str(plan)
    node, team = plan.barriers()
    assert f"{len(plan.ops)} ops, 3 layers, 2 nodes; barriers per step: {team} team, {node} node" in text
    assert f"{plan.arena_bytes[SHARED]:,} bytes shared, {plan.arena_bytes[PER_NODE]:,} per node, 64 tokens a step" in text
    lines = text.splitlines()[2:]
    assert len(lines) == len(plan.ops)
    for i, (line, op) in enumerate(zip(lines, plan.ops)):
        mark = ("", "node", "TEAM")[op.barrier]
        assert line.startswith(f"{i:4d} {mark:4} {op.name}"), line
    assert any("blk.2.ffn_gate.weight blk.2.ffn_up.weight" in line and "ffn_up[256]" in line for line in lines)
    assert repr(plan) == f"<Plan of {len(plan.ops)} ops, 3 layers>"


def test_one_of_a_kind_and_a_notebook(llama):
    plan = plan_of(llama, 1, n_batch=1)
    text, shown = str(plan), plan._repr_html_()
    assert ", 1 node; barriers" in text and "1 token a step" in text and "1 nodes" not in text
    assert shown.startswith(f"<details><summary>{text.splitlines()[0]}</summary>") and shown.count("<tr>") == len(plan.ops) + 1


def test_bytes_per_token_counts_each_matrix_once(llama):
    """All matrices that decoding reads, tied output included, the rows of the embedding not."""
    plan = plan_of(llama, 2)
    assert plan.bytes_per_token == sum(w.packed_bytes for w in plan.weights if len(getattr(w, "values", ())) == 0)


def test_golden_plans_build_for_any_number_of_nodes():
    for name in ("llama", "llama3", "gemma3"):
        for n_nodes in range(1, 9):
            assert plan_of(GOLDEN / f"{name}.gguf", n_nodes).out_width in (285, 383)
