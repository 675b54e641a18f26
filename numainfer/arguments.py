"""Checks of arguments: the value in its plain form, or an error that names argument, found and wanted."""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

_F = TypeVar("_F", bound=Callable[..., Any])


def check_names(what, given, known):
    """Raise TypeError if a name of ``given`` is not known, with the nearest known one.

    Parameters
    ----------
    what : str
        What a name stands for, such as ``"sampling parameter"``.
    given : iterable of str
    known : sequence of str
    """
    for name in given:
        if name not in known:
            import difflib  # only on the way to an error

            near = difflib.get_close_matches(name, known, n=1) or [k for k in known if len(name) > 2 and k.startswith(name)]
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise TypeError(f"unknown {what} {name!r}: {hint}")


def names_near_misses(function: _F) -> _F:
    """Make a function tell the nearest parameter when it is called with an unknown keyword."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]

    @functools.wraps(function)
    def call(*args, **keywords):
        check_names(f"parameter of {function.__name__}", keywords, known)
        return function(*args, **keywords)

    return call  # type: ignore[return-value]


def integer(name, value, least, most=2**31 - 1):
    """An int from least to most; a bool is none.

    Raises
    ------
    TypeError, ValueError
    """
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} = {value!r}: found a bool, wanted an int")
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}: found {type(value).__name__}, wanted an int") from None
    if not least <= value <= most:
        raise ValueError(f"{name} = {value}: must be from {least} to {most}")
    return value


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
