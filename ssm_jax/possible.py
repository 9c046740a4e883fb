"""Values that a field of a configuration can have: a test of one, and what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Possible(NamedTuple):
    """Values that a field can have: a test, and what it says."""

    holds: Callable[[Any], bool]
    text: str


def choice(*values: Any) -> Possible:
    """A few values; 2.0 is not 2."""
    return Possible(
        lambda value: any(type(value) is type(v) and value == v for v in values),
        ", ".join(map(repr, values)),
    )


def whole(low: int, high: float = math.inf, multiple: int = 1) -> Possible:
    """Whole numbers from `low` to `high`, and multiples of one of them."""
    kind = "whole numbers" if multiple == 1 else f"multiples of {multiple}"
    end = "" if high == math.inf else f" to {high}"
    return Possible(
        lambda value: type(value) is int and low <= value <= high and value % multiple == 0,
        f"{kind} from {low}{end}",
    )


def numbers(low: float, high: float = math.inf, above: bool = False) -> Possible:
    """Finite numbers; `above`: `low` is none of them."""

    def holds(value: Any) -> bool:
        is_number = type(value) in (int, float) and math.isfinite(value)
        return is_number and low <= value <= high and not (above and value == low)

    end = "" if high == math.inf else f" to {high:g}"
    return Possible(holds, f"numbers {'above' if above else 'from'} {low:g}{end}")


def lists(possible: Possible) -> Possible:
    """Lists and tuples of some of these values."""
    return Possible(
        lambda value: type(value) in (list, tuple) and value and all(map(possible.holds, value)),
        f"lists of {possible.text}",
    )


def text(signs: str, name: str, *others: str) -> Possible:
    """Texts called `name`, without some signs, and but for some."""
    return Possible(lambda v: isinstance(v, str) and not {*v} & {*signs} and v not in others, name)


def either(first: Possible, second: Possible) -> Possible:
    """Values of the one or the other kind."""
    return Possible(
        lambda value: first.holds(value) or second.holds(value), f"{first.text} or {second.text}"
    )
