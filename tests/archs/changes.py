"""Changes of a template's settings that keep its tensors' shapes right: what `sweep_architectures.py` tries, and `more.py` keeps.

Each case is a function of a template that returns a list of (label, Template), empty where it does not apply.
"""

import copy
import re

CASES = {}


def case(fn):
    CASES[fn.__name__] = fn
    return fn


class Template:
    """A template and what changes do to it; shapes are as in GGUF, the innermost dimension first."""

    def __init__(self, t):
        self.t = copy.deepcopy(t)
        self.kv, self.tensors, self.arch = self.t["kv"], self.t["tensors"], t["arch"]

    def has(self, pattern):
        return any(re.search(pattern, name) for name, *_ in self.tensors)

    def shape(self, name):
        return next((shape for found, shape, _ in self.tensors if found == name), None)

    def reshape(self, pattern, change):
        """change(shape) for all tensors of that name, in every layer."""
        for entry in self.tensors:
            if re.search(rf"(^|\.){pattern}$", entry[0]):
                entry[1] = change(list(entry[1]))

    def drop(self, pattern):
        before = len(self.tensors)
        self.tensors[:] = [entry for entry in self.tensors if not re.search(pattern, entry[0])]
        return len(self.tensors) < before

    def add(self, name, shape, kind="F32"):
        if self.shape(name) is None:
            self.tensors.append([name, shape, kind])

    @property
    def heads(self):
        h = self.kv.get("attention.head_count", 1)
        return h[0] if isinstance(h, list) else h

    @property
    def latent(self):
        return "attention.kv_lora_rank" in self.kv


