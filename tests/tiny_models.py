"""Complete models of a few hundred kilobytes: random weights of any type, a tokenizer, every variation of the file.

``tiny(folder, "llama", "Q4_K")`` writes one and returns its path. Odd sizes are on purpose: 3 heads share 1 key/value
head, the vocabulary is no multiple of 8, rows of attention's output are shorter than a K block.
"""

from pathlib import Path

import gguf
import numpy as np
from random_blocks import TYPES, fitting_type, random_weights

ARCHITECTURES = ("llama", "gemma3")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDS = ["Ġt", "he", "in", "Ġa", "re", "Ġthe", "on", "Ġs", "er", "nd", "at", "Ġo", "Ġw", "is", "or", "Ġof", "it", "es",
          "en", "Ġc", "ing", "Ġto", "ed", "al", "Ġin", "Ġand"]
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def tiny(folder, arch="llama", weight_type="F32", *, tied=True, rope_freqs=False, rope_scale=1.0, biases=False,
         chat_template=True, parts=1, layers=2, width=256, heads=3, kv_heads=1, head_width=32, feed_forward=None,
         window=None, context=256, seed=0, name=None, sampling=None):
    """Write a tiny model.

    Parameters
    ----------
    folder : path-like
        Existing folder.
    arch : {"llama", "gemma3"}
        llama gets a byte-level BPE tokenizer ("smollm"), gemma3 a SentencePiece-like one with byte fallback.
    weight_type : str
        GGUF type of every matrix (``random_blocks.TYPES``); one whose rows do not divide into its blocks is Q8_0.
    tied : bool
        False adds an ``output.weight``.
    rope_freqs : bool
        Llama 3's tensor of frequency factors.
    rope_scale : float
        Linear scaling factor; 1 writes no scaling keys.
    biases : bool
        Biases of q, k, v and the attention's output (llama).
    chat_template : bool
        Whether the file carries ``CHAT_TEMPLATE`` (llama).
    parts : int
        More than 1 writes a split model of that many files.
    feed_forward : int, optional
        By default 256 for K types and 160 for the others.
    window : int, optional
        Sliding window: of every second layer of a gemma3 (8 by default), of all of a llama (none by default; Mistral 7B has one).
    sampling : dict, optional
        What the file recommends: keys below ``general.sampling.``, such as ``{"top_k": 20, "temp": 0.5}``.

    Returns
    -------
    Path
        The file, or the first part.
    """
    if arch not in ARCHITECTURES or weight_type not in TYPES:
        raise ValueError(f"tiny: found {arch}, {weight_type}; wanted one of {ARCHITECTURES}, one of {TYPES}")
    rng = np.random.default_rng(seed)
    feed_forward = feed_forward or (256 if weight_type.endswith("_K") else 160)
    path = Path(folder) / f"{name or f'tiny-{arch}-{weight_type}'}.gguf"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(f"tiny {arch}")
    for key, value in (sampling or {}).items():
        (writer.add_int32 if isinstance(value, int) else writer.add_float32)(f"general.sampling.{key}", value)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0 if arch == "llama" else 1000000.0)
    if arch == "llama":
        writer.add_rope_dimension_count(head_width)
        if window is not None:
            writer.add_sliding_window(window)
    else:
        writer.add_sliding_window(8 if window is None else window)
        writer.add_sliding_window_pattern(2)
    if rope_scale != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope_scale)
    n_vocab = add_bpe_tokenizer(writer, chat_template) if arch == "llama" else add_spm_tokenizer(writer)

    tensors = []

    def matrix(name, rows, columns, std=0.0):
        kind = fitting_type(weight_type, columns)
        data = random_weights(rng, rows, columns, kind, std or 1.5 * columns**-0.5)
        tensors.append((f"{name}.weight", data, gguf.GGMLQuantizationType[kind]))

    def vector(name, n, low, high):
        tensors.append((name, rng.uniform(low, high, n).astype(np.float32), gguf.GGMLQuantizationType.F32))

    matrix("token_embd", n_vocab, width, width**-0.5)
    vector("output_norm.weight", width, 1.0, 3.0)  # wide enough for logits that prefer something
    if not tied:
        matrix("output", n_vocab, width)
    if rope_freqs:
        vector("rope_freqs.weight", head_width // 2, 1.0, 8.0)
    for i in range(layers):
        block = f"blk.{i}"
        vector(f"{block}.attn_norm.weight", width, 0.5, 1.5)
        vector(f"{block}.ffn_norm.weight", width, 0.5, 1.5)
        for part, rows, columns in (
            ("attn_q", heads * head_width, width), ("attn_k", kv_heads * head_width, width),
            ("attn_v", kv_heads * head_width, width), ("attn_output", width, heads * head_width),
            ("ffn_gate", feed_forward, width), ("ffn_up", feed_forward, width), ("ffn_down", width, feed_forward),
        ):
            matrix(f"{block}.{part}", rows, columns)
            if biases and part.startswith("attn"):
                vector(f"{block}.{part}.bias", rows, -0.5, 0.5)
        if arch == "gemma3":
            for part, n in (("attn_q_norm", head_width), ("attn_k_norm", head_width),
                            ("post_attention_norm", width), ("post_ffw_norm", width)):
                vector(f"{block}.{part}.weight", n, 0.5, 1.5)
    if parts > 1:
        # The writer counts tensors per part; the count is chosen so that exactly ``parts`` files come out.
        writer.split_max_tensors = -(-len(tensors) // parts)
    for name_, data, kind in tensors:
        writer.add_tensor(name_, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if parts == 1 else path.with_name(f"{path.stem}-00001-of-{parts:05d}.gguf")


def byte_alphabet():
    """GPT-2's printable stand-in of each byte, str of 256 characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    table = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return "".join(table[b] for b in range(256))


def add_bpe_tokenizer(writer, chat_template=True):
    """A byte-level BPE: 3 control tokens, 256 bytes, some merges; returns the size of the vocabulary."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet()]
    kinds = [_CONTROL] * 3 + [_NORMAL] * 256
    merges = []
    for word in _WORDS:  # each is two known tokens: the longest known beginning and the rest
        cut = max(i for i in range(1, len(word)) if word[:i] in tokens and word[i:] in tokens)
        merges.append(f"{word[:cut]} {word[cut:]}")
        tokens.append(word)
        kinds.append(_NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if chat_template:
        writer.add_chat_template(CHAT_TEMPLATE)
    return len(tokens)


def add_spm_tokenizer(writer):
    """A SentencePiece-like vocabulary: control and byte tokens, ASCII, some words; returns its size."""
    tokens, kinds = ["<pad>", "<eos>", "<bos>", "<unk>"], [_CONTROL, _CONTROL, _CONTROL, _UNKNOWN]
    tokens += ["<start_of_turn>", "<end_of_turn>"]
    kinds += [_CONTROL] * 2
    tokens += [f"<0x{b:02X}>" for b in range(256)]
    kinds += [_BYTE] * 256
    scores = [0.0] * len(tokens)
    pieces = [w.replace("Ġ", "▁") for w in _WORDS] + ["▁", *map(chr, range(33, 127))]
    tokens += pieces
    kinds += [_NORMAL] * len(pieces)
    scores += [-float(i) for i in range(len(pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    return len(tokens)
