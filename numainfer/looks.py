"""How things look in a notebook: HTML and Markdown without JavaScript, for light and dark themes.

Colours are half transparent backgrounds; text keeps the theme's colour. What comes from a model or a file is escaped here.
"""

import html
import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

from .summary import counted, short_bytes

PARTS = {"weights": "#4c78a8", "KV": "#f58518", "scratch": "#54a24b", "others": "#9d9d9d"}
"""What memory holds, and its colour; the rest of a bar is free."""
_MOST_ROWS, _MOST_TOKENS, _MOST_TEXT = 50, 2000, 300
_LEFT = ' style="text-align:left;white-space:pre-wrap"'


class Html(str):
    """Markup that is escaped already."""


def escaped(value: object) -> str:
    """Markup of any text, or the markup itself."""
    return value if isinstance(value, Html) else html.escape(str(value))


def table(head: Sequence[object], rows: Sequence[Sequence[object]], title: str = "", left: Sequence[int] = ()) -> Html:
    """A table, beneath a title; text is escaped.

    Parameters
    ----------
    head : sequence of str
    rows : sequence of sequences of str or Html
    title : str
    left : sequence of int
        Columns of running text.
    """
    def cell(i, value):
        return f"<td{_LEFT if i in left else ''}>{escaped(value)}</td>"

    body = "".join("<tr>" + "".join(cell(i, value) for i, value in enumerate(row)) + "</tr>" for row in rows)
    names = "".join(f"<th{_LEFT if i in left else ''}>{escaped(name)}</th>" for i, name in enumerate(head))
    return Html(f"{f'<p>{escaped(title)}</p>' if title else ''}<table><tr>{names}</tr>{body}</table>")


def facts(title: str, pairs: Sequence[tuple[object, object]]) -> Html:
    """A table of names and values under a caption."""
    rows = "".join(f"<tr><th>{escaped(name)}</th><td{_LEFT}>{escaped(value)}</td></tr>" for name, value in pairs)
    return Html(f"<table>{_caption(title)}{rows}</table>")


def _caption(title):
    return f'<caption style="white-space:nowrap">{escaped(title)}</caption>'


def foldable(summary: str, body: str) -> Html:
    """What is shown when its summary is clicked; ``body`` is markup."""
    return Html(f"<details><summary>{escaped(summary)}</summary>{body}</details>")


def preformatted(text: str) -> Html:
    return Html(f'<pre style="max-height:30em;overflow:auto">{escaped(text)}</pre>')


def _short(text):
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"


def _more(n, noun):
    return Html(f"<p>… and {counted(n, f'more {noun}', f'more {noun}s')}</p>") if n > 0 else Html("")


# ---- answers ---------------------------------------------------------------------------------------------------------

_RAW = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")  # where HTML and pictures begin
_UNCLEAR = re.compile(r"```|~~~|\$|\\\(|\\\[|\\begin")  # fences in a line, and mathematics, which notebooks take out first
_OPENING = re.compile(r"(`{3,}|~{3,})[\w+#. -]*")


def markdown(text: str) -> str:
    """An answer as Markdown that shows what the model wrote and does nothing: HTML is not obeyed, pictures are not fetched.

    A notebook obeys HTML in outputs of its own cells, and a picture's address could carry the prompt away. So an invisible character
    (U+2060) goes behind ``<`` and ``!`` wherever they could begin either, but in fenced code, which people copy. What is fenced must be
    beyond doubt for every renderer: from the first line on that is not, nothing counts as fenced any more.
    """
    out, fence, sure = [], "", True
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if fence:
            if re.fullmatch(f"{fence[0]}{{{len(fence)},}} *", line):
                fence = ""
            elif line.lstrip(" \t>").startswith(("```", "~~~")):  # some renderers close here
                fence, sure = "", False
            elif _UNCLEAR.search(line):
                sure = False  # for the next fence
            out.append(line if sure or fence else _RAW.sub("\\g<0>\u2060", line))
            continue
        opening = _OPENING.fullmatch(line)
        if opening and sure:
            fence = opening[1]
        elif _UNCLEAR.search(line):
            sure = False
        out.append(_RAW.sub("\\g<0>\u2060", line))
    return "\n".join(out + [fence] * bool(fence))


def _rate(timings):
    speed = timings.generation_tokens_per_second
    return "" if speed is None else f"{speed:.1f}"


def answer(done: Any) -> str:
    """Markdown of a Completion, with a line on it."""
    speed = _rate(done.timings)
    said = [counted(done.usage.completion_tokens, "token"), f"{speed} tokens/s" if speed else "", done.finish_reason or "unfinished"]
    if done.error is not None:
        said[-1] = f"error: {type(done.error).__name__}: {done.error}"
    shown = [_thoughts(done), markdown(done.text) if done.text.strip() else "", *map(call, done.tool_calls)]
    text = "\n\n".join(filter(None, shown)) or "*(no text)*"
    line = markdown(escaped(" · ".join(filter(None, said)).replace("\n", " ")))  # an error may quote a prompt
    return f'{text}\n\n<small style="opacity:0.6">{line}</small>'


