"""Write random models of real shapes, dense, mixtures, with latent attention or recurrent layers, to measure speed without a download.

    python bench/random_gguf.py 1b q4_k OUT.gguf
    python bench/random_gguf.py moe64 q4_k OUT.gguf
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from random_blocks import TYPES, fitting_type, random_weights


class Latent(NamedTuple):
    """Latent attention as in DeepSeek V3: ranks of queries and of the latent rows, of a head's values those that are not rotated and those
    that are, and the width of what it gives; as in DeepSeek V3.2, an indexer's heads, their width and what they choose."""

    query_rank: int
    rank: int
    plain: int
    rotated: int
    value: int
    index_heads: int = 0
    index_width: int = 0
    chosen: int = 0


class Delta(NamedTuple):
    """Gated delta nets in three of four layers, as in Qwen3-Next and Qwen3.5: the architecture, the width of attention's heads, heads of
    values and of keys and their width, taps of the convolution, and the width of the shared expert."""

    architecture: str
    head: int
    heads: int
    groups: int
    state: int
    taps: int
    shared: int
    value: int = 0  # width of a head of values; 0: as of keys


class Shape(NamedTuple):
    """Sizes of a llama model: width, layers, heads, key/value heads, feed-forward width; or, with experts, of a Qwen3 mixture: the width
    is an expert's, and so many of them meet a token."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    experts: int = 0
    used: int = 0
    latent: Latent | None = None
    delta: Delta | None = None


SHAPES = {
    "100m": Shape(768, 12, 12, 4, 2048),
    "1b": Shape(2048, 16, 32, 8, 8192),
    "3b": Shape(3072, 28, 24, 8, 8192),
    "8b": Shape(4096, 32, 32, 8, 14336),
    "moe64": Shape(2048, 8, 32, 8, 768, experts=64, used=8),
    "moe32": Shape(2048, 8, 32, 8, 768, experts=32, used=4),
    # Fewer layers and experts than the models have; a token reads as much of a layer.
    "qwen3next": Shape(2048, 8, 16, 2, 512, experts=64, used=10, delta=Delta("qwen3next", 256, 32, 16, 128, 4, 512)),
    "qwen35moe": Shape(2048, 8, 16, 2, 512, experts=64, used=8, delta=Delta("qwen35moe", 256, 32, 16, 128, 4, 512)),
    "latent": Shape(2048, 4, 128, 1, 2048, latent=Latent(1536, 512, 128, 64, 128)),
    "sparse": Shape(2048, 4, 128, 1, 2048, latent=Latent(1536, 512, 128, 64, 128, 64, 128, 2048)),
}
EXPERTS_ONLY = {"MXFP4": "Q8_0"}  # types that files use for experts alone: what the other matrices have


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
    sparse = shape.latent and shape.latent.chosen
    architecture = "deepseek32" if sparse else "deepseek2" if shape.latent else "qwen3moe" if shape.experts else "llama"
    architecture = shape.delta.architecture if shape.delta else architecture
    writer = gguf.GGUFWriter(part, architecture)
    writer.add_name(f"random {architecture} {shape.width} x {layers} {weight_type}")
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    head = shape.delta.head if shape.delta else shape.width // shape.heads
    writer.add_rope_dimension_count(shape.latent.rotated if shape.latent else head // 4 if shape.delta else head)
    if shape.latent:
        writer.add_q_lora_rank(shape.latent.query_rank)
        writer.add_kv_lora_rank(shape.latent.rank)
        writer.add_key_length(shape.latent.rank + shape.latent.rotated)
        writer.add_value_length(shape.latent.rank)
        writer.add_key_length_mla(shape.latent.plain + shape.latent.rotated)
        writer.add_value_length_mla(shape.latent.value)
        writer.add_leading_dense_block_count(layers)
        writer.add_expert_used_count(1)  # wanted, though no layer has experts
    if sparse:
        for key, value in (("head_count", shape.latent.index_heads), ("key_length", shape.latent.index_width), ("top_k", shape.latent.chosen)):
            writer.add_uint32(f"{architecture}.attention.indexer.{key}", value)
    if shape.experts or shape.delta:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used)
        writer.add_expert_feed_forward_length(shape.feed_forward)
    if shape.delta:
        if shape.experts:
            writer.add_expert_shared_feed_forward_length(shape.delta.shared)
        writer.add_ssm_conv_kernel(shape.delta.taps)
        writer.add_ssm_state_size(shape.delta.state)
        writer.add_ssm_group_count(shape.delta.groups)
        writer.add_ssm_time_step_rank(shape.delta.heads)
        writer.add_ssm_inner_size(shape.delta.heads * (shape.delta.value or shape.delta.state))
        writer.add_rope_dimension_sections([0, 0, 0, 0] if architecture == "qwen3next" else [11, 11, 10, 0])
    n_vocab = _copy_tokenizer(writer, tokenizer_from)
    tensors = list(tensors_of(shape, layers, n_vocab, weight_type, embedding_type))
    for name, rows, columns, kind, experts in tensors:
        kind = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape_ = tuple(n for n in (experts, rows, columns) if n)
        n_bytes = (experts or 1) * (rows or 1) * columns // block * size
        writer.add_tensor_info(name, shape_, np.dtype(np.float32), n_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, rows, columns, kind, experts in tensors:  # one at a time: a model larger than memory can be written
        if rows is None:
            data = rng.uniform(0.8, 1.2, columns).astype(np.float32) * (-1 if name.endswith("ssm_a") else 1)  # what decays
        else:
            data = random_weights(rng, (experts or 1) * rows, columns, kind, std=columns**-0.5)
        writer.write_tensor_data(data)
    writer.close()
    part.replace(path)


def tensors_of(shape, layers, n_vocab, weight_type, embedding_type):
    """(name, rows or None for a vector, columns, type, experts or None) of every tensor, in the order of the file."""
    width, head = shape.width, shape.delta.head if shape.delta else shape.width // shape.heads

    def matrix(name, rows, columns, kind=None, experts=None):
        kind = kind or (weight_type if experts else EXPERTS_ONLY.get(weight_type, weight_type))
        return f"{name}.weight", rows, columns, fitting_type(kind, columns), experts

    def vector(name, n):
        return f"{name}.weight", None, n, "F32", None

    yield matrix("token_embd", n_vocab, width, embedding_type)
    yield vector("output_norm", width)
    for i in range(layers):
        yield vector(f"blk.{i}.attn_norm", width)
        if shape.delta and (i + 1) % 4:
            d, heads, value = shape.delta, shape.delta.heads, shape.delta.value or shape.delta.state
            channels = 2 * d.groups * d.state + heads * value
            yield matrix(f"blk.{i}.attn_qkv", channels, width)
            yield matrix(f"blk.{i}.attn_gate", heads * value, width)
            yield matrix(f"blk.{i}.ssm_conv1d", channels, d.taps, "F32")
            yield f"blk.{i}.ssm_a", None, heads, "F32", None
            yield f"blk.{i}.ssm_dt.bias", None, heads, "F32", None
            for name, rows in ({"ssm_ba": 2 * heads} if d.architecture == "qwen3next" else {"ssm_beta": heads, "ssm_alpha": heads}).items():
                yield matrix(f"blk.{i}.{name}", rows, width, "F32")
            yield vector(f"blk.{i}.ssm_norm", value)
            yield matrix(f"blk.{i}.ssm_out", width, heads * value)
        elif shape.delta:
            yield matrix(f"blk.{i}.attn_q", 2 * shape.heads * head, width)
            yield matrix(f"blk.{i}.attn_k", shape.kv_heads * head, width)
            yield matrix(f"blk.{i}.attn_v", shape.kv_heads * head, width)
            yield matrix(f"blk.{i}.attn_output", width, shape.heads * head)
        elif shape.latent:
            heads, (query_rank, rank, plain, rotated, value, index_heads, index_width, _) = shape.heads, shape.latent
            yield matrix(f"blk.{i}.attn_q_a", query_rank, width)
            yield vector(f"blk.{i}.attn_q_a_norm", query_rank)
            yield matrix(f"blk.{i}.attn_q_b", heads * (plain + rotated), query_rank)
            yield matrix(f"blk.{i}.attn_kv_a_mqa", rank + rotated, width)
            yield vector(f"blk.{i}.attn_kv_a_norm", rank)
            yield matrix(f"blk.{i}.attn_k_b", rank, plain, experts=heads)
            yield matrix(f"blk.{i}.attn_v_b", value, rank, experts=heads)
            yield matrix(f"blk.{i}.attn_output", width, heads * value)
            if index_heads:
                yield matrix(f"blk.{i}.indexer.attn_q_b", index_heads * index_width, query_rank)
                yield matrix(f"blk.{i}.indexer.attn_k", index_width, width)
                yield matrix(f"blk.{i}.indexer.proj", index_heads, width, "F32")
                yield vector(f"blk.{i}.indexer.k_norm", index_width)
        else:
            yield matrix(f"blk.{i}.attn_q", width, width)
            yield matrix(f"blk.{i}.attn_k", shape.kv_heads * head, width)
            yield matrix(f"blk.{i}.attn_v", shape.kv_heads * head, width)
            yield matrix(f"blk.{i}.attn_output", width, width)
        if (i + 1) % 4 == 0 if shape.delta else shape.experts:
            yield vector(f"blk.{i}.attn_q_norm", head)
            yield vector(f"blk.{i}.attn_k_norm", head)
        yield vector(f"blk.{i}.{'post_attention_norm' if shape.delta else 'ffn_norm'}", width)
        if shape.delta and shape.experts:
            yield matrix(f"blk.{i}.ffn_gate_inp_shexp", 1, width, "F32")
            yield matrix(f"blk.{i}.ffn_gate_shexp", shape.delta.shared, width)
            yield matrix(f"blk.{i}.ffn_up_shexp", shape.delta.shared, width)
            yield matrix(f"blk.{i}.ffn_down_shexp", width, shape.delta.shared)
        if shape.experts:
            yield matrix(f"blk.{i}.ffn_gate_inp", shape.experts, width, "F32")
        of, experts = ("_exps", shape.experts) if shape.experts else ("", None)
        yield matrix(f"blk.{i}.ffn_gate{of}", shape.feed_forward, width, experts=experts)
        yield matrix(f"blk.{i}.ffn_up{of}", shape.feed_forward, width, experts=experts)
        yield matrix(f"blk.{i}.ffn_down{of}", width, shape.feed_forward, experts=experts)


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
