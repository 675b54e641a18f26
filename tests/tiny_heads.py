"""Tiny models whose files have a layer that predicts a further token (MTP), and that layer in NumPy."""

import sys
from pathlib import Path

import gguf
import numpy as np
import reference as ref
from test_definitions import Definition
from test_experts import routed

ARCHS = Path(__file__).resolve().parent / "archs"
sys.path.insert(0, str(ARCHS))

from changes import Template, layer_of  # noqa: E402
from make_gguf import make, templates  # noqa: E402

TEMPLATES = templates()
N = 128  # vocabulary
LIKE = {"mimo2": 2}  # which of the model's layers the head is like, where it is not the last with attention


def with_head(folder, name="glm4moe", edit=None, own=False, keys=(), heads=1, file=None):
    """Write a golden with a layer behind the others that predicts a further token, whose tensors are random.

    Parameters
    ----------
    edit : callable, optional
        ``edit(tensors)`` may change the values of tensors, a dict of float32 arrays, in place.
    own : bool
        The layer has its own embedding and output matrices.
    keys : mapping
        Other values of keys; None: without.
    heads : int
        Such layers; the others are of random values too, and no use.

    Returns
    -------
    Path
    """
    n = Template(TEMPLATES[name])
    first, d = n.kv["block_count"], n.kv["embedding_length"]
    like = LIKE.get(name, max(i for i in range(first) if n.shape(f"blk.{i}.attn_output.weight")))  # it has attention
    layer = layer_of(n, like) + [[f"nextn.{norm}.weight", [d], "F32"] for norm in ("enorm", "hnorm", "shared_head_norm")]
    layer.append(["nextn.eh_proj.weight", [2 * d, d], "F32"])
    n.tensors += [[f"blk.{first + i}.{tensor}", list(shape), kind] for i in range(heads) for tensor, shape, kind in layer]
    n.kv |= {key: [*value, *[value[like]] * heads] for key, value in n.kv.items() if isinstance(value, list) and len(value) == first}
    n.kv |= {"block_count": first + heads, "nextn_predict_layers": heads} | {k: v for k, v in dict(keys).items() if v is not None}
    for key in (key for key, value in dict(keys).items() if value is None):
        n.kv.pop(key, None)
    if own:
        for tensor in ("embed_tokens", "shared_head_head"):
            n.add(f"blk.{first}.nextn.{tensor}.weight", [n.kv["embedding_length"], N])
    path = Path(folder) / f"{file or name}-head.gguf"
    make(name, str(path), n.t)
    if edit:
        reader = gguf.GGUFReader(path, "r+")
        edit({t.name: t.data for t in reader.tensors})
        reader.data.flush()
    return path


def knowing(doubt=0.0):
    """An `edit` after which the model's next token depends on the last one alone, and the head knows which it is.

    doubt : how much the layers say nevertheless: the more, the more often the head is wrong.
    """

    def edit(tensors):
        last = max(int(name.split(".")[1]) for name in tensors if ".nextn.eh_proj" in name)
        for name, values in tensors.items():
            if any(part in name for part in ("attn_output", "ssm_out", "_down")):
                values *= doubt
            if name.endswith(".nextn.eh_proj.weight"):
                d = len(values)
                values[:] = np.concatenate([np.eye(d), np.zeros((d, d))], axis=1)
            if name.endswith(".nextn.enorm.weight"):
                values[:] = 1.0
        tensors[f"blk.{last}.nextn.shared_head_norm.weight"][:] = tensors["output_norm.weight"]

    return edit


def hidden_norm(path, stream):
    """The model's last norm of a stream (n, D), in float64."""
    m = Definition(path)
    m.eps = m.get("attention.layer_norm_rms_epsilon")
    return m.norm(stream.astype(np.float64), "output_norm")


def reference_head(path, hidden, ids):
    """What the head makes of a sequence, in float64.

    Parameters
    ----------
    hidden : (n, D) array
        The model's hidden state of each position, normed as for the logits.
    ids : int array (n,)

    Returns
    -------
    logits : (n, V)
        Of the token that comes behind each.
    hidden : (n, D)
    """
    m = Definition(path)
    m.eps, m.width = m.get("attention.layer_norm_rms_epsilon"), None
    b = f"blk.{m.get('block_count') - m.get('nextn_predict_layers')}."
    table = m.weights.get(b + "nextn.embed_tokens.weight", m.weights["token_embd.weight"])
    before = np.concatenate([np.zeros((1, hidden.shape[1])), hidden[:-1].astype(np.float64)])
    both = [m.norm(ref.embed(table, ids), b + "nextn.enorm"), m.norm(before, b + "nextn.hnorm")]
    x = m.project(np.concatenate(both, axis=-1), b + "nextn.eh_proj")
    x = x + {"glm4moe": _grouped, "deepseek2": _latent, "mimo2": _windowed}.get(m.arch, _gated)(m, b, m.norm(x, b + "attn_norm"))
    x = x + _network(m, b, m.norm(x, b + ("ffn_norm" if m.arch in ("deepseek2", "mimo2") else "post_attention_norm")))
    h = m.norm(x, b + "nextn.shared_head_norm")
    return h @ m.weights.get(b + "nextn.shared_head_head.weight", m.weights["output.weight"]).T, x if m.arch == "mimo2" else h


