"""Files that are no GGUF file, or a broken one: each gets its own error, with the byte, and soon."""

import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time

import pytest
from gguf_tools import GGUF, info, pair, small, string, value

from numainfer.errors import CorruptModel, ModelNotFound, UnsupportedModel
from numainfer.gguf.file import GGUFFile, Strings

BROKEN = (CorruptModel, UnsupportedModel)


def refused(tmp_path, g, kind=CorruptModel):
    """The error that opening ``g`` (a GGUF or bytes) raises."""
    path = tmp_path / "x.gguf"
    path.write_bytes(bytes(g))
    with pytest.raises(kind) as e:
        GGUFFile(path)
    assert str(path) in str(e.value)
    return e.value


# --- files that are something else -------------------------------------------------------------------------------


@pytest.mark.parametrize("head, what", [
    (b"PK\3\4" + bytes(40), "zip"), (struct.pack("<Q", 10) + b'{"a": {}  }' + bytes(40), "safetensors"),
    (b"<!DOCTYPE html><html>", "HTML"), (b"\n <html><body>", "HTML"), (b"<?xml version='1.0'?>", "XML"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"), (b'{"error": "x"}', "JSON"),
    (bytes(100), "zeros"), (b"tjgg" + bytes(20), "GGML"), (b"FUGG" + bytes(20), "swapped"), (b"hello world", "b'hell', wanted b'GGUF'"),
])  # fmt: skip
def test_says_what_it_is_instead(tmp_path, head, what):
    e = refused(tmp_path, head)
    assert what in str(e) and e.offset == 0


@pytest.mark.parametrize("head", [b"", b"G", b"GGU", b"x"])
def test_too_short_for_a_magic(tmp_path, head):
    assert refused(tmp_path, head).offset == 0


def test_versions_and_byte_orders(tmp_path):
    assert "big-endian" in str(refused(tmp_path, GGUF(order=">"), UnsupportedModel))
    assert refused(tmp_path, GGUF(version=1), UnsupportedModel).supported == (2, 3)
    assert refused(tmp_path, GGUF(version=4), UnsupportedModel).value == 4
    assert refused(tmp_path, GGUF(version=0)).offset == 4
    assert refused(tmp_path, GGUF(version=0x12345678)).offset == 4


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "fifo.gguf")
    for path, words in ((tmp_path, "directory"), (tmp_path / "none.gguf", "No such file"), ("/dev/null", "regular"),
                        (tmp_path / "fifo.gguf", "regular"), ("a\0b", "NUL"), ("x" * 5000, "too long")):  # fmt: skip
        with pytest.raises(ModelNotFound, match=words):
            GGUFFile(path)
    with pytest.raises(TypeError):
        GGUFFile(3)


