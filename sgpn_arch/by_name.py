"""Parts that an option file names, ``{type: NAME, **arguments}``: checked against the part's own typed options, and built.

A part says its options in a class attribute ``OPTIONS``, a model; where it has none, its signature is the model.
"""

import functools
import inspect
import types
import typing
import warnings
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, create_model

from sgpn_arch.errors import OptionError, Problem, nearest, shown
from sgpn_arch.ranges import Number, Told
from sgpn_arch.schema import AS_TUPLE, Options

SECTION = "a mapping with 'type', and what that takes"
PLAIN = (int, float, bool, str, dict, Mapping, type(None))


def check_plugin(
    section: Any, registry, where: str = "", given: int = 0, supplied: Iterable[str] = (), default: str | None = None
) -> None:
    """Checks that ``type`` is a name in the registry, and the arguments against what is registered.

    Args:
        registry: BasicSR's, or a dict. given, supplied: as :func:`signature_options` has them. default: of ``type``.

    Raises:
        OptionError: begins with ``where``; names every wrong argument.
    """
    if not isinstance(section, Mapping):
        raise OptionError(Problem(where, f"expected {SECTION}, found {shown(section)}"))
    if default is None and "type" not in section:
        raise OptionError(
            Problem(_below(where, "type"), f"this option is missing; known: {', '.join(sorted(registry.keys()))}")
        )
    name = section.get("type", default)
    if isinstance(name, str) and name not in registry:
        from sgpn_arch.registry import load_basicsr  # here, for it needs BasicSR's files

        load_basicsr()
    if not isinstance(name, str) or name not in registry:
        raise OptionError(
            Problem(_below(where, "type"), f"unknown name '{shown(name, str)}'{nearest(str(name), registry.keys())}")
        )
    model = options_of(registry[name] if isinstance(registry, dict) else registry.get(name), given, supplied)
    if model is not None:
        has_type = "type" in model.model_fields
        model.read({key: value for key, value in section.items() if key != "type" or has_type}, where)


def _below(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def build(section: Any, registry, where: str, *args: Any, **defaults: Any) -> Any:
    """Builds the plugin that ``{type: NAME, **arguments}`` names, after checking it."""
    check_plugin(section, registry, where, len(args), defaults)
    arguments = {**defaults, **{key: value for key, value in section.items() if key != "type"}}
    try:
        return registry.get(section["type"])(*args, **arguments)
    except ValueError as error:
        raise OptionError(f"{where}: {error}") from error


def named(registry, default: str | None = None) -> Any:
    """The type of a section that names a part of the registry; its value is the section as it was written."""

    def check(section: Any) -> Any:
        check_plugin(section, registry, default=default)
        return section

    return Annotated[Any, BeforeValidator(check), Told(SECTION)]


def options_of(plugin, given: int = 0, supplied: Iterable[str] = ()) -> type[Options] | None:
    """The typed options of a part; None for a foreign one that takes all its options as one dict, as BasicSR's datasets do."""
    own = getattr(plugin, "OPTIONS", None)
    if isinstance(own, type) and issubclass(own, Options):
        return own
    if list(_signature(plugin).parameters) == ["opt"]:
        return None
    return signature_options(plugin, given, frozenset(supplied))


class _Open(Options):
    model_config = ConfigDict(extra="allow")


@functools.lru_cache(maxsize=256)
def signature_options(function, given: int = 0, supplied: frozenset[str] = frozenset()) -> type[Options]:
    """The keywords that a class or function takes, as a model: names, types with their ranges, and defaults.

    What has no annotation that an option file could fill takes values of its default's kind, or any where that says nothing.

    Args:
        given: how many positional arguments come before them. supplied: keywords that somebody else adds.
    """
    parameters = list(_signature(function).parameters.values())[given:]
    fields: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            default = parameter.default
            if default is parameter.empty:
                default = None if parameter.name in supplied else ...
            fields[parameter.name] = (_kind(parameter), default)
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of arguments that are called as a method of pydantic's
        return create_model(function.__name__, __base__=_Open if takes_more else Options, **fields)


def _signature(function) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, TypeError, SyntaxError):  # annotations that mean nothing outside their module
        return inspect.signature(function)


def _kind(parameter: inspect.Parameter) -> Any:
    if parameter.annotation is not parameter.empty:
        kind = parameter.annotation
        if not _is_plain(kind):
            return Any
        return Annotated[kind, AS_TUPLE] if typing.get_origin(kind) is tuple else kind
    # Whoever wrote 1 may well mean a number.
    kinds = {bool: bool, int: Number, float: Number, str: str}
    return kinds.get(type(parameter.default), Any)


def _is_plain(kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _is_plain(arguments[0])
    if origin in (typing.Union, types.UnionType, list, tuple):
        return all(each is Ellipsis or _is_plain(each) for each in arguments)
    return origin is Literal or kind in PLAIN or origin in (dict, Mapping)
