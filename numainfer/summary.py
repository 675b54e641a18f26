"""ModelConfig: what a model file says of itself, in a few numbers."""

import dataclasses
from typing import Any


def _printable(name):
    """A name out of a file, fit for any terminal: no control characters, no half-decoded bytes."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name) if isinstance(name, str) else None


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """A summary of a GGUF file's header. Names are the format's own; None where the file does not say.

    Attributes
    ----------
    architecture : str
    name : str or None
        ``general.name``.
    parameters : int
        Elements of all tensors.
    n_bytes : int
        Of all tensors, as stored.
    types : dict of str to int
        Bytes by tensor type, largest first.
    block_count, context_length, embedding_length, head_count : int or None
    feed_forward_length, head_count_kv : int, list of int, or None
        A list where layers differ.
    vocab_size : int or None
    """

    architecture: str
    name: str | None
    parameters: int
    n_bytes: int
    types: dict[str, int]
    block_count: int | None
    context_length: int | None
    embedding_length: int | None
    feed_forward_length: int | list[int] | None
    head_count: int | None
    head_count_kv: int | list[int] | None
    vocab_size: int | None

    @classmethod
    def from_gguf(cls, gguf):
        """Read it from ``gguf``, an open GGUFFile."""

        def get(key):
            value = gguf.metadata.get(f"{gguf.architecture}.{key}")
            return value.tolist() if hasattr(value, "tolist") else value

        types = {}
        for tensor in gguf.tensors.values():
            types[tensor.type] = types.get(tensor.type, 0) + tensor.n_bytes
        tokens = gguf.metadata.get("tokenizer.ggml.tokens")
        return cls(
            architecture=gguf.architecture,
            name=_printable(gguf.metadata.get("general.name")),
            parameters=sum(t.n_elements for t in gguf.tensors.values()),
            n_bytes=gguf.n_bytes,
            types=dict(sorted(types.items(), key=lambda item: -item[1])),
            block_count=get("block_count"),
            context_length=get("context_length"),
            embedding_length=get("embedding_length"),
            feed_forward_length=get("feed_forward_length"),
            head_count=get("attention.head_count"),
            head_count_kv=get("attention.head_count_kv"),
            vocab_size=get("vocab_size") or (len(tokens) if hasattr(tokens, "__len__") else None),
        )

    @property
    def main_type(self) -> str | None:
        """Type of most of the bytes."""
        return next(iter(self.types), None)

    def to_dict(self) -> dict[str, Any]:
        """A dict that ``json`` can write."""
        return dataclasses.asdict(self)

    def _repr_html_(self) -> str:
        from . import looks

        shown = {"parameters": short_count(self.parameters), "n_bytes": short_bytes(self.n_bytes),
                 "types": ", ".join(f"{name} {n / max(self.n_bytes, 1):.1%}" for name, n in self.types.items())}  # fmt: skip
        pairs = [(f.name, shown.get(f.name, getattr(self, f.name))) for f in dataclasses.fields(self) if f.name != "name"]
        return looks.facts(self.name or self.architecture, [(name, value) for name, value in pairs if value is not None])


def counted(n: int, noun: str, plural: str = "") -> str:
    """(1, "token") -> "1 token"; (2, "token") -> "2 tokens"; (2, "matrix", "matrices") -> "2 matrices"."""
    return f"{n} {noun}" if n == 1 else f"{n} {plural or noun + 's'}"


def short_count(n):
    """134515008 -> "134.5M"."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return str(n)


def short_bytes(n):
    """96600000 -> "96.6 MB"; from a hundred on without a fraction: 134515008 -> "135 MB"."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if n >= size:
            return f"{n / size:.{0 if n >= 100 * size else 1}f} {unit}"
    return f"{n} B"