def test_unreadable_file():
    code = (
        "import os, sys; import numainfer.gguf.file as g, numainfer.errors as e\n"
        "if os.getuid() == 0: os.setuid(65534)\n"  # root may read anything
        "try: g.GGUFFile(sys.argv[1])\n"
        "except e.ModelNotFound as x: print(x)\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to other users altogether
        os.chmod(folder, 0o755)
        path = small().write(pathlib.Path(folder, "secret.gguf"))
        path.chmod(0)
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert "secret.gguf cannot be read: Permission denied" in done.stdout, done.stderr


# --- broken files ------------------------------------------------------------------------------------------------


def test_cut_at_every_byte(tmp_path):
    whole = bytes(small())
    path = tmp_path / "x.gguf"
    path.write_bytes(whole)
    GGUFFile(path).close()
    padding = -48 % 32  # of the last tensor; nothing is lost without it
    for cut in range(len(whole) - padding - 1, -1, -1):
        os.truncate(path, cut)
        with pytest.raises(CorruptModel) as e:
            GGUFFile(path)
        assert e.value.offset is not None


HUGE = (2**64 - 1, 2**63, 2**40, 10**6)


@pytest.mark.parametrize("n", HUGE)
def test_absurd_counts(tmp_path, n):
    size = len(bytes(small()))
    array = string("a") + struct.pack("<I", 9)
    text = string("s") + struct.pack("<I", 8)
    for g in (GGUF(n_tensors=n), GGUF(n_pairs=n), GGUF(pairs=[struct.pack("<Q", n) + b"key"]),
              GGUF(pairs=[text + struct.pack("<Q", n) + b"x"]), GGUF(infos=[struct.pack("<Q", n) + b"t"]),
              GGUF(pairs=[array + struct.pack("<IQ", 4, n)]), GGUF(pairs=[array + struct.pack("<IQ", 8, n)]),
              GGUF(pairs=[array + struct.pack("<IQQ", 8, 2, n)]),
              GGUF(pairs=[array + struct.pack("<IQ", 8, 2) + string("x") + struct.pack("<Q", n)])):  # fmt: skip
        assert 4 < refused(tmp_path, g).offset < size


def test_sparse_giants_are_refused_quickly(tmp_path):
    """A sparse file makes room for absurd counts: the limits must hold, not only the file's end."""
    path = tmp_path / "x.gguf"
    array = string("a") + struct.pack("<I", 9)
    start = time.process_time()
    for g in (GGUF(n_tensors=2**30), GGUF(n_pairs=2**30), GGUF(pairs=[array + struct.pack("<IQ", 8, 2**32)]),
              GGUF(pairs=[array + struct.pack("<IQ", 4, 2**32)]), GGUF(pairs=[array + struct.pack("<IQ", 8, 2**25)]),
              GGUF(pairs=[string("s") + struct.pack("<IQ", 8, 2**33)])):  # fmt: skip
        path.write_bytes(bytes(g))
        os.truncate(path, 1 << 36)
        with pytest.raises(UnsupportedModel, match="up to"):
            GGUFFile(path)
    assert time.process_time() - start < 5


def test_bad_pairs(tmp_path):
    arch = pair("general.architecture", "STRING", "llama")
    for pairs, words in (
        ([arch, arch], "twice"),
        ([pair("", "UINT8", 1)], "0 bytes"),
        ([pair("k" * 65536, "UINT8", 1)], "65536 bytes"),
        ([pair(b"a\xffb", "UINT8", 1)], "UTF-8"),
        ([string("k") + struct.pack("<IB", 13, 0)], "unknown value type 13"),
        ([string("k") + struct.pack("<IIQ", 9, 99, 0)], "unknown value type 99"),
        ([pair("k", "BOOL", 2)], "bool 2"),
        ([pair("k", ("ARRAY", "BOOL"), [0, 1, 255])], "bool 255"),
        ([pair("general.architecture", "UINT32", 5)], "wanted str"),
        ([pair("k", "UINT8", 1)], "no key general.architecture"),
    ):
        e = refused(tmp_path, GGUF(pairs=pairs))
        assert words in str(e) and len(str(e)) < 500
    GGUFFile(GGUF(pairs=[arch, pair("k" * 65535, "UINT8", 1)]).write(tmp_path / "a.gguf"))


def test_nested_array(tmp_path):
    inner = value(("ARRAY", "UINT8"), [1])
    g = GGUF(pairs=[string("nest") + struct.pack("<IIQ", 9, 9, 1) + inner])
    assert "nest" in refused(tmp_path, g, UnsupportedModel).key


@pytest.mark.parametrize("kind, x, good", [("UINT32", 64, True), ("UINT32", 8, True), ("UINT32", 0, False),
                                           ("UINT32", 48, False), ("UINT64", 32, False), ("INT32", -32, False),
                                           ("STRING", "32", False), ("BOOL", 1, False)])  # fmt: skip
def test_alignment(tmp_path, kind, x, good):
    g = GGUF(alignment=x if good else 32).pair("general.alignment", kind, x)
    g.tensor("a", (3,), 0, bytes(12)).tensor("b", (3,), 0, b"0123456789ab")
    if good:
        f = GGUFFile(g.write(tmp_path / "a.gguf"))
        assert f.alignment == x and bytes(f.tensors["b"].data) == b"0123456789ab"
    else:
        assert "general.alignment" in str(refused(tmp_path, g))


def test_bad_tensors(tmp_path):
    data = bytes(256)
    for infos, words in (
        ([info("a", (1, 1, 1, 1, 1), 0, 0)], "5 dimensions"),
        ([info("a", (0,), 0, 0)], "dimensions (0,)"),
        ([info("a", (2, 0), 0, 0)], "dimensions (2, 0)"),
        ([info("a", (2**63,), 24, 0)], "below 2**63"),
        ([info("a", (2**32, 2**32), 0, 0)], "below 2**63"),
        ([info("a", (2**62,), 0, 0)], "cut off"),
        ([info("a", (33,), 2, 0)], "rows of 33 values, wanted a multiple of 32 for Q4_0"),
        ([info("a", (128, 2), 12, 0)], "multiple of 256 for Q4_K"),
        ([info("a", (4,), 0, 16)], "offset 16, wanted a multiple of 32"),
        ([info("a", (4,), 0, 256)], "cut off"),
        ([info("a", (65,), 0, 0)], "cut off"),
        ([info("a", (4,), 0, 2**64 - 32)], "cut off"),
        ([info("a", (4,), 0, 0), info("a", (4,), 0, 32)], "twice"),
        ([info("a", (4,), 0, 0), info("b", (4,), 0, 0)], "inside tensor 'a'"),
        ([info("b", (8,), 0, 64), info("a", (17,), 0, 0)], "inside tensor 'a'"),
        ([info("", (4,), 0, 0)], "0 bytes"),
        ([info(b"\xc3", (4,), 0, 0)], "UTF-8"),
    ):
        e = refused(tmp_path, GGUF(infos=infos, data=data))
        assert words in str(e) and e.offset is not None, str(e)
    e = refused(tmp_path, GGUF(infos=[info("a", (4,), 4, 0)], data=data), UnsupportedModel)  # 4 was Q4_2
    assert e.value == 4 and "Q4_K" in e.supported
    scalar = GGUFFile(GGUF(infos=[info("a", (), 0, 0)], data=data).write(tmp_path / "a.gguf")).tensors["a"]
    assert scalar.shape == () and scalar.n_bytes == 4


def test_fuzz(tmp_path):
    """Changed bytes and numbers: either the file still opens, or a GGUF error comes, and soon."""
    whole = bytes(small())
    header = len(whole) - 192  # what follows is tensor data, where nothing can be wrong
    path = tmp_path / "x.gguf"
    rng = random.Random(2024)
    numbers = (0, 1, 2, 7, 8, 9, 255, 2**16, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
    opened, slowest = 0, 0.0
    path.touch()
    fd = os.open(path, os.O_WRONLY)  # once: ext4 writes a file that was emptied to the disk, which takes 3 ms
    for _ in range(6000):
        raw = bytearray(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
            at, what = rng.randrange(header), rng.randrange(4)
            if what == 0:
                raw[at] = rng.randrange(256)
            elif what == 1:
                raw[at] ^= 1 << rng.randrange(8)
            elif what == 2:
                raw[at : at + 8] = struct.pack("<Q", rng.choice(numbers))
            else:
                del raw[at : at + rng.randrange(1, 20)]
        if rng.random() < 0.1:
            del raw[rng.randrange(len(raw)) :]
        os.pwrite(fd, raw, 0)
        os.ftruncate(fd, len(raw))
        start = time.process_time()
        try:
            with GGUFFile(path) as f:
                opened += 1
                for t in f.tensors.values():
                    assert t.data.nbytes == t.n_bytes
                for v in f.metadata.values():
                    list(v) if isinstance(v, Strings) else None
        except BROKEN as e:
            assert str(path) in str(e)
        slowest = max(slowest, time.process_time() - start)
    os.close(fd)
    assert 100 < opened < 3000 and slowest < 1
