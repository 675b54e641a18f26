"""The NumPy twin of every op: the formula as the paper has it, slow and plain.

Arrays keep the dtype they come in: float64 makes these the oracle of the ops, float32 the oracle of whole models.
Shapes: n tokens, D width, H query heads, G key/value heads, E width of a head, V vocabulary. A weight matrix is
(rows = outputs, columns = inputs), as ``gguf.GGUFReader`` shows it.
"""

import gguf
import numpy as np
from gguf import quants

Q8_BLOCK = 32
Q8_TINY = 2.0**-119  # below it 127 / amax would overflow float32


def dequantise(data, tensor_type, dtype=np.float64):
    """Decode stored weights.

    Parameters
    ----------
    data : ndarray
        Bytes or scalars as ``GGUFReader`` gives them, last axis contiguous.
    tensor_type : gguf.GGMLQuantizationType
        Their type.

    Returns
    -------
    ndarray of dtype
        The decoded values; quantised types go through float32, as the formats define them.
    """
    return quants.dequantize(data, gguf.GGMLQuantizationType(tensor_type)).astype(dtype)


def embed(table, ids):
    """Rows ``ids`` of ``table`` (V, D) -> (n, D)."""
    return table[np.asarray(ids, dtype=np.int64)]


def rmsnorm(x, weight, eps, bias=0.0):
    """x / sqrt(mean(x^2) + eps) * weight + bias over the last axis.  Source: arXiv:1910.07467."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(eps)) * weight + bias


def layernorm(x, weight, eps, bias=0.0):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis.  Source: arXiv:1607.06450."""
    return rmsnorm(x - np.mean(x, axis=-1, keepdims=True), weight, eps, bias)


def matmul(x, weight, bias=None):
    """x (..., K) times weight (M, K) -> (..., M)."""
    y = x @ weight.T
    return y if bias is None else y + bias


def quantise_q8(x):
    """Activations to 8 bits, each run of 32 values with its own scale, all arithmetic in float32.

    Parameters
    ----------
    x : ndarray (..., K)
        K a multiple of 32.

    Returns
    -------
    q : int8 ndarray (..., K)
        round-to-nearest-even(x * (127 / amax)), so |q| <= 127.
    scale : float32 ndarray (..., K / 32)
        amax / 127; a run with amax < 2^-119 counts as 0.
    """
    x = np.asarray(x, dtype=np.float32)
    if x.shape[-1] % Q8_BLOCK:
        raise ValueError(f"quantise_q8: last axis has {x.shape[-1]} values, wanted a multiple of {Q8_BLOCK}")
    blocks = x.reshape(*x.shape[:-1], -1, Q8_BLOCK)
    amax = np.abs(blocks).max(axis=-1)
    amax = np.where(amax < np.float32(Q8_TINY), np.float32(0), amax)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    q = np.rint(blocks * inverse[..., None]).astype(np.int8)
    return q.reshape(x.shape), amax / np.float32(127)


def matmul_q8(x, weight, bias=None):
    """``matmul`` after ``quantise_q8`` of x; the rest, weight and sum, keeps the dtype of the weight."""
    q, scale = quantise_q8(x)
    return matmul(q * np.repeat(scale.astype(weight.dtype), Q8_BLOCK, axis=-1), weight, bias)


def rope_angles(positions, n_rot, base, freq_scale=1.0, factors=None):
    """Angle of every (position, pair), float64 (n, n_rot / 2).  Source: arXiv:2104.09864.

    Parameters
    ----------
    base : float
        Base of the geometric row of frequencies, base^(-2i / n_rot).
    freq_scale : float
        1 / factor of linear ("position interpolation") scaling, arXiv:2306.15595.
    factors : ndarray (n_rot / 2,), optional
        Llama 3's divisor of each frequency (tensor ``rope_freqs.weight``).
    """
    freq = float(base) ** (-np.arange(0, n_rot, 2, dtype=np.float64) / n_rot)
    if factors is not None:
        freq = freq / np.asarray(factors, dtype=np.float64)
    return np.asarray(positions, dtype=np.float64)[:, None] * freq * freq_scale


