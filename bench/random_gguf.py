"""Write random llama models of real shapes, to measure speed without downloading anything.

    python bench/random_gguf.py 1b q4_k OUT.gguf
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from random_blocks import TYPES, fitting_type, random_weights


class Shape(NamedTuple):
    """Sizes of a llama model: width, layers, heads, key/value heads, feed-forward width."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int


SHAPES = {
    "100m": Shape(768, 12, 12, 4, 2048),
    "1b": Shape(2048, 16, 32, 8, 8192),
    "3b": Shape(3072, 28, 24, 8, 8192),
    "8b": Shape(4096, 32, 32, 8, 14336),
}


def write(path, shape, weight_type, *, embedding_type="Q8_0", layers=None, tokenizer_from, seed=0):
    """Write a random model with tied embeddings.

    Parameters
    ----------
    path : Path
        Where to; replaced only when the file is complete.
    shape : str or Shape
        A name from SHAPES, or sizes.
    weight_type, embedding_type : str
        GGUF types, any case, such as "q4_k".
    layers : int, optional
        Instead of the shape's own number.
    tokenizer_from : Path
        GGUF file whose ``tokenizer.*`` metadata, and so vocabulary, is copied.
    """
    shape = SHAPES[shape] if isinstance(shape, str) else shape
    weight_type, embedding_type, layers = weight_type.upper(), embedding_type.upper(), layers or shape.layers
    for name in (weight_type, embedding_type):
        if name not in TYPES:
            raise SystemExit(f"{name} is not a known type; wanted one of: {', '.join(TYPES)}")
    rng = np.random.default_rng(seed)
    part = Path(f"{path}.part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_name(f"random llama {shape.width} x {layers} {weight_type}")
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    n_vocab = _copy_tokenizer(writer, tokenizer_from)
    tensors = list(_tensors(shape, layers, n_vocab, weight_type, embedding_type))
    for name, rows, columns, kind in tensors:
        kind = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape_ = (columns,) if rows is None else (rows, columns)
        n_bytes = (rows or 1) * columns // block * size
        writer.add_tensor_info(name, shape_, np.dtype(np.float32), n_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, rows, columns, kind in tensors:  # one at a time: a model larger than memory can be written
        if rows is None:
            data = rng.uniform(0.8, 1.2, columns).astype(np.float32)
        else:
            data = random_weights(rng, rows, columns, kind, std=columns**-0.5)
        writer.write_tensor_data(data)
    writer.close()
    part.replace(path)


def _tensors(shape, layers, n_vocab, weight_type, embedding_type):
    """(name, rows or None for a vector, columns, type) of every tensor, in the order of the file."""
    width, kv = shape.width, shape.width // shape.heads * shape.kv_heads

    def matrix(name, rows, columns, kind=weight_type):
        return f"{name}.weight", rows, columns, fitting_type(kind, columns)

    yield matrix("token_embd", n_vocab, width, embedding_type)
    yield "output_norm.weight", None, width, "F32"
    for i in range(layers):
        yield f"blk.{i}.attn_norm.weight", None, width, "F32"
        yield matrix(f"blk.{i}.attn_q", width, width)
        yield matrix(f"blk.{i}.attn_k", kv, width)
        yield matrix(f"blk.{i}.attn_v", kv, width)
        yield matrix(f"blk.{i}.attn_output", width, width)
        yield f"blk.{i}.ffn_norm.weight", None, width, "F32"
        yield matrix(f"blk.{i}.ffn_gate", shape.feed_forward, width)
        yield matrix(f"blk.{i}.ffn_up", shape.feed_forward, width)
        yield matrix(f"blk.{i}.ffn_down", width, shape.feed_forward)


def _copy_tokenizer(writer, source):
    """Copy all ``tokenizer.*`` metadata; returns the number of tokens."""
    fields = gguf.GGUFReader(source).fields
    for key, field in fields.items():
        if key.startswith("tokenizer."):
            kind, *rest = field.types
            writer.add_key_value(key, field.contents(), kind, sub_type=rest[-1] if rest else None)
    return len(fields["tokenizer.ggml.tokens"].data)


def main(argv=None):
    """Command line."""
    from models import find_model

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("type", help=f"one of {', '.join(TYPES)}")
    parser.add_argument("path", type=Path)
    parser.add_argument("--embedding-type", default="Q8_0")
    parser.add_argument("--layers", type=int)
    args = parser.parse_args(argv)
    write(args.path, args.shape, args.type, embedding_type=args.embedding_type, layers=args.layers,
          tokenizer_from=find_model("smollm2"))


if __name__ == "__main__":
    main()
