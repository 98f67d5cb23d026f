"""What a user is told when something is wrong: the error for it, and the nearest name that is known."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend. The command line prints its message alone; any other error is a bug."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: ``; did you mean 'x'?``, or all known names where none is near."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
