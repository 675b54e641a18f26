"""Checks of arguments: the value in its plain form, or an error that names argument, found and wanted."""

import functools
import inspect
import operator
import re
from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


def nearest(word, known, n=1):
    """The known words that are most like a word, best first, at most n; upper and lower case are the same.

    Parameters
    ----------
    word : str
    known : iterable of str
    n : int
    """
    import difflib  # only on the way to an error

    names = {}
    for name in known:
        names.setdefault(name.lower(), name)
    return [names[near] for near in difflib.get_close_matches(word.lower(), names, n)]


def did_you_mean(word, known):
    """The end of a message about an unknown word: the nearest known one, or one that it begins, else all of them."""
    near = nearest(word, known) or [name for name in known if len(word) > 2 and name.startswith(word)]
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def check_names(what, given, known, elsewhere=None):
    """Raise TypeError if a name of ``given`` is not known, with the nearest known one.

    Parameters
    ----------
    what : str
        What a name stands for, such as ``"sampling parameter"``.
    given : iterable of str
    known : sequence of str
    elsewhere : dict of str to str, optional
        What a name of another package is here: a known name, or a sentence.
    """
    for name in given:
        if name in known:
            continue
        hint = (elsewhere or {}).get(name)
        if hint is not None:
            raise TypeError(f"unknown {what} {name!r}: {f'it is called {hint} here' if hint in known else hint}")
        else:
            raise TypeError(f"unknown {what} {name!r}: {did_you_mean(name, known)}")


def names_near_misses(**elsewhere: str) -> Callable[[_F], _F]:
    """Make a function tell what an unknown keyword should have been: by its name in other packages, or the nearest parameter."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

    def decorate(function: _F) -> _F:
        known = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]

        @functools.wraps(function)
        def call(*args, **keywords):
            check_names(f"parameter of {function.__name__}", keywords, known, elsewhere)
            return function(*args, **keywords)

        return call  # type: ignore[return-value]

    return decorate


def unknown_attribute(thing, name, elsewhere):
    """Raise AttributeError of an object without that attribute; with a hint where other packages have one of the name."""
    hint = elsewhere.get(name)
    raise AttributeError(f"{type(thing).__name__!r} object has no attribute {name!r}{': ' + hint if hint else ''}")


def integer(name, value, least, most=2**31 - 1):
    """An int from least to most; a bool is none.

    Raises
    ------
    TypeError, ValueError
    """
    if type(value).__name__ in ("bool", "bool_"):  # Python's and NumPy's
        raise TypeError(f"{name} = {value!r}: found a bool, wanted an int")
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}: found {type(value).__name__}, wanted an int") from None
    if not least <= value <= most:
        raise ValueError(f"{name} = {value}: must be from {least} to {most}")
    return value


def byte_count(name, value):
    """Bytes: an int, or a str such as ``"2GB"`` or ``"512MiB"``.

    Raises
    ------
    TypeError, ValueError
    """
    if not isinstance(value, str):
        return integer(name, value, 0, 2**60)
    found = re.fullmatch(r"(\d{1,19}(?:\.\d{1,9})?) ?(?:([kmgt])(i?))?b?", value.strip().lower(), re.ASCII)
    if found is None:
        raise ValueError(f"{name} = {value!r}: wanted bytes, such as 512MB, 2GB or 2GiB")
    power = " kmgt".index(found[2] or " ")
    return integer(name, int(float(found[1]) * (1024 if found[3] else 1000) ** power), 0, 2**60)


def number_list(name, text, most=2**20):
    """The numbers of a list such as ``"0-3,8"``, in its order.

    Raises
    ------
    ValueError
        It is none, or a number is above `most`, or a range runs backwards.
    """
    found = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not first <= last <= most:
            raise ValueError(f"{name} {text!r}: found {part.strip()!r}, wanted numbers or ranges with commas between them, "
                             f"such as 0,1 or 0-3,8, each from 0 to {most}")
        found += range(first, last + 1)
    return found


def node_numbers(name, nodes):
    """A list of different node numbers, at least one.

    Raises
    ------
    TypeError, ValueError
    """
    return _different_numbers(name, nodes, "node")


def cpu_numbers(name, cpus):
    """The same of CPU numbers."""
    return _different_numbers(name, cpus, "CPU")


def _different_numbers(name, values, what):
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name}: found {type(values).__name__}, wanted a sequence of {what} numbers or None")
    values = [integer(f"{name}[{i}]", value, 0) for i, value in enumerate(values)]
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} = {values}: wanted at least one {what}, and none twice")
    return values


def one_of(name, value, known):
    """The value, a str of ``known``.

    Raises
    ------
    TypeError, ValueError
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} = {value!r}: found {type(value).__name__}, wanted one of {', '.join(known)}")
    if value not in known:
        raise ValueError(f"{name} = {value!r}: wanted one of {', '.join(known)}")
    return value


def progress_way(name, value):
    """How to tell progress: None, a bool or a callable.

    Raises
    ------
    TypeError
    """
    if not (value is None or isinstance(value, bool) or callable(value)):
        raise TypeError(f"{name}: found {type(value).__name__}, wanted None, True, False or a callable")
    return value