def _literal(text):
    """Markup of any text within HTML within Markdown: one line in which no renderer finds a mark of either.

    To stand in pre or code, where notebooks look for no mathematics.
    """
    return re.sub(r"[^\w ,.:;=/(){}'+?…-]", lambda found: f"&#{ord(found[0])};", text)


def _thoughts(done):
    """The model's thinking, folded; open while nothing else has come."""
    if not (done.reasoning or "").strip():
        return ""
    opened = " open" if not done.text.strip() and not done.tool_calls and done.finish_reason is None else ""
    return (f'<details{opened}><summary style="opacity:0.6">{_thought(done)}</summary>'
            '<pre style="white-space:pre-wrap;font-family:inherit;opacity:0.6">'
            f"{_literal(done.reasoning.strip())}</pre></details>")  # fmt: skip


def _thought(done):
    return f"thinking, {counted(len(done.reasoning.split()), 'word')}"


def _written(call):
    """A call as in Python: ``name(key=1, other="text")``."""
    return f"{call.name}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in call.arguments.items())})"


def call(asked: Any) -> str:
    """Markdown of a ToolCall; a long one is folded."""
    whole = _written(asked)
    if len(whole) <= _MOST_TEXT:
        return f"<div>calls <code>{_literal(whole)}</code></div>"
    body = _literal("\n".join(f"{key} = {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)}"
                              for key, value in asked.arguments.items()))  # fmt: skip
    return (f"<details><summary>calls <code>{_literal(asked.name)}(…)</code></summary>"
            f'<pre style="white-space:pre-wrap">{body}</pre></details>')  # fmt: skip


def answers(done: Sequence[Any]) -> Html:
    """A table of Completions."""
    rows = []
    for i, one in enumerate(done[:_MOST_ROWS]):
        text = _short(one.text.strip())
        if not text and (one.reasoning or "").strip():  # it was cut before an answer began
            text = f"({_thought(one)})"
        text = "\n".join(filter(None, [text, *(f"calls {_short(_written(call))}" for call in one.tool_calls)]))
        text = text if one.error is None else f"{type(one.error).__name__}: {one.error}"
        rows.append((i, text, one.usage.completion_tokens, _rate(one.timings), one.finish_reason or "unfinished"))
    return Html(table(("", "text", "tokens", "tokens/s", "ended by"), rows, left=(1,)) + _more(len(done) - _MOST_ROWS, "answer"))


# ---- probabilities ---------------------------------------------------------------------------------------------------


def _shade(share, colour):
    return f"background:rgba({colour},{0.75 * min(max(share, 0.0), 1.0):.2f})"


