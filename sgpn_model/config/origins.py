"""Origins: which file, or which ``--set``, each option of a merged result was last written in."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sgpn_arch.errors import OptionError, Problem

DELETE = "_delete_"  # what makes a mapping replace the inherited one


class Origins:
    """Which file, or which ``--set``, each option of a merged result was last written in.

    Args:
        top: the option file that was asked for, which is named where no single file can be.
    """

    def __init__(self, top: str | Path):
        self.top = str(top)
        self._tree: dict = {}

    def add(self, content: Mapping, source: str) -> None:
        """Notes what ``source`` writes on top of what came before it."""
        _overlay(self._tree, content, source)

    def put(self, keys: list[str], value: Any, source: str) -> None:
        """Notes that ``source`` replaces the option at the end of ``keys``, with all that was below it."""
        tree = self._tree
        for key in keys[:-1]:
            tree = _section(tree, key)
        tree[keys[-1]] = source
        if isinstance(value, Mapping) and value:
            _overlay(_section(tree, keys[-1]), value, source)

    def of(self, problem: Problem | str) -> str:
        """The source of the option that a problem, or a message ``train.gan.r1_evry: unknown option``, is about.

        A section that several files wrote is searched for the one option of it that the message names.
        """
        text = str(problem).partition(";")[0]
        tree = _deepest(self._tree, text.partition(": ")[0].split("."))
        while isinstance(tree, dict):
            named = [below for key, below in tree.items() if re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", text)]
            if len(named) != 1:
                break
            tree = named[0]
        sources = set(_sources(tree))
        return sources.pop() if len(sources) == 1 else self.top

    def at(self, keys: list[str]) -> str:
        """The source of the option whose key has these parts."""
        tree: Any = self._tree
        for key in keys:
            tree = tree.get(str(key)) if isinstance(tree, dict) else None
        sources = set(_sources(tree)) if tree else set()
        return sources.pop() if len(sources) == 1 else self.top

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Within it, every OptionError gets the file where each of its options was written, where it names none yet."""
        try:
            yield
        except OptionError as error:
            found = [each if each.source else each._replace(source=self.of(each)) for each in error.problems]
            raise OptionError(*found) from error


def _overlay(tree: dict, content: Mapping, source: str) -> None:
    if content.get(DELETE):
        tree.clear()
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            _overlay(_section(tree, str(key)), value, source)
        elif key != DELETE and not (isinstance(value, Mapping) and str(key) in tree):
            tree[str(key)] = source


def _section(tree: dict, key: str) -> dict:
    if not isinstance(tree.get(key), dict):
        tree[key] = {}
    return tree[key]


def _deepest(tree: dict, parts: list[str]) -> dict | str:
    """What lies at the end of ``parts``, or as near to it as the tree goes. A key may hold dots itself."""
    for end in range(len(parts), 0, -1):
        below = tree.get(".".join(parts[:end]))
        if isinstance(below, dict):
            return _deepest(below, parts[end:])
        if below is not None:
            return below
    return tree


def _sources(tree: dict | str) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
        return
    for below in tree.values():
        yield from _sources(below)
