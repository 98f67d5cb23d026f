"""Runs command lines inside this process, and says what a user could rightly complain about."""

import contextlib
import logging
import os
import re
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sgpn_model import cli

# What only a developer understands: a Python warning's or error's name. (libtiff prints lines of its own past Python.)
NOISE = re.compile(r"Traceback|\b[A-Z]\w*Warning\b|: [A-Z]\w*(?:Error|Exception)\b")


@dataclass(frozen=True)
class Said:
    """How a command ended: its exit code (None after an error that is a bug), what it printed, and that error's last lines."""

    code: int | None
    text: str
    bug: str = ""


def run(*arguments: object) -> Said:
    """Runs ``sgpn ARGUMENTS`` in this process."""
    code, bug = None, ""
    with _captured() as told:
        try:
            code = cli.main([str(each) for each in arguments])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except Exception:
            bug = "".join(traceback.format_exc().splitlines(keepends=True)[-9:])
    return Said(code, told[0], bug)


def fault(said: Said, *names: str, codes: Sequence[int] = (0, 1, 2)) -> str | None:
    """What is wrong with how a command ended, or None. An error must name one of ``names``, where there are any."""
    if said.bug:
        return f"traceback: {said.bug}"
    if said.code not in codes:
        return f"exit code {said.code}: {said.text[-500:]}"
    if NOISE.search(said.text):
        return f"noise: {said.text[-700:]}"
    if said.code and names and not any(name in said.text for name in names):
        return f"names neither file nor key ({', '.join(names)}): {said.text[-500:]}"
    return None


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """What this process prints, C libraries included."""
    told, handlers = [""], logging.getLogger().handlers[:]
    with tempfile.TemporaryFile("w+", errors="backslashreplace") as file:
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield told
        finally:
            logging.getLogger().handlers[:] = handlers  # a training's would go on writing to the file
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)
            file.flush()
            file.seek(0)
            told[0] = file.buffer.read().decode(errors="replace")
