"""YAML as option files have it: numbers of YAML 1.2, text as keys, no key twice, and bounds on how much a file can stand for."""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

from sgpn_arch.errors import OptionError, Problem, Problems

# More than any option file needs. A small file can stand for one that fills the memory, or that contains itself.
MAX_VALUES, MAX_DEPTH, MAX_DIGITS = 100_000, 32, 400
TAG = "tag:yaml.org,2002:"
# PyYAML reads numbers as YAML 1.1 has them, where 1.0e6 is text, 010 is 8 and 1:30 is 90. _ between digits may stay.
NUMBERS = {
    "int": re.compile(r"(?:[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)\Z"),
    "float": re.compile(
        r"(?:[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
}


class _Loader(yaml.SafeLoader):
    """Of what YAML 1.1 makes of plain words, only truth values, nothing and << are left."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag.removeprefix(TAG) in ("bool", "null", "merge")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def number(self, node: ScalarNode) -> int | float:
        """The number that a scalar is, by its tag."""
        text = self.construct_scalar(node).replace("_", "")
        if len(text) > MAX_DIGITS:
            raise ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
        try:
            if node.tag == f"{TAG}float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            return int(text, 0 if text[1:2].isalpha() else 10)
        except ValueError as error:  # of a tag that is written out
            raise ConstructorError(None, None, f"'{text}' is no number", node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """Quotes text that :class:`_Loader` would take for a number."""


for _name, _pattern in NUMBERS.items():
    _Loader.add_implicit_resolver(f"{TAG}{_name}", _pattern, list("-+.0123456789"))
    _Loader.add_constructor(f"{TAG}{_name}", _Loader.number)
    _Dumper.add_implicit_resolver(f"{TAG}{_name}", _pattern, list("-+.0123456789"))


def parse(text: str, problems: Problems, source: str) -> Any:
    """What a text of YAML says.

    Args:
        problems: takes the keys that are not text or are written twice, which are left out but for the last of its name.
        source: who wrote it, for messages.

    Raises:
        OptionError: it is not YAML, or exceeds the bounds.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        problems.found += [problem._replace(source=source) for problem in _mended(node, loader)]
        return loader.construct_document(node)
    except RecursionError as error:
        raise OptionError(f"cannot be read: nested more than {MAX_DEPTH} levels deep", source=source) from error
    except yaml.MarkedYAMLError as error:
        mark, words = error.problem_mark or error.context_mark, filter(None, (error.context, error.problem))
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise OptionError(Problem("", f"cannot be read: {place}{', '.join(words)}", source)) from error
    except (ValueError, yaml.YAMLError) as error:
        raise OptionError(Problem("", f"cannot be read: {str(error).splitlines()[0]}", source)) from error


def _mended(root: Node, loader: _Loader) -> Iterator[Problem]:
    """Takes keys that cannot be used out of the nodes, with a problem for each; stops at what cannot be mended."""
    seen = 0

    def visit(node: Node, where: str, above: tuple[Node, ...]) -> Iterator[Problem]:
        nonlocal seen
        seen += 1
        mark = node.start_mark
        if seen > MAX_VALUES:
            raise ConstructorError(None, None, f"more than {MAX_VALUES} values, counting repeated ones", mark)
        if node in above:
            raise ConstructorError(None, None, "a section that contains itself", mark)
        if len(above) == MAX_DEPTH:
            raise ConstructorError(None, None, f"nested more than {MAX_DEPTH} levels deep", mark)
        if isinstance(node, ScalarNode):
            if "\0" in node.value or any("\ud800" <= letter <= "\udfff" for letter in node.value):
                raise ConstructorError(None, None, "text with a character that no text has", mark)
        elif isinstance(node, MappingNode):
            kept: dict[Any, tuple[Node, Node]] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.tag not in (f"{TAG}str", f"{TAG}merge"):
                    shown = repr(loader.construct_object(key)) if isinstance(key, ScalarNode) else f"a {key.id}"
                    text = f"keys are text, but YAML reads this one as {shown} (line {line}); write it in quotes"
                    yield Problem(f"{where}{shown}", text)
                    continue
                name = key if key.tag == f"{TAG}merge" else key.value  # << may stand there several times
                if name in kept:
                    lines = f"{kept.pop(name)[0].start_mark.line + 1} and {line}"
                    yield Problem(f"{where}{name}", f"written twice, in lines {lines}; keep one of them")
                kept[name] = key, value
                yield from visit(key, where, (*above, node))
                yield from visit(value, f"{where}{key.value}.", (*above, node))
            node.value = list(kept.values())
        else:
            for part in node.value:
                yield from visit(part, where, (*above, node))

    return visit(root, "", ())


def dump(value: Any, inline: bool = False) -> str:
    """YAML that :func:`parse` reads as it was; ``inline``: on one line, without its end."""
    width = float("inf") if inline else None
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=inline, width=width)
    return text.removesuffix("\n").removesuffix("\n...") if inline else text
