"""Writes docs/api.md: every public name with its signature, out of the docstrings.

python tests/make_api.py

Nothing is imported: griffe reads the sources, so what is written does not depend on the Python that runs it.
"""

import itertools
import logging
import re
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "api.md"
WIDTH = 100  # of a signature
BEFORE = """# API reference

Written by `python tests/make_api.py` out of the docstrings; a test fails while it is not current. `help(ni.load)` shows the same in Python.

```python
import numainfer as ni
```

"""
TOPICS = {  # by the module where a name is defined, in the order of the page
    "Loading a model and using it": ("model", "session", "stream", "serving.aio", "aio"),
    "How tokens are chosen": ("serving.params",),
    "Answers": ("results",),
    "Text": ("text.tokenizer",),
    "The file": ("summary",),
    "The machine": ("measure.links", "machine.placement"),
    "Speed": ("measure.benchmark",),
    "More": (),
    "Errors and warnings": ("errors",),
}


def page():
    """The file's text."""
    package, found = public(), {topic: [] for topic in TOPICS}
    for thing in package.values():
        found[topic_of(thing)].append(thing)
    body = "".join(f"\n## {topic}\n{''.join(map(entry, things))}" for topic, things in found.items() if things)
    to = anchors(BEFORE + body)
    links = {topic: ", ".join(f"[{thing.name}](#{to[thing.name]})" for thing in things) for topic, things in found.items()}
    contents = [f"* {topic}: {names}" for topic, names in links.items() if names]
    return BEFORE + "\n".join(contents) + "\n" + body


def anchors(text):
    """{heading: where a link finds it}, as GitHub makes them: in small letters, without dots, the second of a kind with -1 behind."""
    found, seen = {}, {}
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[heading] = plain + (f"-{seen[plain]}" if plain in seen else "")
        seen[plain] = seen.get(plain, 0) + 1
    return found


def public():
    """{name: griffe's object} of `numainfer.__all__` but modules and ``__version__``, in the order of their definitions."""
    logging.getLogger("griffe").setLevel(logging.ERROR)
    package = griffe.load("numainfer", search_paths=[ROOT], docstring_parser="numpy", allow_inspection=False)
    things = [package[name] for name in package.exports or () if name != "__version__"]
    things = [thing.final_target if thing.is_alias else thing for thing in things]
    order = [module for modules in TOPICS.values() for module in modules]
    key = {thing.name: (order.index(module_of(thing)) if module_of(thing) in order else len(order), thing.lineno or 0) for thing in things}
    return {thing.name: thing for thing in sorted(things, key=lambda thing: key[thing.name]) if not thing.is_module}


def module_of(thing):
    return thing.module.path.removeprefix("numainfer").lstrip(".")


def topic_of(thing):
    return next((topic for topic, modules in TOPICS.items() if module_of(thing) in modules), "More")


def entry(thing):
    """A function or a class with all that it offers."""
    if thing.is_function:
        return f"\n### {thing.name}\n\n{signature(thing)}{described(thing)}"
    bases = ", ".join(f"`{base}`" for base in thing.bases)
    text = f"\n### {thing.name}\n\n{f'Is a {bases}.{chr(10) * 2}' if bases else ''}{described(thing, with_attributes=False)}"
    attributes = all_attributes(thing)
    if attributes:
        text += "\n**Attributes**\n\n" + "".join(attributes)
    for method in methods(thing):
        text += f"\n#### {thing.name}.{method.name}\n\n{signature(method)}{described(method)}"
    return text


def methods(thing):
    """Public methods of a class."""
    return [member for name, member in thing.members.items() if member.is_function and not name.startswith("_")]


def all_attributes(thing):
    """A line for each: those that the docstring tells of, then properties."""
    lines, told, typed = [], set(), types(thing)
    for section in parsed(thing):
        if section.kind.value == "attributes":
            for each in section.value:
                told.update(each.name.split(", "))
                lines.append(item(each.name, typed.get(each.name), each.description))
    for name, member in thing.members.items():
        if member.is_attribute and "property" in member.labels and not name.startswith("_") and name not in told:
            lines.append(item(name, member.annotation, member.docstring and member.docstring.value))
    return lines


