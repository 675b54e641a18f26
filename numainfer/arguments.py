"""Checks of arguments: the value in its plain form, or an error that names argument, found and wanted."""

import operator

import numpy as np


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
    if isinstance(nodes, (str, bytes, dict)) or not hasattr(nodes, "__iter__"):
        raise TypeError(f"{name}: found {type(nodes).__name__}, wanted a sequence of node numbers or None")
    nodes = [integer(f"{name}[{i}]", node, 0) for i, node in enumerate(nodes)]
    if not nodes or len(set(nodes)) < len(nodes):
        raise ValueError(f"{name} = {nodes}: wanted at least one node, and none twice")
    return nodes


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
