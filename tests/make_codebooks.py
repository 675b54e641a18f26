"""Writes csrc/formats/codebook_sets.h: the code books of IQ1, IQ2 and IQ3, as gguf.quants has them, each as a set of bits.

A code book is a list of words of 4 or 8 digits, in ascending order of the number that these digits write (the first is the lowest), so
that it is told by which numbers are in it.

    python tests/make_codebooks.py
"""

import pathlib

import gguf.quants
import numpy as np

PATH = pathlib.Path(__file__).resolve().parents[1] / "csrc" / "formats" / "codebook_sets.h"
HEAD = """\
/* Which numbers are words of each code book (codebook.h): bit n % 64 of item n / 64.  Written by tests/make_codebooks.py. */
"""
NAMES = ("IQ3_XXS", "IQ3_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S")  # IQ1_M has IQ1_S's


def numbers(name):
    """The words of a code book as numbers, int array (words,), ascending; base, digits."""
    kind = getattr(gguf.quants, name)
    kind.init_grid()
    base, digits = len(kind.grid_map), kind.grid_shape[1]
    grid = np.searchsorted(kind.grid_map, kind.grid.reshape(kind.grid_shape))
    assert (np.asarray(kind.grid_map)[grid] == kind.grid.reshape(kind.grid_shape)).all()
    found = (grid * base ** np.arange(digits)).sum(-1)
    assert (np.diff(found) > 0).all()
    return found, base, digits


def text():
    """The file's text."""
    parts = [HEAD]
    for name in NAMES:
        found, base, digits = numbers(name)
        bits = np.zeros(-(-(base**digits) // 64) * 64, np.uint8)
        bits[found] = 1
        items = [f"0x{item:016x}" for item in np.packbits(bits, bitorder="little").view("<u8")]
        lines = [", ".join(items[i : i + 6]) for i in range(0, len(items), 6)]
        parts.append(f"static const uint64_t set_{name.lower()}[] = {{\n    " + ",\n    ".join(lines) + ",\n};\n")
    return "".join(parts)


if __name__ == "__main__":
    PATH.write_text(text())
