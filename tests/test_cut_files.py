"""A file that somebody cuts while it is open: CorruptModel with its path and offset, never a signal."""

from core_tools import python
from tiny_models import tiny

# Cuts the file just before the nth read of it, to sizes that leave less than every thing that is read; then at random moments.
CUTS = """if True:
    import os, random, sys, threading
    import numainfer.gguf.file as file
    from core_tools import open_engine
    from numainfer.errors import CorruptModel
    from numainfer.gguf.file import GGUFFile

    path, whole = sys.argv[1], open(sys.argv[1], "rb").read()
    read = os.pread

    def load():
        with open_engine(path):
            return "loaded"

    def attempt(load=load):
        try:
            return load()
        except CorruptModel as e:
            assert e.path == path and path in str(e) and e.offset is not None and 0 <= e.offset <= len(whole), repr(e)
            return "told"
        finally:
            with open(path, "r+b") as f:
                f.write(whole)
"""

READS = CUTS + """
    with GGUFFile(path) as gguf:
        tensors = sorted(gguf.tensors.values(), key=lambda t: t.offset)
        matrix = next(t for t in tensors if len(t.shape) == 2)
        vector = next(t for t in tensors if len(t.shape) == 1)
    sizes = [0, 1, 30, 5000, matrix.offset, matrix.offset + 40, vector.offset + 4, tensors[-1].offset, len(whole) - 5000]
    counts = {}
    for size in sizes:
        n = 0
        while True:
            reads = [0]

            def pread(fd, n_bytes, at):
                reads[0] += 1
                if reads[0] == n + 1:
                    os.truncate(path, size)
                return read(fd, n_bytes, at)

            file.os.pread = pread
            found = attempt()
            file.os.pread = read
            if reads[0] <= n:
                assert found == "loaded"
                break
            assert found == "told", (size, n)
            n += 1
        counts[size] = n
    print(min(counts.values()))
"""

FILLING = CUTS + """
    check, tensor = file.Tensor.check, GGUFFile(path).tensors
    last = max(tensor.values(), key=lambda t: t.offset)
    for size in [0, 1, 5000, *(t.offset + t.n_bytes // 2 for t in tensor.values()), last.offset + last.n_bytes - 1]:
        def cut(tensor):
            check(tensor)
            os.truncate(path, size)

        file.Tensor.check = cut
        assert attempt() == "told", size
        file.Tensor.check = check
    print(len(tensor))
"""

RANDOM = CUTS + """
    import time
    from numainfer.engine.copies import Replicas

    fill, check, rng, seconds = Replicas.fill, file.Tensor.check, random.Random(int(sys.argv[2])), []

    def timed(*arguments):
        start = time.perf_counter()
        fill(*arguments)
        seconds.append(time.perf_counter() - start)

    Replicas.fill = timed
    for _ in range(3):
        load()
    found = {"told": 0, "loaded": 0}
    for _ in range(int(sys.argv[3])):
        size, wait = rng.randrange(len(whole)), rng.random() * min(seconds)

        def cut():
            end = time.perf_counter() + wait
            while time.perf_counter() < end:
                time.sleep(0)
            os.truncate(path, size)

        thread = threading.Thread(target=cut)

        def begin(tensor):  # the last look before the workers begin
            check(tensor)
            if not thread.ident:
                thread.start()

        def meet():
            file.Tensor.check = begin
            try:
                return load()
            finally:
                file.Tensor.check = check
                thread.join()

        found[attempt(meet)] += 1
    print(found["told"])
"""


def test_before_any_read(tmp_path):
    """Header, strings of the vocabulary, vectors, the look at the end."""
    assert int(python(READS, tiny(tmp_path, "llama", "Q8_0"), timeout=120)) > 5


def test_before_the_workers_read(tmp_path):
    assert int(python(FILLING, tiny(tmp_path, "llama", "Q8_0"), timeout=120)) > 10


def test_at_any_moment(tmp_path):
    # Large enough for the load to last many times as long as a thread needs to begin.
    path = tiny(tmp_path, "llama", "F32", layers=6, width=512, feed_forward=1024)
    assert int(python(RANDOM, path, 1, 30, timeout=120)) > 3
