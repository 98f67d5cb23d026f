"""Types of option values with the ranges that are allowed; they are told to users as they stand here. No pydantic is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, Predicate


@dataclass(frozen=True)
class Told:
    """What a type is called in messages and on the page of options, where its parts do not say it well."""

    text: str


@dataclass(frozen=True)
class OnDisk:
    """Marks a path that must be there when the option is used: what it is called, and how to come by it.

    Where ``names`` says so, a bare word is the name of something that ships.
    """

    what: str
    remedy: str
    folder: bool = False
    names: bool = False


Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Number = Annotated[float, Gt(float("-inf")), Lt(float("inf")), Told("a number")]
Amount = Annotated[float, Ge(0), Lt(float("inf")), Told("a number of at least 0")]
Positive = Annotated[float, Gt(0), Lt(float("inf")), Told("a number above 0")]
Fraction = Annotated[float, Ge(0), Le(1)]
PictureSize = Annotated[
    int,
    Predicate(lambda size: 64 <= size <= 1024 and size & (size - 1) == 0),
    Told("a power of two from 64 to 1024"),
]
MappingLayers = Annotated[int, Ge(1), Le(64)]
OddCount = Annotated[int, Ge(1), Predicate(lambda number: number % 2 == 1), Told("an odd whole number of at least 1")]
Device = Annotated[
    str,
    Predicate(lambda name: name in ("auto", "cpu", "cuda") or name.startswith("cuda:") and name[5:].isdecimal()),
    Told("auto, cpu, cuda or cuda:NUMBER"),
]
FilePath = Annotated[str | Path, OnDisk("file", "check the path"), Told("a path")]
Weights = Annotated[
    str | Path, OnDisk("file of weights", "train the stage that writes it, or give another", names=True), Told("a path")
]
FolderPath = Annotated[
    str | Path, OnDisk("folder", "`sgpn align PHOTOS -o FOLDER` makes one of photos", folder=True), Told("a path")
]
