"""Types of option values with the ranges that are allowed; they are told to users as they stand here. No pydantic is imported."""

import math
import os
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt, Predicate

UNIONS = (typing.Union, types.UnionType)
WORDS = {int: "a whole number", float: "a number", str: "text", type(None): "~ (nothing)"}


@dataclass(frozen=True)
class Told:
    """What a type is called in messages and on the page of options, where its parts do not say it well."""

    text: str


@dataclass(frozen=True)
class AtHome:
    """Marks a path in which ~ at the beginning stands for the user's home folder."""

    def __get_pydantic_core_schema__(self, kind: Any, handler: Any) -> Any:
        from pydantic_core.core_schema import no_info_after_validator_function

        return no_info_after_validator_function(os.path.expanduser, handler(kind))


@dataclass(frozen=True)
class OnDisk(AtHome):
    """Marks a path that must be there when the option is used: what it is called, and how to come by it.

    Where ``names`` says so, a bare word is the name of something that ships.
    """

    what: str
    remedy: str
    folder: bool = False
    names: bool = False


MACHINE = 2**63  # seeds and counts are kept in 64 bits; that they are goes without saying
Count = Annotated[int, Ge(1), Lt(MACHINE)]
Whole = Annotated[int, Ge(0), Lt(MACHINE)]
Processes = Annotated[int, Ge(0), Le(1024)]  # or threads
Number = Annotated[float, Gt(float("-inf")), Lt(float("inf")), Told("a number")]
Amount = Annotated[float, Ge(0), Lt(float("inf")), Told("a number of at least 0")]
Positive = Annotated[float, Gt(0), Lt(float("inf")), Told("a number above 0")]
Fraction = Annotated[float, Ge(0), Le(1)]
PictureSize = Annotated[
    int,
    Predicate(lambda size: 64 <= size <= 1024 and size & (size - 1) == 0),
    Told("a power of two from 64 to 1024"),
]
Patch = Literal[1, 2, 4]
MappingLayers = Annotated[int, Ge(1), Le(64)]
OddCount = Annotated[int, Ge(1), Predicate(lambda number: number % 2 == 1), Told("an odd whole number of at least 1")]
Device = Annotated[
    str,
    Predicate(lambda name: name in ("auto", "cpu", "cuda", "mps") or re.fullmatch("cuda:[0-9]{1,3}", name)),
    Told("auto, cpu, cuda, cuda:NUMBER or mps"),
]
FolderName = Annotated[
    str,
    # A checkpoint's name is longer by its step and suffix, and while it is written by some letters more; 255 bytes are allowed.
    Predicate(lambda name: name.strip(" .") != "" and name.isprintable() and not set(name) & set("/\\")),
    Predicate(lambda name: len(name.encode()) <= 200),
    Told("the name of a folder, without / or \\, of at most 200 bytes"),
]
Template = Literal["ffhq", "gpen"]
FilePath = Annotated[str | Path, OnDisk("file", "check the path"), Told("a path")]
Weights = Annotated[
    str | Path, OnDisk("file of weights", "train the stage that writes it, or give another", names=True), Told("a path")
]
FolderPath = Annotated[
    str | Path, OnDisk("folder", "`sgpn align PHOTOS -o FOLDER` makes one of photos", folder=True), Told("a path")
]


# ---------------------------------------------------------------------------------------------------------------------
# In plain words, and from text


def told(kind: Any) -> str:
    """What values of a type are, in plain words: ``a whole number of at least 1``."""
    parts = _parts(kind)
    return " or ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _parts(kind: Any) -> list[str]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        text = next((each.text for each in kind.__metadata__ if isinstance(each, Told)), None)
        return [text or told(arguments[0]) + _range(kind.__metadata__)]
    if origin in UNIONS:
        return [part for each in arguments for part in _parts(each)]
    if origin is Literal:
        return [str(value) for value in arguments]
    if kind is bool:
        return ["true", "false"]
    if origin in (list, tuple) and arguments:
        return [f"a list, each {told(arguments[0])}"]
    if hasattr(kind, "model_fields") or dict in (origin, kind):
        return ["a mapping of options"]
    return [WORDS.get(kind, "anything")]


def _range(limits: tuple) -> str:
    low, high, above, below = (
        next((getattr(each, name) for each in limits if isinstance(each, wanted | Interval)), None)
        for name, wanted in (("ge", Ge), ("le", Le), ("gt", Gt), ("lt", Lt))
    )
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    words = (" of at least", low), (" above", above), (" of at most", high), (" below", below)
    return " and".join(f"{word} {value:g}" for word, value in words if value is not None and abs(value) < MACHINE)


def from_text(kind: Any, text: str) -> Any:
    """The value of a type, numbers and words as above, that text means.

    Raises:
        ValueError: it means none; the message says what is expected.
    """
    for part in typing.get_args(kind) if typing.get_origin(kind) in UNIONS else (kind,):
        if typing.get_origin(part) is Literal:
            if text in typing.get_args(part):
                return text
            continue
        base, *limits = typing.get_args(part) if typing.get_origin(part) is Annotated else (part,)
        try:
            value = base(text)
        except ValueError:
            continue
        if all(_within(value, limit) for limit in limits) and (base is not float or math.isfinite(value)):
            return value
    raise ValueError(f"expected {told(kind)}, found '{text}'")


def _within(value: Any, limit: Any) -> bool:
    tests = {
        Ge: lambda: value >= limit.ge,
        Gt: lambda: value > limit.gt,
        Le: lambda: value <= limit.le,
        Lt: lambda: value < limit.lt,
        Predicate: lambda: limit.func(value),
    }
    return tests.get(type(limit), lambda: True)()
