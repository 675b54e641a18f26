"""How fast a model runs here, beside what the memory could give."""

import dataclasses
import statistics
import time
from pathlib import Path

import numpy as np

from .arguments import integer
from .errors import ContextOverflow

_READ_BYTES = 512 << 20  # per node; more where the machine's caches hold more than a quarter of that
_STREAMS = (1, 4)  # which number of read streams per thread is fastest depends on the machine


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Bench:
    """Medians over the repeats; speeds of the model alone, without sampling and text.

    Attributes
    ----------
    model, isa, placement : str
    threads, nodes : int
    n_prompt, n_gen : int
    prompt_tokens_per_second, gen_tokens_per_second : float
        Of a prompt of n_prompt tokens; of n_gen single tokens after an empty context.
    bytes_per_token : int
        Weight bytes that one generated token reads.
    read_limit : float
        Bytes per second that the same threads read at best, each from its own node.
    """

    model: str
    isa: str
    threads: int
    nodes: int
    placement: str
    n_prompt: int
    n_gen: int
    prompt_tokens_per_second: float
    gen_tokens_per_second: float
    bytes_per_token: int
    read_limit: float

    @property
    def gb_per_second(self):
        """Weights read per second of generation, 10^9 bytes, float."""
        return self.gen_tokens_per_second * self.bytes_per_token / 1e9

    def to_dict(self):
        """The object that ``numainfer bench --json`` prints."""
        return {
            "model": self.model,
            "isa": self.isa,
            "threads": self.threads,
            "nodes": self.nodes,
            "placement": self.placement,
            "pp": {"n": self.n_prompt, "tokens_per_second": self.prompt_tokens_per_second},
            "tg": {
                "n": self.n_gen,
                "tokens_per_second": self.gen_tokens_per_second,
                "bytes_per_token": self.bytes_per_token,
                "gb_per_second": self.gb_per_second,
            },
            "read_limit_gb_per_second": self.read_limit / 1e9,
        }

    def __repr__(self):
        share = self.gb_per_second * 1e9 / self.read_limit
        return (
            f"{self.model}: {self.isa}, {self.threads} threads on {self.nodes} node{'s' * (self.nodes > 1)}, "
            f"{self.placement}\n"
            f"  prompt {self.n_prompt:6} tokens {self.prompt_tokens_per_second:10.1f} tokens/s\n"
            f"  decode {self.n_gen:6} tokens {self.gen_tokens_per_second:10.1f} tokens/s"
            f" {self.gb_per_second:8.1f} GB/s, {share:.0%} of the {self.read_limit / 1e9:.1f} GB/s that can be read"
        )


def bench(model, n_prompt=512, n_gen=128, repeats=3):
    """Measure prefill, decode and the memory's read limit in one run, taking turns.

    Parameters
    ----------
    model : Model
    n_prompt, n_gen : int
        Tokens of the prompt, and tokens generated.
    repeats : int

    Returns
    -------
    Bench

    Raises
    ------
    TypeError, ValueError, ContextOverflow
        A number out of range; the message names it.
    """
    from .model import Model

    if not isinstance(model, Model):
        raise TypeError(f"model: found {type(model).__name__}, wanted a Model (numainfer.load gives one)")
    n_prompt, n_gen = integer("n_prompt", n_prompt, 1), integer("n_gen", n_gen, 1)
    repeats = integer("repeats", repeats, 1)
    for name, n in (("n_prompt", n_prompt), ("n_gen", n_gen)):
        if n > model.n_ctx:
            raise ContextOverflow(f"{name} = {n}, but the context holds n_ctx = {model.n_ctx}")
    engine = model._check_usable()
    ids = np.random.default_rng(0).integers(0, model.n_vocab, max(n_prompt, n_gen), dtype=np.int32)
    kv = model._new_kv()
    try:
        _prefill(model, kv, ids[: min(n_prompt, 32)])
        _decode(model, kv, ids[: min(n_gen, 4)])  # both once unmeasured: first touches, page faults, clocks
        prompt, gen, limit = [], [], []
        for _ in range(repeats):
            prompt.append(n_prompt / _prefill(model, kv, ids[:n_prompt]))
            gen.append(n_gen / _decode(model, kv, ids[:n_gen]))
            limit.append(_read_limit(engine, model))
    finally:
        kv.close()
    return Bench(
        model=model.path.name,
        isa=engine.isa,
        threads=engine.threads,
        nodes=len(engine.nodes),
        placement=engine.placement.policy,
        n_prompt=n_prompt,
        n_gen=n_gen,
        prompt_tokens_per_second=statistics.median(prompt),
        gen_tokens_per_second=statistics.median(gen),
        bytes_per_token=int(engine.bytes_per_token),
        read_limit=statistics.median(limit),
    )


def _prefill(model, kv, ids):
    """Seconds from the ids to the logits after the last."""
    start, n = time.perf_counter(), len(ids)
    for a in range(0, n, model.n_batch):
        b = min(a + model.n_batch, n)
        model._step([(kv, ids[a:b], a)], [b - a - 1] if b == n else [])
    return time.perf_counter() - start


def _decode(model, kv, ids):
    """Seconds for the ids one by one."""
    start = time.perf_counter()
    for i in range(len(ids)):
        model._step([(kv, ids[i : i + 1], i)], [0])
    return time.perf_counter() - start


def _read_limit(engine, model):
    """Bytes per second that the engine's workers read, each from memory of its own node."""
    from . import _core

    n_bytes = max(_READ_BYTES, 4 * cache_bytes())
    n_bytes = min(n_bytes, *(_core.numa_node_memory(node)[1] // (4 * len(engine.nodes)) for node in engine.nodes))
    arenas = []
    try:
        for node in engine.nodes:
            arenas.append(_core.Arena(n_bytes, [node], huge=True))
        addresses = [arena.address for arena in arenas]
        with model._turn:
            engine.lane.team.read_time(addresses, n_bytes, 0)  # writes: until then there are no pages
            seconds = min(engine.lane.team.read_time(addresses, n_bytes, streams) for streams in _STREAMS) / 1e9
    finally:
        for arena in arenas:
            arena.close()
    return n_bytes * len(arenas) / seconds


def cache_bytes():
    """Bytes of all third-level caches of the machine; 0 where the system does not tell."""
    caches = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
        try:
            size = (index / "size").read_text().strip()
            caches[(index / "shared_cpu_list").read_text()] = int(size.removesuffix("K")) << 10
        except (OSError, ValueError):
            return 0
    return sum(caches.values())