def _windowed(m, b, h):
    """With sinks, and values times a factor."""
    i = int(b.split(".")[1])
    heads, groups, n = m.get("attention.head_count"), m.get("attention.head_count_kv")[i], len(h)
    local = m.get("attention.sliding_window_pattern")[i]
    base, window = (m.get("rope.freq_base_swa"), m.get("attention.sliding_window")) if local else (m.get("rope.freq_base"), n)
    q, k, v = (m.project(h, b + f"attn_{name}", n_heads) for name, n_heads in (("q", heads), ("k", groups), ("v", groups)))
    q, k = (ref.rope(x, np.arange(n), "neox", base, n_rot=m.get("rope.dimension_count")) for x in (q, k))
    scores = np.einsum("qhe,khe->hqk", q, np.repeat(k, heads // groups, axis=1)) / np.sqrt(q.shape[-1])
    back = np.arange(n)[:, None] - np.arange(n)
    scores = np.where((back < 0) | (back >= window), -np.inf, scores)
    sinks = m.weights.get(b + "attn_sinks.weight", np.full(heads, -np.inf))
    weights = ref.softmax(np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (heads, n, 1))], axis=-1))[..., :-1]
    o = np.einsum("hqk,khe->qhe", weights, np.repeat(v, heads // groups, axis=1)) * m.get("attention.value_scale")
    return m.project(o.reshape(n, -1), b + "attn_output")


def _network(m, b, h):
    def plain(ending=""):
        return m.project(ref.silu_mul(*(m.project(h, b + f"ffn_{name}{ending}") for name in ("gate", "up"))), b + "ffn_down" + ending)

    if b + "ffn_gate_inp.weight" not in m.weights:
        return plain()
    scores, bias = h @ m.weights[b + "ffn_gate_inp.weight"].T, m.weights.get(b + "exp_probs_b.bias")
    groups = {"groups": m.get("expert_group_count", 1), "groups_used": m.get("expert_group_used_count", 1)}
    chosen, weights = routed(scores, m.get("expert_used_count"), "softmax" if bias is None else "sigmoid", bias, True,
                             m.get("expert_weights_scale", 1.0), **groups)  # fmt: skip
    gate, up, down = (m.weights[b + f"ffn_{name}_exps.weight"] for name in ("gate", "up", "down"))
    said = np.array([[down[e] @ ref.silu_mul(gate[e] @ row, up[e] @ row) for e in some] for row, some in zip(h, chosen)])
    mixed, by = (weights[..., None] * said).sum(axis=1), m.weights.get(b + "ffn_gate_inp_shexp.weight")
    if b + "ffn_up_shexp.weight" not in m.weights:
        return mixed
    return mixed + plain("_shexp") / (1.0 if by is None else 1 + np.exp(-(h @ by.reshape(-1, 1))))


def _gated(m, b, h):
    """Queries and what their heads' outputs are multiplied by stand side by side."""
    heads, groups, width = m.get("attention.head_count"), m.get("attention.head_count_kv"), m.get("attention.key_length")
    q, k, v = (m.project(h, b + f"attn_{name}", n) for name, n in (("q", heads), ("k", groups), ("v", groups)))
    q, gate = q[..., :width], q[..., width:]
    q, k = (ref.rope(m.norm(x, b + f"attn_{name}_norm"), np.arange(len(h)), "neox", m.get("rope.freq_base"),
                     n_rot=m.get("rope.dimension_count")) for name, x in (("q", q), ("k", k)))  # fmt: skip
    return m.project((ref.attention(q, k, v) / (1 + np.exp(-gate))).reshape(len(h), -1), b + "attn_output")


def _grouped(m, b, h):
    heads, groups = m.get("attention.head_count"), m.get("attention.head_count_kv")
    q, k, v = (m.project(h, b + f"attn_{name}", n) for name, n in (("q", heads), ("k", groups), ("v", groups)))
    q, k = (ref.rope(m.norm(x, b + f"attn_{name}_norm"), np.arange(len(h)), "neox", m.get("rope.freq_base"),
                     n_rot=m.get("rope.dimension_count")) for name, x in (("q", q), ("k", k)))  # fmt: skip
    return m.project(ref.attention(q, k, v).reshape(len(h), -1), b + "attn_output")


def _latent(m, b, h):
    """Each head's own keys and values, as the paper has them (arXiv:2405.04434)."""
    heads, rank, rotated = m.get("attention.head_count"), m.get("attention.kv_lora_rank"), m.get("rope.dimension_count")
    q = m.project(m.norm(m.project(h, b + "attn_q_a"), b + "attn_q_a_norm"), b + "attn_q_b", heads)
    both = m.project(h, b + "attn_kv_a_mqa")
    latent = m.norm(both[:, :rank], b + "attn_kv_a_norm")
    turn = [ref.rope(x, np.arange(len(h)), "norm", m.get("rope.freq_base")) for x in (q[..., -rotated:], both[:, None, rank:])]
    k = np.einsum("hrk,nr->nhk", m.weights[b + "attn_k_b.weight"], latent)
    k = np.concatenate([k, np.repeat(turn[1], heads, axis=1)], axis=-1)
    v = np.einsum("hvr,nr->nhv", m.weights[b + "attn_v_b.weight"], latent)
    o = ref.attention(np.concatenate([q[..., :-rotated], turn[0]], axis=-1), k, v)
    return m.project(o.reshape(len(h), -1), b + "attn_output")
