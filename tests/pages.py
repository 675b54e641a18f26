"""The pages that people read, cut into blocks of code, and what each kind of block is for.

A block's first line says what it is (``KINDS``); a bare fence is an error.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = {
    "python": "runs, in order, with the names of the page's blocks before it",
    "python signature": "parses: a line of the API reference",
    "bash": "each command runs, or stands in the list of those that do not",
    "text": "what the block before it printed, to the letter",
    "text example": "what was printed once, somewhere: numbers vary",
    "text message": "an exception or a warning in the package's own words",
    "text notation": "a formula, a drawing",
    "yaml": "configuration of other programs",
}


class Block(NamedTuple):
    kind: str
    code: str
    line: int  # of its first line of code
    follows: bool  # whether only white space stands between it and the block before


def blocks(page):
    """Blocks of a page, in order.

    Parameters
    ----------
    page : Path or str
        A file, or a text.

    Returns
    -------
    list of Block
    """
    text = page.read_text(encoding="utf-8") if isinstance(page, Path) else page
    found, end = [], 0
    for match in re.finditer(r"^( *)```([^\n]*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(match[2].strip(), match[3], line, bool(found) and not text[end : match.start()].strip()))
        end = match.end()
    return found


def commands(code):
    """The commands of a block: a line each, joined where it ends in a backslash, without comments."""
    joined = re.sub(r" *\\\n *", " ", code)
    words = re.sub(r"""("[^"]*"|'[^']*')|(?<!\S)#.*""", lambda match: match[1] or "", joined)
    return [line.strip() for line in words.splitlines() if line.strip()]


def inline(page):
    """Code within the prose of a page, with line numbers: ``[(line, code)]``."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^( *)```.*?^\1```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    found = re.finditer(r"(?<!`)(`{1,2})(?!`)(.+?)(?<!`)\1(?!`)", prose, re.DOTALL)
    return [(prose.count("\n", 0, match.start()) + 1, " ".join(match[2].split())) for match in found]
