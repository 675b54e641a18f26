"""NumPy float64 twin of csrc/sample.c, written from the contract in csrc/sample.h."""

import math

import numpy as np


def philox_uniform(seed, position):
    """Philox4x32-10 with key = seed and counter = position; 53 bits of its first two words."""
    words, mask = [position & 0xFFFFFFFF, position >> 32, 0, 0], 0xFFFFFFFF
    key = [seed & mask, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [(b >> 32) ^ words[1] ^ key[0], b & mask, (a >> 32) ^ words[3] ^ key[1], a & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return ((words[1] << 32 | words[0]) >> 11) * 2.0**-53


def adjusted(params, logits, prompt=(), output=(), stop_ids=()):
    """Steps 1 and 2: bias, min_tokens, penalties; each of bias and penalty rounds to float32 as the contract says."""
    out = logits.copy()
    for token, bias in (params.logit_bias or {}).items():
        out[token] = np.float64(out[token]) + np.float64(np.float32(bias))
    r, p, f = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
    if (r, p, f) != (1, 0, 0):
        for token in set(prompt) | set(output):
            x = np.float64(out[token])
            out[token] = x / r if x > 0 else x * r
            if token in output:
                out[token] = np.float64(out[token]) - f * list(output).count(token) - p
    if len(output) < params.min_tokens:
        out[list(stop_ids)] = -np.inf
    return out


def distribution(params, logits):
    """Steps 3 to 5: ids in order of probability (ties by id), their probabilities, and the mass before each.

    Returns
    -------
    ids : int array (n,)
        What is left.
    probs : float64 array (n,)
    doubtful : set of int
        Tokens so close to the limit of top_p (1e-6 of the mass) that float weights may decide otherwise.
    """
    x = logits.astype(np.float64)
    order = np.argsort(-x, kind="stable")
    order = order[x[order] > -np.inf]
    if params.temperature == 0:
        return order[:1], np.ones(1), set()
    x = x[order]
    if x[0] == np.inf:
        order, x = order[x == np.inf], np.zeros((x == np.inf).sum())
    if params.min_p > 0:
        order, x = (a[x >= x[0] + params.temperature * math.log(params.min_p)] for a in (order, x))
    if params.top_k:
        order, x = order[: params.top_k], x[: params.top_k]
    weights = np.exp((x - x[0]) / params.temperature)
    doubtful = set()
    if params.top_p < 1:
        before = np.concatenate([[0.0], np.cumsum(weights)[:-1]])
        gap = before / weights.sum() - params.top_p
        doubtful = set(order[(abs(gap) < 1e-6) & (gap != 0)].tolist())
        kept = before < params.top_p * weights.sum()
        order, weights = order[kept], weights[kept]
    return order, weights / weights.sum(), doubtful