def rope(x, positions, style, base=10000.0, freq_scale=1.0, factors=None, n_rot=None):
    """Rotate the first ``n_rot`` values of each head; the rest pass through.

    Parameters
    ----------
    x : ndarray (n, H, E)
    positions : ints (n,)
    style : {"norm", "neox"}
        Which values form pair i: "norm" (2i, 2i + 1), what llama files hold after their permutation;
        "neox" (i, i + n_rot / 2), Gemma and Qwen.
    """
    n_rot = x.shape[-1] if n_rot is None else n_rot
    angle = rope_angles(positions, n_rot, base, freq_scale, factors)[:, None, :]
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    if style == "norm":
        first, second = slice(0, n_rot, 2), slice(1, n_rot, 2)
    elif style == "neox":
        first, second = slice(0, n_rot // 2), slice(n_rot // 2, n_rot)
    else:
        raise ValueError(f"rope: style is {style!r}, wanted 'norm' or 'neox'")
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def silu_mul(gate, up):
    """gate * sigmoid(gate) * up.  Source: SwiGLU, arXiv:2002.05202."""
    return gate * (0.5 * (1 + np.tanh(0.5 * gate))) * up  # sigmoid through tanh: no overflow


def gelu_mul(gate, up):
    """GELU(gate) * up with the tanh approximation of arXiv:1606.08415."""
    inner = np.sqrt(2 / np.pi).astype(gate.dtype) * (gate + gate.dtype.type(0.044715) * gate**3)
    return 0.5 * gate * (1 + np.tanh(inner)) * up


def softcap(x, cap):
    """cap * tanh(x / cap): squeezes into (-cap, cap).  Source: arXiv:2408.00118."""
    return cap * np.tanh(x / cap)


def softmax(x):
    """Softmax over the last axis; -inf becomes 0."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(x):
    """Logarithm of the softmax over the last axis, in float64."""
    x = np.asarray(x, dtype=np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def stored(x, kv_type):
    """Keys or values as KV memory of a type gives them back.

    Parameters
    ----------
    x : ndarray (..., E)
    kv_type : {"f16", "bf16", "q8_0", "f32"}
        q8_0: `quantise_q8` of 32 values, or of the last 16, with the scale rounded to a half.
    """
    if kv_type == "f16":
        return x.astype(np.float16).astype(x.dtype)
    x32 = np.ascontiguousarray(x, dtype=np.float32)
    if kv_type == "f32":
        return x32.astype(x.dtype)
    if kv_type == "bf16":
        u = x32.view(np.uint32)
        return ((u + np.uint32(0x7FFF) + (u >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32).astype(x.dtype)
    if kv_type != "q8_0":
        raise ValueError(f"stored: kv_type is {kv_type!r}")
    width = x.shape[-1]
    q, scale = quantise_q8(np.pad(x32, [(0, 0)] * (x.ndim - 1) + [(0, -width % Q8_BLOCK)]))
    return (q * np.repeat(scale.astype(np.float16).astype(x.dtype), Q8_BLOCK, axis=-1))[..., :width]


def attention(q, k, v, scale=None, first=0, window=0, cap=0.0):
    """Causal grouped-query attention.

    Parameters
    ----------
    q : ndarray (n, H, E)
        Queries of positions first .. first + n - 1.
    k, v : ndarrays (first + n, G, E) and (first + n, G, Ev)
        Everything up to the last query; H is a multiple of G, query head h reads head h // (H / G).
    scale : float, optional
        Factor of the scores, by default 1 / sqrt(E).
    window : int
        Sliding window: a query at p sees keys p - window + 1 .. p; 0 sees all.
    cap : float
        Soft cap of the scores, 0 for none.

    Returns
    -------
    ndarray (n, H, Ev)
    """
    n, n_head, width = q.shape
    n_keys, n_kv = k.shape[:2]
    if n_keys != first + n or n_head % n_kv:
        raise ValueError(f"attention: {n_keys} keys for queries {first}..{first + n - 1}, {n_head} heads over {n_kv}")
    scale = q.dtype.type(1 / np.sqrt(width) if scale is None else scale)
    at, key = np.arange(first, first + n)[:, None], np.arange(n_keys)[None, :]
    hidden = key > at
    if window:
        hidden |= at - key >= window
    out = np.empty((n, n_head, v.shape[-1]), dtype=q.dtype)
    for h in range(n_head):
        g = h // (n_head // n_kv)
        scores = q[:, h] @ k[:, g].T * scale
        if cap:
            scores = softcap(scores, q.dtype.type(cap))
        scores[hidden] = -np.inf
        out[:, h] = softmax(scores) @ v[:, g]
    return out


def kl_divergence(reference, logits):
    """KL(softmax(reference) || softmax(logits)) of each row, nats, float64."""
    p, q = log_softmax(reference), log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(axis=-1)