def parsed(thing):
    """Sections of a docstring; it counts on what the parser makes of ours, so it says where there is none."""
    return thing.docstring.parsed if thing.docstring else []


def types(thing):
    """{name: its type in the docstring's own words}, which the parser takes for an expression."""
    pairs = re.findall(r"^(\*{0,2}\w[\w, ]*?) : ?(.*)$", thing.docstring.value, re.MULTILINE) if thing.docstring else []
    return {name: kind for names, kind in pairs for name in (names, *names.split(", "))}


def signature(function):
    """As a stub, which is Python."""
    parts, star = [], False
    for p in function.parameters:
        kind = p.kind.value
        if kind == "keyword-only" and not star:
            parts.append("*")
        star = star or kind in ("keyword-only", "variadic positional")
        name = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "") + p.name
        annotated = f"{name}: {plain(p.annotation)}" if p.annotation else name
        default = "" if p.default is None or kind.startswith("variadic") else f" = {p.default}" if p.annotation else f"={p.default}"
        parts.append(annotated + default)
    returns = f" -> {plain(function.returns)}" if function.returns else ""
    text = f"def {function.name}({', '.join(parts)}){returns}: ..."
    if len(text) > WIDTH:
        inner = "".join(f"    {part},\n" for part in parts)
        text = f"def {function.name}(\n{inner}){returns}: ..."
    decorator = "@classmethod\n" if "classmethod" in function.labels else "@staticmethod\n" if "staticmethod" in function.labels else ""
    return f"```python signature\n{decorator}{text}\n```\n\n"


def plain(annotation):
    """Without the quotes of a name that is not known yet where it stands."""
    text = str(annotation)
    return text[1:-1] if re.fullmatch(r"(['\"])[^'\"]*\1", text) else text


def described(thing, with_attributes=True):
    """The docstring's sections as Markdown."""
    text, typed = "", types(thing)
    for section in parsed(thing):
        kind = section.kind.value
        if kind == "text":
            text += f"{section.value.strip()}\n\n"
        elif kind in ("parameters", "other parameters"):
            defaults = {name: str(member.value) for name, member in thing.members.items() if member.is_attribute} if thing.is_class else {}
            rows = [(p.name, typed.get(p.name), p.description, defaults.get(p.name)) for p in section.value]
            text += "**Parameters**\n\n"
            for told, group in itertools.groupby(rows, lambda row: row[1:]):  # "a, b : int" is two to the parser
                text += item(", ".join(row[0] for row in group), *told)
            text += "\n"
        elif kind in ("returns", "yields", "raises", "warns"):
            text += f"**{kind.capitalize()}**\n\n" + "".join(item("", r.annotation, r.description) for r in section.value) + "\n"
        elif kind == "admonition":  # Notes and the like
            text += f"**{section.title}**\n\n{section.value.description.strip()}\n\n"
        elif kind != "attributes":
            raise ValueError(f"{thing.path}: a section of kind {kind}, which this script does not write")
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n" if text else ""


def item(name, annotation, description, default=None):
    """One line of a list."""
    kind = " ".join(plain(annotation).split()) if annotation else ""
    kind = kind[1:-1] if re.fullmatch(r"\([^()]*\)", kind) else kind  # several in a row are a tuple to the parser
    kind = ", ".join(filter(None, (kind, f"by default {default}" if default is not None else "")))
    what = (f"`{name}`" + (f" ({kind})" if kind else "")) if name else kind
    said = " ".join((description or "").split())
    return f"* {what}{': ' if what and said else ''}{said}\n"


def undescribed():
    """What is public and not told of: functions and classes without a docstring, and parameters that theirs does not name."""
    found = []
    for thing in public().values():
        for each in [thing] + (methods(thing) if thing.is_class else []):
            if not each.docstring:
                found.append(each.path)
            elif each.is_function:
                told = {name.strip().lstrip("*") for s in parsed(each) if s.kind.value == "parameters" for p in s.value
                        for name in p.name.split(",")}  # fmt: skip
                words = each.docstring.value
                found += [f"{each.path}({p.name})" for p in each.parameters if p.name not in ("self", "cls", *told)
                          and not re.search(rf"\b{p.name}\b", words) and not re.search(r"(?i)\bas (for|of)? ?`", words)]
    return found


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
