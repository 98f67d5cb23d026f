"""What a user is told when something is wrong: the errors for it, and the nearest name that is known."""

import difflib
from collections.abc import Callable, Iterable
from typing import NamedTuple

MAX_SHOWN = 200  # characters of a value in a message


class UserError(Exception):
    """Something that the user can mend. The command line prints its message alone; any other error is a bug."""


class Problem(NamedTuple):
    """What is wrong with one option: its dotted key ("" for the whole), and the file or ``--set`` that wrote it, if known."""

    key: str
    text: str
    source: str | None = None

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.source, self.key, self.text)))


class OptionError(UserError, ValueError):
    """Options that cannot be used, a line for each: ``FILE: KEY: what was found, and what is allowed``.

    Args:
        problems: each a :class:`Problem`, or a message ``KEY: what is wrong``.
        source: the file or ``--set`` that wrote them all, where that is known.

    Attributes:
        problems: what is wrong, at least one.
    """

    def __init__(self, *problems: Problem | str, source: str | None = None):
        super().__init__(*problems)
        found = [problem if isinstance(problem, Problem) else _parsed(problem) for problem in problems]
        self.problems = [problem._replace(source=problem.source or source) for problem in found]

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))

    @property
    def source(self) -> str | None:
        """Where the first of them was written."""
        return self.problems[0].source

    def below(self, where: str) -> "OptionError":
        """The same about the options of the section ``where``."""
        found = [problem._replace(key=".".join(filter(None, (where, problem.key)))) for problem in self.problems]
        return OptionError(*found)


def _parsed(message: str) -> Problem:
    key, separator, text = message.partition(": ")
    return Problem(key, text) if separator else Problem("", message)


class Problems:
    """Gathers what is wrong, so that all of it can be told at once.

    Used as a context manager, it takes the OptionError that ends the block; the blocks after it are tried all the same.
    """

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def __enter__(self) -> "Problems":
        return self

    def __exit__(self, kind, error, trace) -> bool:
        if not isinstance(error, OptionError):
            return False
        self.found += [problem for problem in error.problems if problem not in self.found]
        return True

    def tell(self, source: Callable[[Problem], str] | None = None) -> None:
        """Raises OptionError if there are any; ``source`` says where each was written."""
        if self.found:
            raise OptionError(*(p if p.source or source is None else p._replace(source=source(p)) for p in self.found))


def shown(value: object, write: Callable[[object], str] = repr) -> str:
    """A value as a message shows it: its beginning, where it is long."""
    text = write(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: ``; did you mean 'x'?``, or all known names where none is near."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