def with_heads(t, heads, kv_heads):
    """The same width of all heads together, cut otherwise."""
    n = Template(t)
    if "attention.head_count" not in t["kv"]:
        return None
    if n.latent or isinstance(t["kv"]["attention.head_count"], list) or isinstance(t["kv"].get("attention.head_count_kv"), list):
        return None
    old, old_kv = n.heads, n.kv.get("attention.head_count_kv", n.heads)
    e = n.kv.get("attention.key_length", n.kv["embedding_length"] // old)
    ev = n.kv.get("attention.value_length", e)
    if e * old % heads or heads % kv_heads:
        return None
    new, newv = e * old // heads, ev * old // heads
    if new % 16 or newv % 16:
        return None
    n.kv["attention.head_count"], n.kv["attention.head_count_kv"] = heads, kv_heads
    if "attention.key_length" in n.kv:
        n.kv["attention.key_length"], n.kv["attention.value_length"] = new, newv
    rotated = n.kv.get("rope.dimension_count")
    if rotated is not None:
        n.kv["rope.dimension_count"] = rotated * new // e
    wide = n.has("attn_qkv")
    for entry in n.tensors:
        last, shape = entry[0].split(".", 2)[-1], entry[1]
        if last in ("attn_k.weight", "attn_k.bias"):
            shape[-1] = kv_heads * new
        elif last in ("attn_v.weight", "attn_v.bias"):
            shape[-1] = kv_heads * newv
        elif wide and last in ("attn_qkv.weight", "attn_qkv.bias"):
            shape[-1] = heads * new + kv_heads * (new + newv)
        elif last.startswith(("attn_q_norm", "attn_k_norm")):
            if shape[0] == e:
                shape[0] = new
            elif last.startswith("attn_k_norm"):
                shape[0] = kv_heads * new
        elif last.startswith("attn_sinks") or (last == "attn_gate.weight" and shape[-1] == old):
            shape[-1] = heads
        elif last.startswith(("rope_f", "rope_factors")) or entry[0].startswith("rope_f"):
            shape[0] = shape[0] * new // e
    del old_kv
    return n


@case
def heads(t):
    found = [(f"{h} over {g}", with_heads(t, h, g)) for h, g in ((8, 1), (8, 2), (8, 8), (4, 1), (4, 4), (2, 1), (2, 2), (1, 1))]
    return [(label, n) for label, n in found if n]


@case
def latent_heads(t):
    found = []
    for heads, nope, value, rank in ((2, 32, 48, 64), (8, 16, 16, 32), (4, 64, 32, 128), (3, 20, 24, 40)):
        n = Template(t)
        if not n.latent or "attention.key_length_mla" not in n.kv:
            return []
        rot, d = n.kv["rope.dimension_count"], n.kv["embedding_length"]
        n.kv |= {"attention.head_count": heads, "attention.kv_lora_rank": rank, "attention.key_length_mla": nope + rot,
                 "attention.value_length_mla": value, "attention.key_length": rank + rot, "attention.value_length": rank}
        for name, shape in (("attn_q.weight", [d, heads * (nope + rot)]), ("attn_k_b.weight", [nope, rank, heads]),
                            ("attn_v_b.weight", [rank, value, heads]), ("attn_output.weight", [heads * value, d]),
                            ("attn_kv_a_mqa.weight", [d, rank + rot]), ("attn_kv_a_norm.weight", [rank])):
            n.reshape(re.escape(name), lambda _, s=shape: list(s))
        n.reshape(r"attn_q_b\.weight", lambda s, w=heads * (nope + rot): [s[0], w])
        found.append((f"{heads} heads {nope}+{rot}, {value}, rank {rank}", n))
    return found


@case
def rotated(t):
    found = []
    for dims in (16, 32, 64):
        n = Template(t)
        e = n.kv.get("attention.key_length", n.kv["embedding_length"] // n.heads)
        if n.latent or dims > e or dims == n.kv.get("rope.dimension_count", e) or "rope.freq_base" not in n.kv or n.has("rope_f"):
            continue
        n.kv["rope.dimension_count"] = dims
        found.append((f"{dims} of {e}", n))
    return found


@case
def scaling(t):
    found = []
    for label, keys in (("none", {"type": "none", "factor": 4.0}), ("linear", {"type": "linear", "factor": 4.0}),
                        ("factor alone", {"factor": 2.0}),
                        ("yarn", {"type": "yarn", "factor": 4.0, "original_context_length": 128}),
                        ("yarn 40", {"type": "yarn", "factor": 40.0, "original_context_length": 4096}),
                        ("yarn log", {"type": "yarn", "factor": 8.0, "original_context_length": 64, "yarn_log_multiplier": 0.1}),
                        ("yarn log 0.0707", {"type": "yarn", "factor": 40.0, "original_context_length": 4096, "yarn_log_multiplier": 0.0707})):
        n = Template(t)
        if "rope.freq_base" not in n.kv or n.has("rope_f") or (n.latent and label == "none"):
            continue
        for key in [key for key in n.kv if key.startswith("rope.scaling.")]:
            del n.kv[key]
        n.kv |= {f"rope.scaling.{key}": value for key, value in keys.items()}
        found.append((label, n))
    return found


@case
def bases(t):
    found = []
    for label, keys in (("base 1e6", {"rope.freq_base": 1e6}), ("no base", {"rope.freq_base": None}),
                        ("swa base", {"rope.freq_base_swa": 500.0})):
        n = Template(t)
        if "rope.freq_base" not in n.kv or (label == "swa base" and "attention.sliding_window" not in n.kv):
            continue
        n.kv |= keys
        for key in [key for key, value in n.kv.items() if value is None]:
            del n.kv[key]
        found.append((label, n))
    return found


@case
def windows(t):
    found = []
    for label, keys in (("7", {"attention.sliding_window": 7}), ("50", {"attention.sliding_window": 50}),
                        ("period 2", {"attention.sliding_window_pattern": 2}), ("period 3", {"attention.sliding_window_pattern": 3}),
                        ("flags", {"attention.sliding_window_pattern": "flags"}), ("none", {"attention.sliding_window": None})):
        n = Template(t)
        if "attention.sliding_window" not in n.kv or (t["arch"] == "llama4" and "sliding_window" in keys):
            continue
        n.kv |= keys
        if n.kv.get("attention.sliding_window_pattern") == "flags":
            n.kv["attention.sliding_window_pattern"] = [i % 3 != 1 for i in range(n.kv["block_count"])]
        for key in [key for key, value in n.kv.items() if value is None]:
            del n.kv[key]
        found.append((label, n))
    return found


@case
def experts(t):
    found = []
    for count, used, groups in ((4, 1, None), (16, 2, None), (16, 5, None), (12, 12, None), (16, 4, (8, 3)), (16, 4, (2, 1)),
                                (32, 6, (4, 2)), (8, 3, (0, 0))):
        n = Template(t)
        if "expert_count" not in n.kv or isinstance(n.kv.get("expert_used_count"), list):
            return []
        old = n.kv["expert_count"]
        if groups:
            if groups[0] == 0 and "expert_group_count" not in n.kv:
                continue
            n.kv["expert_group_count"], n.kv["expert_group_used_count"] = groups
            if groups[0] == 0:
                del n.kv["expert_group_count"], n.kv["expert_group_used_count"]
        elif "expert_group_count" in n.kv:
            n.kv["expert_group_count"], n.kv["expert_group_used_count"] = 2, 1
            if used > count // 2:
                continue
        n.kv["expert_count"], n.kv["expert_used_count"] = count, used
        for entry in n.tensors:
            last = entry[0].split(".", 2)[-1]
            if re.match(r"ffn_(gate|up|down|gate_up)_exps|ffn_gate_inp\.|exp_probs_b", last) and entry[1][-1] == old:
                entry[1][-1] = count
        found.append((f"{used} of {count}, groups {groups}", n))
    return found


@case
def gating(t):
    found = []
    for keys in (*({"expert_gating_func": x} for x in (1, 2, 3, 4, None)), *({"expert_weights_norm": x} for x in (True, False, None)),
                 {"expert_weights_scale": 1.7}, {"expert_weights_scale": None},
                 {"expert_gating_func": 1, "expert_weights_norm": False, "expert_weights_scale": 16.0}):
        n = Template(t)
        if "expert_count" not in n.kv or all(n.kv.get(k) == v for k, v in keys.items()):
            continue
        n.kv |= keys
        for key in [key for key, value in n.kv.items() if value is None]:
            del n.kv[key]
        found.append((str(keys), n))
    n = Template(t)
    if n.drop(r"exp_probs_b"):
        found.append(("no bias for choosing", n))
    return found


@case
def shared(t):
    found = []
    for count in (0, 1, 2, 3):
        n = Template(t)
        old = n.kv.get("expert_shared_count")
        if old is None or old == count or not n.has("ffn_up_shexp"):
            continue
        n.kv["expert_shared_count"] = count
        if count == 0:
            n.drop("_shexp")
        else:
            width = n.kv["expert_feed_forward_length"]
            n.reshape(r"ffn_(gate|up)_shexp\.weight", lambda s, w=width * count: [s[0], w])
            n.reshape(r"ffn_down_shexp\.weight", lambda s, w=width * count: [w, s[1]])
            if "expert_shared_feed_forward_length" in n.kv:
                n.kv["expert_shared_feed_forward_length"] = width * count
        found.append((f"{count} instead of {old}", n))
    return found


def layer_of(t, i):
    return [[name.split(".", 2)[2], shape, kind] for name, shape, kind in t.tensors if name.startswith(f"blk.{i}.")]


@case
def leading(t):
    """0 to 2 layers without experts before the others."""
    found = []
    for count in (0, 1, 2):
        n = Template(t)
        old, blocks = n.kv.get("leading_dense_block_count"), n.kv["block_count"]
        if old is None or old == count or n.kv.get("interleave_moe_layer_step", 1) > 1:
            continue
        is_ffn = re.compile(r"ffn_(gate|up|down|gate_inp|gate_up)(_exps|_shexp)?\.|exp_probs_b")
        d, f = n.kv["embedding_length"], n.kv["feed_forward_length"]
        if isinstance(f, list):
            return []
        dense = [["ffn_gate.weight", [d, f], "F32"], ["ffn_up.weight", [d, f], "F32"], ["ffn_down.weight", [f, d], "F32"]]
        mixed = [entry for entry in layer_of(n, blocks - 1) if is_ffn.match(entry[0])]
        for i in range(blocks):
            rest = [entry for entry in layer_of(n, i) if not is_ffn.match(entry[0])]
            n.drop(rf"^blk\.{i}\.")
            n.tensors += [[f"blk.{i}.{name}", list(shape), kind] for name, shape, kind in rest + (dense if i < count else mixed)]
        n.kv["leading_dense_block_count"] = count
        found.append((f"{count} instead of {old}", n))
    return found


@case
def depth(t):
    """More layers, and fewer."""
    found = []
    for blocks in (1, 2, 6, 9):
        n = Template(t)
        old = n.kv["block_count"]
        if blocks == old or n.kv.get("leading_dense_block_count", 0) >= blocks or old > 12:
            continue
        lists = [k for k, v in n.kv.items() if isinstance(v, list) and len(v) == old]
        if blocks > old and (lists or n.kv.get("interleave_moe_layer_step", 1) > 1):
            continue
        last = layer_of(n, old - 1)
        for i in range(old, blocks):
            n.tensors += [[f"blk.{i}.{name}", list(shape), kind] for name, shape, kind in last]
        for i in range(blocks, old):
            n.drop(rf"^blk\.{i}\.")
        n.kv["block_count"] = blocks
        for key in lists:
            n.kv[key] = n.kv[key][:blocks]
        found.append((f"{blocks} instead of {old}", n))
    return found


@case
def ends(t):
    found = []
    n = Template(t)
    if n.drop(r"^output\.weight$"):
        n.drop(r"^output\.bias$")
        found.append(("tied", n))
    elif not n.has(r"^output\.weight$"):
        n.add("output.weight", [n.kv["embedding_length"], n.kv["vocab_size"]])
        found.append(("untied", n))
    for key, values in (("logit_scale", (0.3, 4.0)), ("embedding_scale", (3.0,)), ("residual_scale", (0.5,)), ("attention.scale", (0.11,)),
                        ("final_logit_softcapping", (2.0,)), ("attn_logit_softcapping", (3.0,)), ("attention.clamp_kqv", (0.7,)),
                        ("attention.layer_norm_rms_epsilon", (1e-2,)), ("attention.layer_norm_epsilon", (1e-2,)),
                        ("attention.temperature_scale", (0.3,)), ("attention.temperature_length", (16,)),
                        ("attention.output_scale", (0.3,)), ("attention.value_scale", (0.5,)), ("expert_weights_scale", (3.0,)),
                        ("interleave_moe_layer_step", (1, 3)), ("rope.scaling.attn_factor", (1.3,)),
                        ("rope.scaling.original_context_length", (32, 600)), ("swiglu_clamp_exp", ([0.5] * 99,))):
        for value in values:
            n = Template(t)
            if key in n.kv:
                n.kv[key] = value[: n.kv["block_count"]] if isinstance(value, list) else value
                found.append((f"{key} = {value}", n))
    return found


@case
def biases(t):
    n = Template(t)
    d, found = n.kv["embedding_length"], []
    if n.latent:
        return []
    if n.drop(r"attn_(q|k|v|qkv)\.bias$"):
        found.append(("without q, k, v", n))
    else:
        for name, shape, _ in list(n.tensors):
            if re.search(r"attn_(q|k|v|qkv)\.weight$", name):
                n.add(name.replace("weight", "bias"), [shape[-1]])
        found.append(("with q, k, v", n))
    n = Template(t)
    for name, _, _ in list(n.tensors):
        if re.search(r"attn_output\.weight$", name):
            n.add(name.replace("weight", "bias"), [d])
    found.append(("with output", n))
    n = Template(t)
    if n.drop(r"attn_[qk]_norm\.(weight|bias)$"):
        found.append(("without q/k norms", n))
    return found


@case
def fused(t):
    found = []
    n = Template(t)
    if n.shape("blk.0.attn_q.weight") and n.shape("blk.0.attn_k.weight"):
        d = n.kv["embedding_length"]
        for i in range(n.kv["block_count"]):
            q, k, v = (n.shape(f"blk.{i}.attn_{x}.weight") for x in "qkv")
            if not (q and k and v):
                return []
            for kind in ("weight", "bias"):
                if n.drop(rf"^blk\.{i}\.attn_[qkv]\.{kind}$"):
                    n.add(f"blk.{i}.attn_qkv.{kind}", [*([d] if kind == "weight" else []), q[-1] + k[-1] + v[-1]])
        found.append(("q, k, v", n))
    n = Template(t)
    if n.has("ffn_gate_exps"):
        for i in range(n.kv["block_count"]):
            for kind in ("weight", "bias"):
                shape = n.shape(f"blk.{i}.ffn_gate_exps.{kind}")
                if shape:
                    n.drop(rf"^blk\.{i}\.ffn_(gate|up)_exps\.{kind}$")
                    shape = list(shape)
                    shape[-2] *= 2
                    n.add(f"blk.{i}.ffn_gate_up_exps.{kind}", shape)
        found.append(("gate, up of experts", n))
    return found


@case
def arrays(t):
    """A value for each layer where there was one for all."""
    found = []
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_feed_forward_length",
                "expert_used_count"):
        n = Template(t)
        if key in n.kv and not isinstance(n.kv[key], list):
            n.kv[key] = [n.kv[key]] * n.kv["block_count"]
            found.append((key, n))
    return found


@case
def seeds(t):
    found = []
    for seed in (11, 12):
        n = Template(t)
        n.t["seed"] = seed
        found.append((str(seed), n))
    return found


@case
def further(t):
    """A layer that predicts further tokens behind the others, with its tensors and without."""
    found = []
    for label in ("with tensors", "without"):
        n = Template(t)
        d, blocks = n.kv["embedding_length"], n.kv["block_count"]
        if "nextn_predict_layers" in n.kv or blocks > 12 or any(isinstance(v, list) and len(v) == blocks for v in n.kv.values()):
            return []
        n.kv |= {"nextn_predict_layers": 1, "block_count": blocks + 1}
        if label == "with tensors":
            last = max((i for i in range(blocks) if n.shape(f"blk.{i}.attn_output.weight")), default=blocks - 1)  # it has attention
            n.tensors += [[f"blk.{blocks}.{name}", list(shape), kind] for name, shape, kind in layer_of(n, last)]
            n.tensors += [[f"blk.{blocks}.nextn.eh_proj.weight", [2 * d, d], "F32"]]
            n.tensors += [[f"blk.{blocks}.nextn.{name}.weight", [d], "F32"] for name in ("enorm", "hnorm", "shared_head_norm")]
        found.append((label, n))
    return found


@case
def long_rope(t):
    """Factors for contexts up to the original one, and beyond, as another kind of scaling."""
    found = []
    for original in (64, 600):
        n = Template(t)
        e = n.kv.get("attention.key_length", n.kv["embedding_length"] // n.heads)
        rotated = n.kv.get("rope.dimension_count", e)
        if n.latent or "rope.freq_base" not in n.kv or n.has("rope_f"):
            return []
        for key in [key for key in n.kv if key.startswith("rope.scaling.")]:
            del n.kv[key]
        n.kv |= {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": original, "rope.scaling.attn_factor": 1.19}
        n.tensors += [[f"rope_factors_{name}.weight", [rotated // 2], "F32"] for name in ("long", "short")]
        found.append((f"original {original}", n))
    return found


@case
def long_context(t):
    """Positions beyond one piece of Llama 4's."""
    n = Template(t)
    n.kv["context_length"] = 16_640
    return [("16640", n)] if n.arch == "llama4" else []


@case
def head_norms(t):
    """Norms of q and k with weights of each head's own."""
    n = Template(t)
    if n.arch not in ("command-r", "stablelm"):
        return []
    if n.arch == "command-r":  # of which llama.cpp expects them where there are 64 layers
        last = layer_of(n, n.kv["block_count"] - 1)
        for i in range(n.kv["block_count"], 64):
            n.tensors += [[f"blk.{i}.{name}", list(shape), kind] for name, shape, kind in last]
        n.kv["block_count"] = 64
    e = n.kv["embedding_length"] // n.heads
    for i in range(n.kv["block_count"]):
        n.add(f"blk.{i}.attn_q_norm.weight", [e, n.heads])
        n.add(f"blk.{i}.attn_k_norm.weight", [e, n.kv["attention.head_count_kv"]])
    found = [("in sequence", n)]
    if n.arch == "stablelm":
        beside = Template(n.t)
        beside.drop(r"ffn_norm\.")
        found.append(("side by side", beside))
    return found


@case
def without_positions(t):
    """Granite's switch."""
    n = Template(t)
    n.kv["rope.scaling.finetuned"] = False
    return [("none", n)] if n.arch == "granite" else []


@case
def sections(t):
    """Positions of pictures, which in text are all the same."""
    n = Template(t)
    n.kv["rope.dimension_sections"] = [2, 3, 3, 0]
    return [("2, 3, 3", n)] if n.arch in ("glm4", "glm4moe", "bailingmoe3") else []


@case
def old_latent(t):
    """attn_kv_b in one piece, as files had it before attn_k_b and attn_v_b."""
    n = Template(t)
    if "attention.key_length_mla" not in n.kv or n.arch != "deepseek2":
        return []
    key, value, rot, rank = (n.kv[k] for k in ("attention.key_length_mla", "attention.value_length_mla", "rope.dimension_count",
                                               "attention.kv_lora_rank"))  # fmt: skip
    del n.kv["attention.key_length_mla"], n.kv["attention.value_length_mla"]
    n.kv |= {"attention.key_length": key, "attention.value_length": value, "attention.head_count_kv": n.heads}
    n.drop(r"attn_[kv]_b\.weight$")
    for i in range(n.kv["block_count"]):
        n.add(f"blk.{i}.attn_kv_b.weight", [rank, n.heads * (key - rot + value)])
    return [("one piece", n)]


def _delta_sizes(kv):
    """(keys of all heads, values of all heads) of layers with gated delta nets."""
    return kv["ssm.group_count"] * kv["ssm.state_size"], kv["ssm.inner_size"]


@case
def old_delta(t):
    """One tensor of all that a gated delta net reads, as the first files of Qwen3-Next had it."""
    n = Template(t)
    if n.arch != "qwen3next":
        return []
    keys, values = _delta_sizes(n.kv)
    for i in range(n.kv["block_count"]):
        if n.shape(f"blk.{i}.attn_gate.weight"):
            n.drop(rf"^blk\.{i}\.attn_(qkv|gate)\.")
            n.add(f"blk.{i}.ssm_in.weight", [n.kv["embedding_length"], 2 * keys + 2 * values])
    return [("one tensor", n)]


def _is_delta_net(n):
    return "ssm.time_step_rank" in n.kv and not n.has(r"ssm_d$")


@case
def delta_heads(t):
    """Other numbers and widths of the heads of gated delta nets, and another convolution."""
    found = []
    for heads, groups, state, taps in ((4, 4, 32, 4), (6, 3, 24, 3), (8, 1, 16, 2), (2, 2, 20, 5)):
        n = Template(t)
        if not _is_delta_net(n):
            return []
        d = n.kv["embedding_length"]
        n.kv |= {"ssm.time_step_rank": heads, "ssm.group_count": groups, "ssm.state_size": state, "ssm.inner_size": heads * state,
                 "ssm.conv_kernel": taps}  # fmt: skip
        keys, values = _delta_sizes(n.kv)
        for i in range(n.kv["block_count"]):
            if not n.shape(f"blk.{i}.ssm_norm.weight"):
                continue
            for name, shape in {"attn_qkv.weight": [d, 2 * keys + values], "attn_gate.weight": [d, values], "ssm_norm.weight": [state],
                                "ssm_conv1d.weight": [taps, 2 * keys + values], "ssm_dt.bias": [heads], "ssm_a": [heads],
                                "ssm_ba.weight": [d, 2 * heads], "ssm_beta.weight": [d, heads], "ssm_alpha.weight": [d, heads],
                                "ssm_out.weight": [values, d]}.items():  # fmt: skip
                n.reshape(rf"blk\.{i}\.{name}".replace(".weight", r"\.weight"), lambda _, shape=shape: list(shape))
        found.append((f"{heads} over {groups} of {state}, {taps} taps", n))
    return found


@case
def delta_layers(t):
    """Which layers are recurrent: every second, all, and by a list of flags."""
    found = []
    if not _is_delta_net(Template(t)):
        return []
    blocks = t["kv"]["block_count"]
    for label, flags in (("every second", [i % 2 == 0 for i in range(blocks)]), ("all but the first", [i > 0 for i in range(blocks)]),
                         ("by a list", [i % 3 != 1 for i in range(blocks)])):  # fmt: skip
        n, plain = Template(t), Template(t)
        mixed, full = layer_of(plain, 0), layer_of(plain, 3)
        for i in range(blocks):
            n.drop(rf"^blk\.{i}\.")
            n.tensors += [[f"blk.{i}.{name}", list(shape), kind] for name, shape, kind in (mixed if flags[i] else full)]
        if label == "every second":
            n.kv["full_attention_interval"] = 2
        else:
            n.kv["attention.recurrent_layers"] = flags
        found.append((label, n))
    return found


@case
def mamba_heads(t):
    """Other numbers of heads and groups of Mamba-2, other states, another convolution."""
    found = []
    for heads, groups, state, taps in ((16, 4, 24, 3), (4, 1, 40, 4), (8, 8, 16, 2), (8, 2, 20, 5)):
        n = Template(t)
        if not n.has(r"ssm_d$") or n.has(r"ssm_x\."):
            return []
        inner = n.kv["ssm.inner_size"]
        n.kv |= {"ssm.time_step_rank": heads, "ssm.group_count": groups, "ssm.state_size": state, "ssm.conv_kernel": taps}
        mixed = inner + 2 * groups * state
        for name, shape in {"ssm_in.weight": [n.kv["embedding_length"], inner + mixed + heads], "ssm_conv1d.weight": [taps, mixed],
                            "ssm_conv1d.bias": [mixed], "ssm_dt.bias": [heads], "ssm_a": [1, heads], "ssm_d": [1, heads],
                            "ssm_norm.weight": [inner // groups, groups]}.items():  # fmt: skip
            n.reshape(re.escape(name), lambda _, shape=shape: list(shape))
        found.append((f"{heads} over {groups} of {state}, {taps} taps", n))
    return found


@case
def mamba_without(t):
    """Without what llama.cpp does not ask of files: the norm, which some have not."""
    n = Template(t)
    return [("norm", n)] if t["arch"] == "falcon-h1" and n.drop(r"ssm_norm") else []


def _without_others(n, norms):
    """Jamba's recurrent layers alone, as Mamba has them."""
    recurrent = [entry for entry in layer_of(n, 0) if not re.match(r"ffn_|ssm_(dt|b|c)_norm", entry[0])]
    n.drop(r"^blk\.")
    n.tensors += [[f"blk.{i}.{name}", list(shape), kind] for i in range(3) for name, shape, kind in recurrent]
    n.t["arch"] = "mamba"
    for key in ("attention.head_count_kv", "expert_count", "expert_used_count"):
        n.kv.pop(key)
    n.kv |= {"block_count": 3, "attention.head_count": 0, "feed_forward_length": 0, "ssm.dt_b_c_rms": norms}
    return n


@case
def scans(t):
    """Selective scans of other widths, and the models that have nothing else, with norms and without."""
    if t["arch"] != "jamba":
        return []
    found = []
    for state, rank, taps in ((18, 7, 3), (40, 33, 2)):
        n = Template(t)
        inner = n.kv["ssm.inner_size"]
        n.kv |= {"ssm.state_size": state, "ssm.time_step_rank": rank, "ssm.conv_kernel": taps}
        for name, shape in {"ssm_conv1d.weight": [taps, inner], "ssm_x.weight": [inner, rank + 2 * state], "ssm_dt_norm.weight": [rank],
                            "ssm_dt.weight": [rank, inner], "ssm_b_norm.weight": [state], "ssm_c_norm.weight": [state],
                            "ssm_a": [state, inner]}.items():  # fmt: skip
            n.reshape(re.escape(name), lambda _, shape=shape: list(shape))
        found.append((f"state {state}, rank {rank}, {taps} taps", n))
    return [*found, *((f"alone, {label}", _without_others(Template(t), norms)) for label, norms in (("plain", False), ("normed", True)))]


@case
def lightning_layers(t):
    """Every second layer with lightning attention, by an interval and by a list; heads of another width, with an eps that counts."""
    found = []
    if t["arch"] != "minimax-01":
        return []
    blocks = t["kv"]["block_count"]
    for label, flags in (("every second", [i % 2 == 0 for i in range(blocks)]), ("the first by a list", [i == 0 for i in range(blocks)])):
        n, plain = Template(t), Template(t)
        n.drop(r"^blk\.")
        n.tensors += [[f"blk.{i}.{name}", list(shape), kind] for i, flag in enumerate(flags)
                      for name, shape, kind in layer_of(plain, 0 if flag else 2)]  # fmt: skip
        n.kv["attention.recurrent_layers"] = flags
        if label == "every second":
            del n.kv["attention.recurrent_layers"]
            n.kv["full_attention_interval"] = 2
        found.append((label, n))
    n = Template(t)
    e, heads, groups = 24, 8, 4
    n.kv |= {"attention.key_length": e, "attention.value_length": e, "rope.dimension_count": 12, "attention.head_count": heads,
             "attention.head_count_kv": groups, "attention.layer_norm_rms_epsilon": 0.05}  # fmt: skip
    d, inner = n.kv["embedding_length"], heads * e
    for name, shape in {"attn_norm_2": [inner], "attn_qkv": [d, 3 * inner], "attn_gate": [d, inner], "attn_output": [inner, d],
                        "attn_q": [d, inner], "attn_k": [d, groups * e], "attn_v": [d, groups * e]}.items():  # fmt: skip
        n.reshape(rf"{name}\.weight", lambda _, shape=shape: list(shape))
    return [*found, ("8 heads of 24", n)]


@case
def not_latent(t):
    """Experts that read whole rows, as in the smaller models."""
    n = Template(t)
    if not n.drop(r"ffn_(latent|routed)"):
        return []
    d = n.kv["embedding_length"]
    n.reshape(r"ffn_(gate|up)_exps\.weight", lambda s: [d, *s[1:]])
    n.reshape(r"ffn_down_exps\.weight", lambda s: [s[0], d, s[2]])
    for key in ("moe_latent_size", "expert_latent_length"):
        n.kv.pop(key, None)
    return [("whole rows", n)]


@case
def kda_widths(t):
    """Other widths of the heads of Kimi Delta Attention, and another convolution."""
    found = []
    for width, taps in ((24, 3), (40, 5), (16, 2)):
        n = Template(t)
        if "kda.head_dim" not in n.kv:
            return []
        d, inner = n.kv["embedding_length"], n.heads * width
        n.kv |= {"kda.head_dim": width, "ssm.conv_kernel": taps}
        for i in range(n.kv["block_count"]):
            if not n.shape(f"blk.{i}.ssm_norm.weight"):
                continue
            low = {"ssm_f_a": [d, width], "ssm_f_b": [width, inner], "ssm_g_a": [d, width], "ssm_g_b": [width, inner], "ssm_g": [d, inner]}
            full = {"ssm_f_a": [d, inner], "ssm_g_a": [d, inner]}
            shapes = {f"attn_{x}": [d, inner] for x in "qkv"} | {f"ssm_conv1d_{x}": [taps, 1, inner] for x in "qkv"}
            shapes |= {"ssm_norm": [width], "attn_output": [inner, d]} | (low if n.shape(f"blk.{i}.ssm_f_b.weight") else full)
            for name, shape in shapes.items():
                n.reshape(rf"blk\.{i}\.{name}\.weight", lambda _, shape=shape: list(shape))
            n.reshape(rf"blk\.{i}\.ssm_dt\.bias", lambda _, inner=inner: [inner])
        found.append((f"{width}, {taps} taps", n))
    return found


@case
def kda_bound(t):
    """Rows that may forget everything."""
    n = Template(t)
    if n.arch != "kimi-k3":
        return []
    n.kv.pop("kda.gate_lower_bound")
    return [("none", n)]


@case
def without_gates(t):
    """No norm behind narrow experts, no gates of latent attention."""
    found = []
    for name in ("ffn_routed_norm", "attn_gate"):
        n = Template(t)
        if n.arch == "kimi-k3" and n.drop(name):
            found.append((name, n))
    return found


@case
def attention_residuals(t):
    """Streams that are banked more often, and never."""
    found = []
    for every in (1, 3, 0):
        n = Template(t)
        if "attn_res.block_size" not in n.kv:
            return []
        n.kv["attn_res.block_size"] = every
        if not every:
            n.drop("res_score")
        found.append((f"every {every}", n))
    return found


@case
def situ(t):
    """Other bounds of the activation, and none of what it is multiplied by."""
    found = []
    for beta, linear in ((1.5, 0.0), (0.75, 1.25)):
        n = Template(t)
        if "activation.situ_beta" not in n.kv:
            return []
        n.kv |= {"activation.situ_beta": beta, "activation.situ_linear_beta": linear}
        found.append((f"{beta}, {linear}", n))
    return found


@case
def short_taps(t):
    """Longer and shorter convolutions of LFM2."""
    found = []
    for taps in (2, 5):
        n = Template(t)
        if "shortconv.l_cache" not in n.kv:
            return []
        n.kv["shortconv.l_cache"] = taps
        n.reshape(r"shortconv\.conv\.weight", lambda shape, taps=taps: [taps, *shape[1:]])
        found.append((f"{taps} taps", n))
    return found


@case
def longer(t):
    """Contexts in which compressed rows of 128 positions come to be, and positions that are scaled."""
    found = []
    for label, keys in (("640", {}), ("640, yarn", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                                                     "rope.scaling.original_context_length": 160})):  # fmt: skip
        n = Template(t)
        if n.arch not in ("deepseek4", "glm5-next") or (keys and n.arch != "deepseek4"):
            continue
        n.kv |= {"context_length": 640} | keys
        found.append((label, n))
    return found
