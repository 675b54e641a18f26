"""A small vocabulary of PLaMo 2's kind, texts, and their ids as llama.cpp has them.

python tests/plamo_vectors.py /path/to/python    writes golden/plamo2.json, by a Python that has llama-cpp-python (that of 0.3.36 was used)
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden" / "plamo2.json"
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6


def metadata():
    """Keys of a tokenizer: control tokens, bytes, pieces of few letters whose scores are often the same, some of them long."""
    rnd = random.Random(5)
    tokens = [("<|plamo:unk|>", 0.0, UNKNOWN), *((f"<|plamo:{name}|>", 0.0, CONTROL) for name in ("bos", "eos", "pad", "op"))]
    tokens += [(f"<0x{b:02X}>", 0.0, BYTE) for b in range(256)]
    pieces = list("abcdefg 日本語、🙂\n") + ["  ", "日本", "本語", "語🙂", " the", "the ", "aaaa", "ß"]
    pieces += ["".join(rnd.choices("aabbcd 日", k=rnd.randrange(2, 7))) for _ in range(150)]
    pieces = list(dict.fromkeys(pieces))
    tokens += [(piece, rnd.choice((-3.0, -4.5, -6.0, -7.12345, -9.0, -12.25)) * rnd.choice((1, 1, 2)), NORMAL) for piece in pieces]
    tokens += [(letter, -3.0, NORMAL) for letter in "mnop"] + [("mn", -6.00008, NORMAL), ("op", -6.00004, NORMAL)]  # a tie, once rounded
    tokens += [("uv", 0.0, NORMAL), ("éu", -999.0, NORMAL), ("v", -0.9995, NORMAL)]  # hardly better than é's bytes and uv
    tokens += [("xy", -999.0, NORMAL), ("[PAD1]", -1000.0, UNUSED), ("zq", -2500.0, NORMAL)]
    texts, scores, types = map(list, zip(*tokens))
    return {"tokenizer.ggml.model": "plamo2", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": types, "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 3, "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.eot_token_id": 4}  # fmt: skip


def texts():
    rnd = random.Random(6)
    letters = ("aaabbbcccdd", "abcd 日本語", "abcdefg  \n日本語、🙂ßxyzqé\u0301\U0001f9ff\x00")
    found = ["", " ", "xyxy", "zq", "é", "ééa", "日本語🙂", "the the", "<|plamo:op|>a", "<|plamo:op", "a<|plamo:eos|> b", "<0x41>", "<0x41"]
    found += ["mn", "op", "opmnop", "éuv", "uvéuvé"]
    found += ["".join(rnd.choices(rnd.choice(letters), k=rnd.randrange(1, 40))) for _ in range(300)]
    return [*found, "".join(rnd.choices(letters[1], k=3000))]


def write(path):
    """A file of nothing but keys: those of the tiny plamo2 model, and the tokenizer."""
    sys.path.insert(0, str(HERE / "archs"))
    import gguf
    from make_gguf import templates

    writer, t = gguf.GGUFWriter(path, "plamo2"), templates()["plamo2"]
    for key, value in t["kv"].items():
        if key == "vocab_size":
            continue
        add = writer.add_array if isinstance(value, list) else writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"plamo2.{key}", value)
    for key, value in metadata().items():
        add = writer.add_array if isinstance(value, list) else writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LLAMA_CPP = """
import ctypes, json, sys
import llama_cpp as lib
lib.llama_backend_init()
how = lib.llama_model_default_params()
how.vocab_only = True
vocab = lib.llama_model_get_vocab(lib.llama_model_load_from_file(sys.argv[1].encode(), how))
found = []
for text in json.load(sys.stdin):
    data, ids = text.encode(), (ctypes.c_int32 * 9000)()
    n = lib.llama_tokenize(vocab, data, len(data), ids, 9000, True, True)
    found.append(list(ids[:n]))
print(json.dumps(found))
"""


def main(python):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plamo2.gguf"
        write(path)
        done = subprocess.run([python, "-c", LLAMA_CPP, str(path)], check=True, input=json.dumps(texts()), capture_output=True, text=True)
        GOLDEN.write_text(json.dumps(json.loads(done.stdout.splitlines()[-1])).replace(" ", "") + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
