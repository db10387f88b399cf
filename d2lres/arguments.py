"""What a function accepts: each helper returns its argument as plain Python, or raises ValueError.

A NumPy integer is a whole number; a bool, a text and a tensor are none.
"""

import sys
from math import inf
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import torch


def whole(name: str, value: Any, least: int = 1, most: float = inf) -> int:
    """`value` as an int from `least` to `most`."""
    fits = isinstance(value, Integral) and not isinstance(value, bool)
    if fits and least <= cast(int, value) <= most:
        return int(value)
    bounds = f"from {least} on" if most == inf else f"from {least} to {most}"
    raise ValueError(f"{name} must be a whole number {bounds}, not {shown(value)}.")


def number(name: str, value: Any, low: float = 0, high: float = sys.float_info.max) -> float:
    """`value` as a float from `low` to `high`; neither nan nor infinite."""
    fits = isinstance(value, Real) and not isinstance(value, bool)
    if fits and low <= cast(float, value) <= high:
        return float(value)
    bounds = f"from {low:g} to {high:g}" if high < sys.float_info.max else f"from {low:g} on"
    raise ValueError(f"{name} must be a number {bounds}, not {shown(value)}.")


def yes_or_no(name: str, value: Any) -> bool:
    """`value` as a bool: any other object would count as one without a word."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError(f"{name} must be True or False, not {shown(value)}.")


def instance(name: str, value: Any, kind: Any, wanted: str) -> Any:
    """`value`, if it is an instance of `kind`, which `wanted` says in words."""
    if isinstance(value, kind):
        return value
    raise ValueError(f"{name} must be {wanted}, not {shown(value)}.")


def shown(value: Any) -> str:
    """A few words for any object, in one line."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if isinstance(value, (str, bytes, Real, complex, type(None))) and len(repr(value)) < 60:
        return repr(value)
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
    return f"of type {type(value).__name__}"
