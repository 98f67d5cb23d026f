"""Options, the base of every typed section of an option file, and the plain messages in which its refusals are told.

pydantic checks: strict types, ranges, unions and all errors at once come with it, and attribute docstrings document each option
where it stands; a dataclass would need all of that written by hand.
"""

import os
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from sgpn_arch.errors import OptionError, Problem, nearest, shown
from sgpn_arch.ranges import UNIONS, OnDisk, Told, told

Model = TypeVar("Model", bound="Options")
End = TypeVar("End")
# Of a mapping of names to parts, ~ leaves out a part, such as an inherited one, or all.
SWITCHABLE = BeforeValidator(lambda parts: _without_nothing({} if parts is None else parts))
# YAML has lists only.
AS_TUPLE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


class Options(BaseModel):
    """A section of an option file: its attributes are the options, each with type, range, default and a docstring.

    Types are strict (``"5"`` and ``5.0`` are no whole numbers, ``true`` is no number), unknown options are refused, and a
    refusal names every wrong option of the section and of those in it. Values cannot be changed afterwards.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @classmethod
    def read(cls: type[Model], section: Any, where: str = "") -> Model:
        """The options of a section.

        Args:
            section: a mapping, or options that were read before. where: its dotted key, for messages.

        Raises:
            OptionError: some of them cannot be used; all of these are named.
        """
        try:
            return cls.model_validate(section)
        except ValidationError as error:
            raise error.errors()[0]["ctx"]["error"].below(where) from None

    @model_validator(mode="wrap")
    @classmethod
    def _plainly(cls, section: Any, check: Any) -> Any:
        if isinstance(section, cls):
            return section
        section = {} if section is None else section  # a section written as ~
        if not isinstance(section, Mapping):
            raise OptionError(Problem("", f"expected a mapping of options, found {shown(section)}"))
        try:
            return check(dict(section))
        except ValidationError as error:
            raise OptionError(*_problems(cls, section, error)) from None


def _without_nothing(parts: Any) -> Any:
    return {name: part for name, part in parts.items() if part is not None} if isinstance(parts, Mapping) else parts


def _problems(model: type[Options], section: Mapping, error: ValidationError) -> list[Problem]:
    """One for each option that is wrong, or for each that is wrong in the sections inside."""
    found: dict[str, Problem] = {}
    for part in error.errors(include_url=False):
        place = [str(key) for key in part["loc"] if not str(key).startswith("function-")]  # pydantic's own, of unions
        own = part.get("ctx", {}).get("error")
        if isinstance(own, OptionError):
            where = ".".join(place)
            found.update({problem.key: problem for problem in own.below(where).problems})
        elif part["type"] == "extra_forbidden":
            found[place[0]] = Problem(place[0], f"unknown option{nearest(place[0], model.model_fields)}")
        elif part["type"] == "missing" and len(place) == 1:
            found[place[0]] = Problem(place[0], "this option is missing")
        else:
            kind, value = model.model_fields[place[0]].rebuild_annotation(), section[place[0]]
            key, names = place[0], _names_and_values(kind)
            if names and len(place) > 1 and place[1] in value:  # one entry of a mapping
                key = ".".join(place[:2])
                kind, value = (names[0], place[1]) if place[-1] == "[key]" else (names[1], value[place[1]])
            found[key] = Problem(key, str(own) if own else _refusal(kind, value))
    # Of a union, a part that is a section says more than that it is none of the others.
    return [each for key, each in found.items() if not any(other.startswith(f"{key}.") for other in found)]


def _names_and_values(kind: Any) -> tuple | None:
    """Of a mapping of names to values of one kind, both types; None of anything else."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    return typing.get_args(kind) if typing.get_origin(kind) is dict else None


def _refusal(kind: Any, value: Any) -> str:
    parts = typing.get_args(kind) if typing.get_origin(kind) in UNIONS else (kind,)
    if isinstance(value, str) and all(typing.get_origin(each) is Literal or each is type(None) for each in parts):
        return f"unknown value '{shown(value, str)}'{nearest(value, [word for each in parts for word in typing.get_args(each)])}"
    return f"expected {told(kind)}, found {shown(value)}"


if typing.TYPE_CHECKING:
    Pair = tuple[End, End]
    Span = tuple[End, End]
else:

    class Pair:
        """``Pair[kind]``: two values of a kind, which YAML writes as a list."""

        def __class_getitem__(cls, kind):
            return Annotated[tuple[kind, kind], AS_TUPLE, Told(f"a pair, each {told(kind)}")]

    class Span:
        """``Span[kind]``: a range [lo, hi] whose ends are of a kind; one number means lo = hi. Values are tuples (lo, hi)."""

        def __class_getitem__(cls, kind):
            text = f"{told(kind)}, or a pair [lo, hi] of such"
            return Annotated[tuple[kind, kind], AfterValidator(_ordered), BeforeValidator(_both_ends), Told(text)]


def _both_ends(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


def _ordered(ends: tuple) -> tuple:
    if ends[0] > ends[1]:
        raise OptionError(Problem("", f"lo must not exceed hi, found {shown(list(ends))}"))
    return ends


def absent(options: Options, where: str = "") -> Iterator[Problem]:
    """A problem for each file or folder that options name, in sections inside too, and that is not there."""
    for name, field in type(options).model_fields.items():
        value, key = getattr(options, name), ".".join(filter(None, (where, name)))
        if isinstance(value, Options):
            yield from absent(value, key)
            continue
        parts = list(_parts_of(field.rebuild_annotation()))
        mark = next((part for part in parts if isinstance(part, OnDisk)), None)
        if mark is None or not value or value in parts:
            continue
        for path in value if isinstance(value, list) else [value]:
            if mark.names and re.fullmatch(r"\w+", str(path)):
                continue
            if not (os.path.isdir(path) if mark.folder else os.path.exists(path)):
                yield Problem(key, f"{path}: no such {mark.what}; {mark.remedy}")


def _parts_of(kind: Any) -> Iterator[Any]:
    """The metadata of a type and of all its parts, and the words that it allows."""
    if typing.get_origin(kind) is Literal:
        yield from typing.get_args(kind)
        return
    if typing.get_origin(kind) is Annotated:
        yield from kind.__metadata__
    for part in typing.get_args(kind):
        yield from _parts_of(part)
