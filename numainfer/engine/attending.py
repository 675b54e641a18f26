"""Ops of attention: methods of `Plan`."""

from .. import _core
from ..errors import PlanError
from .ops import ATTENTION_INTS, PER_NODE, SHARED

MOST_RUNS = 64  # of chunks, that a query's attention is summed in: bits depend on it beyond so many chunks
PART_SEQUENCES = 16  # of the longest kind, whose attention can be spread over workers run by run; of shorter ones, more


def longest_run(n_ctx):
    """Chunks of the longest run that a query folds in a context of so many tokens."""
    *_, shift = _core.attention_runs(0, n_ctx - 1, MOST_RUNS)
    return 1 << shift


class Attending:
    """Methods of `Plan`."""

    def index(self, q, k, weights, a, chosen, rope=None, *, q_norm=None, k_norm=None, block=1, last=0, rows=None):
        """Appends k to the indexer's keys and chooses what each token attends to: ids, ascending, of so many positions or blocks of them.

        They are those of the best scores, of equal ones the lower.  A token that sees no more attends to all, and has none.

        Parameters
        ----------
        q, k : Tensor
            (T, H * key_length), (T, key_length).
        weights : Tensor or None
            (T, H), by a.scale: the score of a position is the sum of weights[h] * max(q[h] . k, 0) over the heads (arXiv:2512.02556).
            None: every head chooses for a kv-head of its own, blocks by the largest q[h] . k; ids are (T, H * chosen).
        a : Attention
            Of one kv-head, and no values.
        block : int
            Positions of a block, without weights.
        last : int
            So many blocks, a token's own and those before it, are always chosen.
        rows : Tensor, optional
            Of `compress`: compressed keys among which is chosen, with weights; then k is None.
        """
        for name, tensor, width in (("q", q, a.heads * a.key_length), ("k", k, a.key_length), ("weights", weights, a.heads)):
            if tensor is not None:
                self._check("index", name, tensor, width)
        if rows is not None and (k is not None or weights is None or not self._compressed[rows].cache.indexes):
            raise PlanError(f"index: compressed rows ({rows.name}) go with weights and without k, and are an indexer's")
        if a.kv_heads != 1 or a.value_length or a.window or chosen < 1 or _core.CHUNK % block or (weights is not None and block != 1):
            raise PlanError(f"index: wanted one kv-head without values, that sees everything, at least one position to choose, and blocks "
                            f"that divide {_core.CHUNK} positions, of 1 with weights; found {a}, {chosen} and {block}")
        if rope is not None:
            self._check("index", "rope", rope, a.rope_dim)
        for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
            if norm is not None:
                self._is_vector("index", name, norm, a.key_length)
        lists, compressed = a.heads if weights is None else 1, self._compressed.get(rows)
        per_score = block if compressed is None else compressed.ratio
        ints = self._attention_ints(a, rope, 0, (chosen, block, 1))
        scores = self._tensor("scores", lists * (self.n_chunks * _core.CHUNK // per_score), SHARED, "f")
        ids = self._tensor("chosen", lists * chosen, PER_NODE, "i")
        self._lists[ids] = chosen, block, lists
        if compressed is None:
            cache, kv = self.kv.add(1, a.key_length, 0, 0, chosen * block, indexes=True), self._memory("kv")
            self._add("kv_append", [k, None, rope, kv], [k_norm], ints, (a.eps,), cache=cache)
        else:
            cache, kv, self._compressed[ids] = compressed.cache, rows, compressed
        near = None if weights is None else self._near(weights)
        self._add("index", [self._near(q), near, rope, kv, scores], [q_norm], ints, (a.scale, a.eps), cache=cache, rows=compressed)
        return self._add("select", [scores, ids], [], (lists, per_score, last, int(compressed is not None)))

    def _memory(self, name, heads=1):
        """The tensor that stands for the memory of the cache that was added last."""
        return self._tensor(f"{name} {len(self.kv.layers) - 1}", 0, PER_NODE if heads % self.n_nodes == 0 else SHARED)

    def _attention_ints(self, a, rope, latent, listed, rows=None, pools=False):
        """The integers of attention's ops, of which some wait for the whole plan (`compile`); listed: (chosen, block, lists) or None; rows:
        the Rows that are attended to beside a window; pools: blocks are lists of positions."""
        chosen, block, _ = listed or (0, 1, 1)
        # Of a list, so that it has no more parts than runs would be.
        entries = chosen * block + block - 1 if pools else chosen
        piece = min(_core.CHUNK, -(-entries // (16 * MOST_RUNS)) * 16) if block == 1 or pools else 1
        parts = -(-entries // max(piece, 1))
        if rows is not None:  # as ni_list_piece of csrc/ops/attention.h cuts the longest lists
            entries = a.window + min(chosen or self.n_ctx, self.n_ctx // rows.ratio)
            parts = min(-(-entries // 16), max(MOST_RUNS, -(-entries // _core.CHUNK)))
        self._least_parts = max(self._least_parts, parts)
        named = {"heads": a.heads, "kv_heads": a.kv_heads, "e": a.key_length, "ev": a.value_length,
                 "latent": latent, "rot": a.rope_first, "n_rot": a.rope_dim if rope is not None else 0, "neox": int(a.neox),
                 "window": a.window, "pieces": int(a.pieces), "kv_type": self.kv.type, "chosen": chosen, "block": block,
                 "pools": int(pools), "piece": piece, "most_runs": MOST_RUNS, "turn": self.kv.turn, "norm_last": int(a.norm_last),
                 "floor": a.floor, "ahead": a.ahead, **self._room()}  # fmt: skip
        return [named.get(name, 0) for name in ATTENTION_INTS]

    def _room(self):
        """Room for the parts of decoding sequences, as far as the plan is known: what some list needs, all attention has to know."""
        return {"least_parts": self._least_parts,
                "part_runs": min(PART_SEQUENCES, self.n_batch) * max(min(self.n_chunks, MOST_RUNS), self._least_parts)}  # fmt: skip

    def keep(self, k, v, a, rope=None, k_norm=None):
        """Appends k, v to KV memory, as `attend` does, for the plan of `make_head`, which attends to it."""
        for name, tensor, width in (("k", k, a.kv_heads * a.key_length), ("v", v, a.kv_heads * a.value_length)):
            if tensor is not None:
                self._check("keep", name, tensor, width)
        if rope is not None:
            self._check("keep", "rope", rope, a.rope_dim)
        if k_norm is not None:
            self._is_vector("keep", "k_norm", k_norm, a.key_length)
        self._for_head = cache = self.kv.add(a.kv_heads, *((0, a.key_length) if v is None else (a.key_length, a.value_length)), a.window)
        cache.readers = 0
        kv = self._tensor("kv of the head", 0, PER_NODE if a.kv_heads % self.n_nodes == 0 else SHARED, is_read=True)
        self._add("kv_append", [k, v, rope, kv], [k_norm], self._attention_ints(a, rope, int(v is None), None), (a.eps,), cache=cache)

    def _layer_cache(self, *shape):
        """The LayerCache of the next attention layer; of a head's own that which `keep` appends to."""
        cache = self._of_head
        if cache is None:
            return self.kv.add(*shape)
        found = cache.kv_heads, cache.key_length, cache.value_length, cache.window, cache.chosen
        if found != shape:
            raise PlanError(f"attend: the head's keys and values are of the shape {found}, wanted {shape}")
        return cache

    def attend(self, q, k, v, a, rope=None, q_norm=None, k_norm=None, sinks=None, chosen=None, kept=None, rows=None):
        """Appends k, v to the sequence's KV memory and attends: o, one copy per node, width H * value_length.

        v : Tensor, optional
            None: a head's values are the first value_length of its keys, normed and rotated as these, and stored once.
        sinks : Vector, optional
            (H,) a score of each head that takes part in its softmax and adds nothing (arXiv:2309.17453).
        chosen : Tensor, optional
            Of `index`: what tokens attend to that see more: positions of latent rows, or blocks for each kv-head.  Of an index that chose
            among compressed keys of so many positions each: latent rows of these positions, and of those behind the last complete key.
        kept : Tensor, optional
            What an earlier call, of the same widths and window, returned: its keys and values are attended to, and k and v are None.
        rows : Tensor, optional
            Of `compress`: with latent rows and a window, compressed rows that are attended to beside it: all that are complete, or those
            that were chosen.
        """
        for name, tensor, heads, count, key, width in (("q", q, "head_count", a.heads, "key_length", a.key_length),
                                                       ("k", k, "head_count_kv", a.kv_heads, "key_length", a.key_length),
                                                       ("v", v, "head_count_kv", a.kv_heads, "value_length", a.value_length)):
            if tensor is None and (name == "v" or kept is not None):
                continue
            self._check("attend", name, tensor, count * width, of=f" (attention.{heads} = {count} of {key} {width})")
        if a.heads % a.kv_heads or a.rope_dim % 2 or a.rope_first + a.rope_dim > a.key_length:
            raise PlanError(f"attend: heads must be a multiple of kv-heads, rope_dim even and at most the key width, from rope_first on; "
                            f"found {a}")
        if kept is not None and ((k, v, chosen) != (None,) * 3 or self._kept.get(kept, (0, 0, 0))[2] != _kept_shape(a)):
            raise PlanError(f"attend: an earlier call's keys and values ({kept.name}) go with no others and the same shape; found {a}")
        if v is None and kept is None and a.value_length > a.key_length:
            raise PlanError(f"attend: values that are the first of the keys can be no wider; found {a}")
        if rope is not None:
            self._check("attend", "rope", rope, a.rope_dim)
        for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
            if norm is not None:
                self._is_vector("attend", name, norm, a.key_length)
        if sinks is not None:
            self._is_vector("attend", "sinks", sinks, a.heads)
        listed, compressed = self._lists.get(chosen), self._compressed.get(rows)
        pools = rows is None and chosen in self._compressed
        self._check_rows(a, v, chosen, rows)
        misfits = listed is None or a.window or listed[2] != a.kv_heads or (listed[1] == 1) != (v is None)
        if chosen is not None and rows is None and misfits:
            raise PlanError(f"attend: chosen positions ({chosen.name}) go with latent rows, blocks with others, one list for each kv-head, "
                            f"and no window; found {a}")
        q = self._near(q)
        if self.n_chunks >= 2**31:
            raise PlanError(f"attend: a context of {self.n_ctx} tokens; wanted less than {2**31 * _core.CHUNK}")
        if pools:
            listed = listed[0], self._compressed[chosen].ratio, listed[2]
        most, latent = listed[0] * listed[1] if listed else 0, v is None and kept is None
        ints = self._attention_ints(a, rope, int(latent), listed, compressed, pools)
        # Each head stays with one node where heads divide evenly; else its chunks go round, and all nodes read them.
        if kept is None:
            cache = self._layer_cache(a.kv_heads, *((0, a.key_length) if latent else (a.key_length, a.value_length)), a.window,
                                      0 if rows else most)  # fmt: skip
            kv = self._memory("kv", a.kv_heads)
        else:
            cache, kv, _ = self._kept[kept]
            cache.readers += 1
        parts = self._tensor("parts", 0, SHARED, "f")
        whole = self._tensor("rows", a.heads * a.value_length, SHARED, "f")
        o = self._tensor("o", whole.width, PER_NODE)
        if kept is None:
            self._add("kv_append", [k, v, rope, kv], [k_norm], ints, (a.eps,), cache=cache)
        self._add("attend", [q, rope, kv, parts, whole, chosen, rows], [q_norm, sinks], ints,
                  (a.eps, a.scale, a.softcap, a.temperature), cache=cache, rows=compressed)  # fmt: skip
        self._add("combine", [parts, whole, o], [sinks], ints, cache=cache, rows=compressed)
        if not latent:
            self._kept[o] = cache, kv, _kept_shape(a)
        return o


    def _check_rows(self, a, v, chosen, rows):
        """Whether compressed rows are of attention's width, and what was chosen is of them."""
        found, among = self._compressed.get(rows), self._compressed.get(chosen)
        if (found is None) != (rows is None) or (found is not None and chosen is not None and among is None):
            raise PlanError("attend: what was chosen goes with what it was chosen from, positions or compressed rows")
        if found is None:
            return
        if v is not None or a.kv_heads != 1 or not a.window or found.cache.indexes or found.cache.value_length != a.key_length:
            raise PlanError(f"attend: compressed rows ({rows.name}) go with latent rows of the same width, and a window; found {a}")
        if among is not None and among.ratio != found.ratio:
            raise PlanError(f"attend: chosen among rows of {among.ratio} positions, but attends to rows of {found.ratio}")


def _kept_shape(a):
    """What has to agree where two layers attend to the same memory."""
    return a.kv_heads, a.key_length, a.value_length, a.window, a.pieces
