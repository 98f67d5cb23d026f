"""The networks of SGPN, and the way to build one from options: ``build_network({"type": "SGPN", "size": 512})``.

Importing this package imports no PyTorch; the first network that is asked for does.
"""

import contextlib
import contextvars
import functools
import importlib
import inspect
import os
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from sgpn_arch.errors import nearest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_network", "complete_options", "find_arch", "load_plugins", "register_archs"]

PLUGIN_GROUP = "sgpn.plugins"
# Names of other packages' networks that files may build, separated by commas.
ALLOWED = "SGPN_ALLOW_ARCHS"
# What the file names whose network is being built.
_named_by_file: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("named_by_file", default=frozenset())


class UnknownArch(ValueError):
    """Nothing is registered under a name, which is its attribute ``name``."""

    def __init__(self, name: str, known: Iterable[str]):
        super().__init__(f"no network is registered as {name!r}{nearest(name, known)}")
        self.name = name


class ForeignArch(ValueError):
    """A file names a network of a package that is no plugin of this library."""

    def __init__(self, name: str, package: str):
        super().__init__(
            f"{name!r} is a network of {package}, which is no plugin of sgpn: it may read files or download what its arguments "
            f"say, so a file of weights does not build it unasked; if you trust the file, set {ALLOWED}={name}"
        )


def build_network(opt: Mapping) -> "nn.Module":
    """Builds the network that ``opt`` describes.

    Args:
        opt: ``type``, a name in ``ARCH_REGISTRY``, and the keywords of that network's constructor. It is not changed.

    Returns:
        The network, a ``torch.nn.Module``.

    Raises:
        ValueError: ``type`` is missing or unknown, or a keyword is not one that the network takes; the message names
            the nearest valid one.
    """
    keywords = dict(opt)
    name = keywords.pop("type", None)
    if name is None:
        raise ValueError(f"network options have no 'type' (keys: {', '.join(map(str, opt)) or 'none'})")
    network = find_arch(name)
    _check_keywords(name, network, keywords)
    return network(**keywords)


def complete_options(opt: Mapping) -> dict:
    """``opt`` with the defaults of the network's constructor written out, so that it still means the same later."""
    parameters = inspect.signature(find_arch(opt["type"])).parameters.values()
    return {**{p.name: p.default for p in parameters if p.default is not p.empty}, **opt}


def find_arch(name: str):
    """Returns what is registered in ``ARCH_REGISTRY`` as ``name``, by this package, BasicSR or a plugin.

    Raises:
        UnknownArch: nothing is; the message names the nearest name that is.
        ForeignArch: a file names it that may not, see :func:`described_by_file`.
    """
    from sgpn_arch.registry import ARCH_REGISTRY, load_basicsr

    register_archs(name)
    load_plugins()
    if name not in ARCH_REGISTRY:
        load_basicsr()
    if name not in ARCH_REGISTRY:
        raise UnknownArch(name, ARCH_REGISTRY.keys())
    found = ARCH_REGISTRY.get(name)
    if name in _named_by_file.get() and name not in os.environ.get(ALLOWED, "").split(","):
        package = _foreign_package(found.__module__)
        if package:
            raise ForeignArch(name, package)
    return found


@contextlib.contextmanager
def described_by_file(options: Mapping) -> Iterator[None]:
    """Within it, what ``options`` name must be this library's, a plugin's or this program's own, or be allowed by the user.

    Networks of other packages, BasicSR's above all, are not made for options that a stranger wrote: some open the file that
    an argument names, and run its code on older versions of PyTorch. Allowed are the names in the environment variable
    SGPN_ALLOW_ARCHS. What a plugin builds of itself is its own affair.
    """

    def words(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping | list | tuple):
            for part in value.values() if isinstance(value, Mapping) else value:
                yield from words(part)

    token = _named_by_file.set(frozenset(words(options)))
    try:
        yield
    finally:
        _named_by_file.reset(token)


@functools.cache
def load_plugins() -> None:
    """Imports, once, the entry points of group ``sgpn.plugins``: modules that register what they bring.

    Raises:
        ImportError: a plugin cannot be imported; the message names it.
    """
    from importlib import metadata  # here, for `sgpn --help` needs none of it

    for plugin in metadata.entry_points(group=PLUGIN_GROUP):
        register_archs()  # whose names a plugin must not take
        try:
            plugin.load()
        except Exception as error:
            raise ImportError(
                f"the SGPN plugin {plugin.name!r} ({plugin.value}) does not load: {error}; mend or uninstall it"
            ) from error


def package_of(module: str) -> str | None:
    """``"name==version"`` of the installed package that a module belongs to; None for this library's, and for none."""
    top = module.partition(".")[0]
    if top in ("sgpn_arch", "sgpn_data", "sgpn_model"):
        return None
    from importlib import metadata

    # Plugins say it themselves, installed in whatever way; of other packages, the list of their files does.
    plugins = metadata.entry_points(group=PLUGIN_GROUP)
    found = next((plugin.dist for plugin in plugins if plugin.module.partition(".")[0] == top and plugin.dist), None)
    if found is None:
        names = metadata.packages_distributions().get(top)
        found = metadata.distribution(names[0]) if names else None
    return f"{found.name}=={found.version}" if found else None


@functools.cache  # reading what is installed takes a while
def _foreign_package(module: str) -> str | None:
    """The package that a module belongs to if that is neither this library nor a plugin of it; None also for own programs."""
    from importlib import metadata

    # BasicSR also where it is used from a folder, without being installed.
    package = package_of(module) or ("basicsr" if module.partition(".")[0] == "basicsr" else None)
    if package is None:
        return None
    plugins = metadata.entry_points(group=PLUGIN_GROUP)
    return None if package in {f"{each.dist.name}=={each.dist.version}" for each in plugins if each.dist} else package


def register_archs(wanted: str | None = None) -> None:
    """Imports every ``*_arch.py`` of this package, so that its networks are in ARCH_REGISTRY, or until ``wanted`` is there."""
    from sgpn_arch.registry import ARCH_REGISTRY

    for module in pkgutil.iter_modules(__path__):
        if wanted in ARCH_REGISTRY:
            return
        if module.name.endswith("_arch"):
            importlib.import_module(f"{__name__}.{module.name}")


def _check_keywords(name: str, network, keywords: Mapping) -> None:
    parameters = inspect.signature(network).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for keyword in keywords:
        if keyword not in parameters:
            raise ValueError(f"{name} takes no option {keyword!r}{nearest(keyword, parameters)}")
