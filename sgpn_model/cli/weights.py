"""``sgpn weights``: list, fetch, verify, show and convert weights."""

import argparse
from collections.abc import Callable

DESCRIPTION = "Weights that this library can use; docs/weights.md says what is known about them."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The tasks and their arguments, and what runs."""
    tasks = parser.add_subparsers(title="tasks", metavar="TASK", required=True)
    _add_task(tasks, "list", list_catalogue, "what there is, and whether it is on this machine")
    fetch_task = _add_task(tasks, "fetch", fetch, "download weights of the list and verify them")
    fetch_task.add_argument("name", metavar="NAME", help="a name in the list")
    fetch_task.add_argument("-o", "--output", metavar="DIR", help="folder for the file (default: the cache folder)")
    for function, told in ((verify, "whether a file is complete, safe and usable"), (show, "what is in a file")):
        task = _add_task(tasks, function.__name__, function, told)
        task.add_argument("file", metavar="FILE", help="a file of weights, a name in the list, or default")
    add = _add_task(tasks, "convert", convert, "turn the authors' released weights into a checkpoint").add_argument
    add("--sgpn", metavar="FILE", help="the authors' sgpn.pth")
    add("--d3dfr", metavar="FILE", help="the authors' d3dfr_*.pth, or Deep3DFaceRecon's epoch_20.pth")
    add("--bfm", metavar="DIR", help="folder of the Basel Face Model")
    add("--init-prior", metavar="FILE", help="a GPEN generator to start training from, instead of --sgpn")
    add("-o", "--output", required=True, metavar="OUT", help="the checkpoint to write (.safetensors)")


def _add_task(tasks, name: str, function: Callable[..., int], told: str) -> argparse.ArgumentParser:
    parser = tasks.add_parser(name, help=told, description=f"Say {told}." if name in ("verify", "show") else None)
    parser.set_defaults(run=function)
    return parser


def list_catalogue() -> int:
    """Prints the catalogue as a table, and where downloads go."""
    from sgpn_arch.files import cache_folder
    from sgpn_model.weights.catalogue import find_file, load_catalogue, size_text

    rows = [("NAME", "WHAT FOR", "SIZE", "HERE", "SHA-256", "LICENCE")]
    for entry in load_catalogue().values():
        place = find_file(entry)
        here = "yes" if place and place.parent == cache_folder() else f"yes ({entry.home})"
        if entry.shipped:
            here = "ships" if place else "missing"
        elif place is None:
            here = "no: by hand" if entry.by_hand else "no"
        known = "not known"
        if entry.sha256:
            known = "known" if len(entry.sha256) == 64 else f"{len(entry.sha256)} digits"
        size = place.stat().st_size if place else entry.size
        rows.append((entry.name, entry.what, size_text(size), here, known, entry.licence))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nDownloads go to {cache_folder()} (SGPN_HOME changes that). More: docs/weights.md")
    return 0


def fetch(name: str, output: str | None = None) -> int:
    """Fetches weights of the catalogue by their name into the folder ``output``, or the cache folder."""
    from sgpn_arch.files import sha256_of
    from sgpn_model.weights import catalogue

    entry = catalogue.find_entry(name)
    if entry.shipped:
        print(f"{name} ships with this library: {catalogue.find_file(entry)}")
        return 0
    path, is_new = catalogue.fetch(entry, output)
    print(f"{path}: {catalogue.size_text(path.stat().st_size)}, {'fetched' if is_new else 'is there already'}")
    verdict = "hash not known: the catalogue has none to compare with. Note this one, to recognise the file later"
    if entry.sha256:
        verdict = "as in the catalogue" if len(entry.sha256) == 64 else f"begins as in the catalogue ({entry.sha256})"
    print(f"  SHA-256 {sha256_of(path)}, {verdict}")
    print(f"  licence: {entry.licence}; source: {entry.source}")
    folder = catalogue.home(entry)
    if folder and path.parent != folder:
        print(f"  {entry.home} looks for it in {folder}: copy it there, or fetch it with -o {folder}")
    print(f"  use: {entry.use}")
    return 0


def verify(file: str) -> int:
    """Prints what a file of weights is and whether it is whole, safe and usable; 1 if something is wrong, else 0."""
    from sgpn_arch.files import sha256_of
    from sgpn_model.weights.inspect import describe, whose

    path = _header(file)
    digest = sha256_of(path)
    print(f"  SHA-256 {digest}")
    problems = []
    for look in (lambda: [whose(path, digest)], lambda: describe(path, check=True)):
        try:
            print(*(f"  {line}" for line in look()), sep="\n")
        except ValueError as error:  # CheckpointError is one
            problems.append(str(error))
    print(*(f"  WRONG: {problem}" for problem in problems), sep="\n", end="\n" if problems else "")
    print("  something is wrong with it" if problems else "  nothing is wrong with it")
    return 1 if problems else 0


def show(file: str) -> int:
    """Prints what a file of weights is, in a few lines; runs no code of it."""
    from sgpn_model.weights.checkpoint import CheckpointError
    from sgpn_model.weights.inspect import describe

    path = _header(file)
    try:
        print(*(f"  {line}" for line in describe(path)), sep="\n")
    except ValueError as error:  # of a morphable model's file
        raise CheckpointError(str(error)) from error
    return 0


def _header(file: str):
    """Finds the file by its path or name, says what kind of file it is, and returns its path."""
    from sgpn_model.weights.catalogue import size_text
    from sgpn_model.weights.formats import KINDS, kind_of
    from sgpn_model.weights.pretrained import find_weights

    path = find_weights(file)
    print(f"{path}: {KINDS[kind_of(path)]}, {size_text(path.stat().st_size)}")
    return path


def convert(output: str, sgpn: str | None, d3dfr: str | None, bfm: str | None, init_prior: str | None) -> int:
    """Converts released weights into a checkpoint of this library and prints the report."""
    from sgpn_model.weights.convert import convert as convert_released

    print(convert_released(output, sgpn=sgpn, d3dfr=d3dfr, bfm=bfm, init_prior=init_prior))
    return 0
