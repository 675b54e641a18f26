"""Make tests/golden: tiny random models and the logits that Hugging Face transformers computes for them.

    pip install torch transformers
    python tests/make_goldens.py

Weights are rounded to float16 before transformers sees them, so the GGUF holds exactly what it computed with. Each
golden is NAME.gguf plus NAME.npz with ``ids`` (n,) and ``logits`` float32 (n, n_vocab), computed in float64.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from tiny_models import add_bpe_tokenizer, add_spm_tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).resolve().parent / "golden"
NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
AFTER_ATTENTION = {"llama": {"post_attention_layernorm": "ffn_norm"},
                   "gemma3": {"post_attention_layernorm": "post_attention_norm",
                              "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}}


def main():
    """Write all goldens."""
    llama = {"vocab_size": 285, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
             "rms_norm_eps": 1e-5}
    golden("llama", LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=False,
                                                 rope_parameters={"rope_type": "default", "rope_theta": 10000.0})))
    # Context lengths such that some frequencies are kept, some blended, some divided.
    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    golden("llama3", LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=True, rope_parameters=scaling)))
    golden("gemma3", Gemma3ForCausalLM(Gemma3TextConfig(
        vocab_size=383, hidden_size=32, intermediate_size=64, num_hidden_layers=7, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=8, max_position_embeddings=128,
        rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}})))


def golden(name, model):
    """Randomise, compute, write."""
    arch = "gemma3" if name == "gemma3" else "llama"
    torch.manual_seed(20250601)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            std = 0.3 if weight.ndim == 1 else weight.shape[1] ** -0.5 * (1.0 if "embed" in key else 1.5)
            centre = 1.0 if weight.ndim == 1 and arch == "llama" else 0.0
            weight.copy_(torch.randn_like(weight).mul(std).add(centre).half().float())
    model = model.double().eval()
    ids = np.random.default_rng(7).integers(6, model.config.vocab_size, 40)
    with torch.no_grad():
        logits = model(torch.tensor(ids[None])).logits[0].numpy()
    np.savez_compressed(FOLDER / f"{name}.npz", ids=ids.astype(np.int32), logits=logits.astype(np.float32))
    write(name, arch, model)
    print(f"{name}: {(FOLDER / f'{name}.gguf').stat().st_size} bytes, logits deviate by {logits.std():.2f}")


def write(name, arch, model):
    """The model as GGUF: matrices in float16, vectors in float32."""
    c = model.config
    writer = gguf.GGUFWriter(FOLDER / f"{name}.gguf", arch)
    writer.add_name(f"golden {name}")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    if arch == "llama":
        writer.add_rope_dimension_count(c.head_dim)
        writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
        size = add_bpe_tokenizer(writer)
    else:
        rope = c.rope_parameters["full_attention"]
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_sliding_window(c.sliding_window)
        size = add_spm_tokenizer(writer)
    if size != c.vocab_size:
        raise SystemExit(f"{name}: the tokenizer has {size} tokens, the model {c.vocab_size}")
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and c.tie_word_embeddings:
            continue
        writer.add_tensor(_gguf_name(key, arch), _stored(key, weight.numpy(), arch, c))
    if arch == "llama" and c.rope_parameters["rope_type"] == "llama3":
        # transformers keeps the scaled frequencies; GGUF wants what the unscaled ones are divided by.
        plain = c.rope_parameters["rope_theta"] ** -(np.arange(0, c.head_dim, 2) / c.head_dim)
        scaled = model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(key, arch):
    if key == "lm_head.weight":
        return "output.weight"
    parts = key.removeprefix("model.").removesuffix(".weight").split(".")
    names = NAMES | AFTER_ATTENTION[arch]
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{names['.'.join(parts[2:])]}.weight"
    return f"{names[parts[0]]}.weight"


def _stored(key, weight, arch, config):
    if weight.ndim == 1:
        return (weight + (arch == "gemma3")).astype(np.float32)  # Gemma's norms multiply by 1 + weight
    if arch == "llama" and ("q_proj" in key or "k_proj" in key):
        # From halves (i, i + E/2) to neighbours (2i, 2i + 1): the pairs that llama files rotate.
        weight = weight.reshape(-1, 2, config.head_dim // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    return weight.astype(np.float16)


if __name__ == "__main__":
    main()