def _visible(text):
    """A token's text with its white space marked."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") if not text.strip() else text


def _probable(text, logprob):
    p = math.exp(logprob)
    return Html(f'<span style="{_shade(p, "84,162,75")};padding:0 0.3em">{escaped(_visible(text))} {p:.1%}</span>')


def logprobs(found: Sequence[Any]) -> Html:
    """A table of Logprobs: what was chosen, how probable it was, and the most probable tokens; shaded by their probability."""
    width = max((len(p.top) for p in found), default=0)
    head = ("", "token", "logprob", "rank", *(f"{i}." for i in range(1, width + 1)))
    rows = [(i, _probable(p.text, p.logprob), f"{p.logprob:.3f}", p.rank, *(_probable(t.text, t.logprob) for t in p.top))
            for i, p in enumerate(found[:_MOST_ROWS])]
    return Html(table(head, rows) + _more(len(found) - _MOST_ROWS, "token"))


def scored(title: str, texts: Sequence[str], logprobs: Sequence[float]) -> Html:
    """A text whose tokens are shaded, the less probable the darker; the first has no probability.

    Tokens that are parts of a character are shown with the one that ends it, by the probability of all.
    """
    shown, total = [escaped(texts[0])] if texts else [], 0.0
    for text, logprob in zip(texts[1:_MOST_TOKENS], logprobs):
        total += logprob
        if text:
            p, total = math.exp(total), 0.0
            shown.append(f'<span title="{p:.2%}" style="{_shade(1 - p, "228,87,86")}">{escaped(text)}</span>')
    body = f'<div style="white-space:pre-wrap">{"".join(shown)}</div>' if shown else ""
    return Html(f"<p>{escaped(title)}</p>{body}{_more(len(texts) - _MOST_TOKENS, 'token')}")


# ---- memory ----------------------------------------------------------------------------------------------------------


def bars(rows: Sequence[tuple[str, dict[str, int], int | None, str]]) -> Html:
    """A bar of memory for each node.

    Parameters
    ----------
    rows : sequence of (label, parts, total, note)
        ``parts``: bytes by name, of `PARTS`; ``total``: bytes of the whole bar, None: of its parts alone.
    """
    lines, used = [], {}
    for label, parts, total, note in rows:
        whole = max(total or 0, sum(parts.values()), 1)
        spans = ""
        for name, n in parts.items():
            if n:
                used[name] = None
                spans += (f'<span title="{escaped(name)} {short_bytes(n)}" style="background:{PARTS[name]};'
                          f'width:{100 * n / whole:.2f}%;min-width:2px"></span>')
        lines.append(f"<span>{escaped(label)}</span>"
                     f'<span style="display:flex;height:1.1em;border:1px solid rgba(128,128,128,0.6)">{spans}</span>'
                     f"<span>{escaped(note)}</span>")
    legend = "".join(f'<span style="display:inline-block;width:0.8em;height:0.8em;margin:0 0.3em 0 1em;background:{PARTS[name]}"></span>'
                     f"{escaped(name)}" for name in PARTS if name in used)
    return Html('<div style="display:grid;grid-template-columns:max-content minmax(10em,26em) max-content;gap:0.3em 0.8em;'
                f'align-items:center;width:max-content;max-width:100%">{"".join(lines)}</div><div>{legend}</div>')


def matrix(title: str, labels: Sequence[object], values: Sequence[Sequence[float]], written: Any, far: bool) -> Html:
    """A heat map as a table: rows and columns are nodes.

    Parameters
    ----------
    values : sequence of sequences of float
    written : callable
        Text of a value.
    far : bool
        Whether larger values are worse (distances) or better (rates); the worse, the darker.
    """
    body = ""
    for label, row, shares in zip(labels, values, _worse(values, far)):
        cells = (f'<td style="{_shade(share, "228,87,86")}">{escaped(written(v))}</td>' for v, share in zip(row, shares))
        body += f"<tr><th>{escaped(label)}</th>{''.join(cells)}</tr>"
    names = "".join(f"<th>{escaped(label)}</th>" for label in labels)
    return Html(f"<table>{_caption(title)}<tr><th></th>{names}</tr>{body}</table>")


def _worse(values, far):
    """How much worse each is than the best, 0 to 1: half the rate is 0.5, and so is twice the distance."""
    best = (min if far else max)(v for row in values for v in row)
    return [[1 - (best / v if far else v / best) for v in row] for row in values]


# ---- pictures --------------------------------------------------------------------------------------------------------


def axes(ax: Any, height: float) -> Any:
    """Axes to draw on: the caller's, or new ones.

    Raises
    ------
    ImportError
        matplotlib is missing; the message says how to get it.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as e:
        raise ImportError(f"plot() draws with matplotlib, which cannot be imported ({e}): pip install 'numainfer[plot]'") from e
    return pyplot.subplots(figsize=(7, height), layout="constrained")[1]


def draw_bars(ax: Any, rows: Sequence[tuple[str, dict[str, int], int | None, str]], title: str) -> Any:
    """`bars` on matplotlib's axes, which are returned."""
    ax, unit = axes(ax, 1.3 + 0.6 * len(rows)), 1e9
    at = {name: [] for name in PARTS}
    for y, (_, parts, total, _) in enumerate(rows):
        left = 0
        for name, n in parts.items():
            at[name].append((y, left / unit, n / unit))
            left += n
        free = max((total or left) - left, 0)
        ax.barh(y, free / unit, left=left / unit, color="none", edgecolor="gray")
    for name, pieces in at.items():
        if any(n for _, _, n in pieces):
            ax.barh([y for y, _, _ in pieces], [n for _, _, n in pieces], left=[a for _, a, _ in pieces], color=PARTS[name], label=name)
    ax.set_yticks(range(len(rows)), ["\n".join([label, *note.split("; ")]) for label, _, _, note in rows], fontsize="small")
    ax.invert_yaxis()
    ax.set_xlabel("GB")
    ax.set_xlim(left=0)
    ax.legend(title=title, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(PARTS), frameon=False)
    return ax


def draw_matrix(ax: Any, title: str, labels: Sequence[object], values: Sequence[Sequence[float]], texts: Sequence[Sequence[str]],
                far: bool) -> Any:  # fmt: skip
    """`matrix` on matplotlib's axes, which are returned; ``texts`` are written into the cells."""
    ax = axes(ax, 1.5 + 0.7 * len(values))
    ax.imshow(_worse(values, far), cmap="Reds", vmin=0, vmax=1.5)  # the darkest would hide the numbers
    for y, row in enumerate(texts):
        for x, text in enumerate(row):
            ax.text(x, y, text, ha="center", va="center")
    ax.set_xticks(range(len(labels)), labels)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_title(title, fontsize="medium")
    return ax


# ---- a stream --------------------------------------------------------------------------------------------------------


def in_notebook() -> bool:
    """Whether a kernel runs this, so that a display can be changed in place."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
