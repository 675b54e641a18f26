"""The layer that predicts a further token (MTP), which files carry behind the model's own (arXiv:2412.19437, section 2.2).

At position p it reads the model's last hidden state of position p - 1, normed for the logits, and the embedding of the token at p, and
predicts the token at p + 1. Its keys and values at p so depend on the tokens up to p alone, as those of every layer do. They take no
attention: the model's plan makes them along with its own, so that they are there for all sequences, shared beginnings and forks, and the
head's own plan runs for a sequence's last position only.
"""

from ...errors import CorruptModel, UnsupportedModel
from .blocks import Residual, embedding_matrix, layer_counts, output_matrix


def head(p, weights, c, x, eps, layer, keep, normed=True):
    """Let plan `p` keep what the layer attends to, and build the layer's own plan, `p.head`; nothing where it is not wanted.

    Parameters
    ----------
    p : Plan
    weights : Catalog
    c : Hyperparameters
    x : Residual
        The stream behind the model's last layer.
    eps : float
    layer : callable
        ``layer(p, x, w)`` appends a layer of tensors w to a plan, as those of the model are.
    keep : callable
        ``keep(p, h, w)`` appends that layer's keys and values alone, of its normed input.
    normed : bool
        The hidden state that the layer reads is normed as for the logits; else it is the stream itself.
    """
    if not weights.mtp:
        return
    w, table = weights.block(layer_counts(c)[0]), embedding_matrix(c, weights)
    norm = weights["output_norm.weight"]
    h = x.norm(norm) if normed else x.value()
    p.hand_out(h)
    stream = _joined(p, p.before(h, table.k), w, _rows(weights, w, "nextn.embed_tokens", table), eps)
    keep(p, stream.norm(w.attn_norm), w)
    q = p.make_head()
    stream = _joined(q, q.before(None, table.k), w, _rows(weights, w, "nextn.embed_tokens", table), eps)
    layer(q, stream, w)
    if not normed:
        q.hand_out(stream.value())
    h = stream.norm(w.get("nextn.shared_head_norm") or w.get("layer_output_norm") or norm, selected=True)  # as all rows are
    if normed:
        q.hand_out(h)
    q.logits(h, _rows(weights, w, "nextn.shared_head_head", output_matrix(weights)))


def _joined(p, before, w, table, eps):
    """The layer's stream: W (norm(embedding), norm(hidden state before))."""
    e, h = p.normed(p.embed(table), getattr(w, "nextn.enorm"), eps), p.normed(before, getattr(w, "nextn.hnorm"), eps)
    return Residual(p, p.gathered(p.matmul(p.join(1, (e, 0, e.width), (h, 0, h.width)), getattr(w, "nextn.eh_proj"))), eps)


def _rows(weights, w, name, common):
    """The layer's own matrix of a row per token, or the model's."""
    own = w.get(name)
    if own is None:
        return common
    if (getattr(own, "n", 0), getattr(own, "k", 0)) != (common.n, common.k):
        raise CorruptModel(weights.gguf.path, f"{own.name} is no matrix of {common.n} x {common.k} values, as {common.name} is")
    return own


def check(c, weights):
    """Raise UnsupportedModel if the file has no such layer."""
    first, more = layer_counts(c)
    detail = "mtp=True asks for the layer that predicts a further token (MTP); load the model without it"
    if not more:
        raise UnsupportedModel(c.prefix + "nextn_predict_layers", 0, ["1 or more"], detail)
    name = f"blk.{first}.nextn.eh_proj.weight"
    if name not in weights:
        raise UnsupportedModel("tensor", f"no {name}", [name], f"{detail}, or take a file that has kept its tensors")
