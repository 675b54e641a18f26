"""Models whose layers, and whose experts, have different weight types, as "dynamic" quantisations have them."""

import gguf
import numpy as np
import pytest
from core_tools import logits, open_engine, same_bits
from gguf.quants import dequantize
from random_blocks import random_weights
from tiny_models import add_bpe_tokenizer

WIDTH, HEADS, EXPERTS, USED = 256, 4, 4, 2
# Of each layer: q, k, v, output; gate, up, down of the experts.
LAYERS = (
    ("IQ3_S", "IQ2_XXS", "Q4_K", "IQ3_XXS", "IQ2_XXS", "IQ2_XXS", "IQ3_XXS"),
    ("IQ1_M", "IQ1_S", "IQ2_S", "Q6_K", "IQ1_S", "IQ1_S", "IQ2_XS"),
    ("IQ2_XS", "Q8_0", "IQ3_XXS", "IQ1_S", "IQ3_S", "IQ2_S", "IQ1_M"),
)
IDS = np.random.default_rng(3).integers(3, 250, 60).astype(np.int32)


def write(path, exact):
    """A mixture of experts with the types of LAYERS; exact: the same weights as gguf.quants decodes them."""
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(len(LAYERS))
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(USED)
    n_vocab = add_bpe_tokenizer(writer)

    def matrix(name, rows, kind, experts=None):
        number = gguf.GGMLQuantizationType[kind]
        data = random_weights(rng, rows * (experts or 1), WIDTH, kind, 0.7 * WIDTH**-0.5)
        data = data.reshape(experts, rows, -1) if experts else data
        if exact:
            data, number = dequantize(data, number), gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{name}.weight", data, raw_dtype=number)

    matrix("token_embd", n_vocab, "Q8_0")
    matrix("output", n_vocab, "IQ3_S")
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for i, kinds in enumerate(LAYERS):
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{part}.weight", rng.uniform(0.5, 1.5, WIDTH).astype(np.float32))
        writer.add_tensor(f"blk.{i}.ffn_gate_inp.weight", rng.standard_normal((EXPERTS, WIDTH)).astype(np.float32))
        for part, kind in zip(("attn_q", "attn_k", "attn_v", "attn_output"), kinds):
            matrix(f"blk.{i}.{part}", WIDTH, kind)
        for part, kind in zip(("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"), kinds[4:]):
            matrix(f"blk.{i}.{part}", WIDTH, kind, EXPERTS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return write(tmp_path_factory.mktemp("mixed") / "mixed.gguf", exact=False)


@pytest.fixture(scope="module")
def found(mixed):
    with open_engine(mixed, threads=1) as engine:
        return logits(engine, IDS)


def test_logits_are_those_of_the_same_weights_as_floats(tmp_path, found):
    """But for activations of 8 bits, after which a router may choose another expert where two are nearly equal."""
    with open_engine(write(tmp_path / "exact.gguf", exact=True), threads=1) as engine:
        wanted = logits(engine, IDS)
    error = np.abs(found - wanted).max(axis=1) / np.abs(wanted).max()
    assert np.median(error) < 0.025, error


@pytest.mark.parametrize("nodes, placement", [(1, "auto"), (2, "replicate"), (2, "shard"), (2, "interleave")])
def test_bits_are_the_same_everywhere(mixed, found, monkeypatch, nodes, placement):
    monkeypatch.setenv("NUMAINFER_FAKE_NODES", str(nodes))
    with open_engine(mixed, threads=2, placement=placement, n_batch=33) as engine:
        same_bits(logits(engine, IDS), found)
        same_bits(logits(engine, IDS, [1, 2, 33, 1, 1, 22]), found)
