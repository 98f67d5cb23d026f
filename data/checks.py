"""Checks of option dictionaries: unknown keys are refused with the nearest known name."""

import math
from collections.abc import Iterable, Mapping
from numbers import Real

from sgpn_arch.errors import nearest


def check_keys(options: Mapping, known: Iterable[str], where: str) -> None:
    """Raises KeyError if ``options`` has a key that is not in ``known``; ``where`` says whose options they are."""
    for key in options:
        if key not in known:
            raise KeyError(f"{where}: unknown option {key!r}{nearest(str(key), known)}")


def check_choice(value, known: Iterable[str], where: str):
    """``value`` if it is one of ``known``, else ValueError naming the nearest."""
    if value not in known:
        raise ValueError(f"{where}: unknown value {value!r}{nearest(str(value), known)}")
    return value


def check_range(value, where: str, lowest: float = 0.0, highest: float = math.inf, open_below=False):
    """``value`` (a pair lo, hi or one number, meaning lo = hi) as a tuple of floats within [lowest, highest].

    ``open_below`` excludes ``lowest`` itself. Raises ValueError for anything else, and for lo > hi.
    """
    pair = (value, value) if _is_number(value) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(_is_number(end) for end in pair):
        raise ValueError(f"{where}: expected a number or a pair [lo, hi], got {value!r}")
    low, high = float(pair[0]), float(pair[1])
    if low > high:
        raise ValueError(f"{where}: lo must not exceed hi, got {value!r}")
    if low < lowest or (open_below and low == lowest) or high > highest:
        raise ValueError(f"{where}: must lie in {'(' if open_below else '['}{lowest:g}, {highest:g}], got {value!r}")
    return low, high


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
