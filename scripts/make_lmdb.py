"""Packs a folder of aligned face images and their landmarks into an LMDB in BasicSR's layout.

python scripts/make_lmdb.py faces/train faces/train.lmdb

The encoded files go in as they are, so a dataset of the LMDB gives the same items as one of the folder. Each is decoded
once; one that a dataset would leave out (unreadable, or not square) is named and left out here.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sgpn_data.sources import LANDMARKS_FILE, LMDB_SUFFIX, META_FILE, Folder, decode, fault

COMMIT_EVERY = 1000  # images; what is not committed is held in memory
PAGE = 4096


class PackingError(Exception):
    """Input or output that cannot be packed; the message says which."""


def make_lmdb(folder: Path, target: Path) -> int:
    """Writes the LMDB, under its name only when it is complete, and returns the number of images.

    Raises:
        PackingError: the folder holds no usable image, two have one key, or the target cannot be written.
    """
    if target.suffix != LMDB_SUFFIX:
        raise PackingError(f"{target}: the name must end in {LMDB_SUFFIX}, by which datasets know an LMDB")
    if target.exists():
        raise PackingError(f"{target} exists already; remove it or choose another name")
    source = Folder(folder)
    _check_keys(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        lines = _fill(unfinished, source)
        if not lines:
            raise PackingError(f"{folder}: holds no usable image")
        (unfinished / META_FILE).write_text("".join(lines), encoding="utf-8")
        if (folder / LANDMARKS_FILE).is_file():
            shutil.copyfile(folder / LANDMARKS_FILE, unfinished / LANDMARKS_FILE)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(lines)


def _check_keys(source: Folder) -> None:
    """A key is the name without its suffix, as in BasicSR."""
    taken: dict[str, Path] = {}
    for path in source.paths:
        key = _key(source, path)
        if key in taken:
            raise PackingError(f"{taken[key]} and {path} differ in their suffix only; rename one")
        if len(key.encode()) > 511 or "\n" in key:  # LMDB's limit, and meta_info.txt's
            raise PackingError(f"{path}: the name is too long or has a line break; rename it")
        taken[key] = path
    if any("." in key for key in taken):
        _say("a name has a dot before its suffix: BasicSR's tools cut names there, datasets here do not")


def _key(source: Folder, path: Path) -> str:
    return path.relative_to(source.root).with_suffix("").as_posix()


def _fill(unfinished: Path, source: Folder) -> list[str]:
    """Writes the database and returns the lines of meta_info.txt."""
    import lmdb

    # Room for each image in whole pages, for the tree above them, and for the smallest of databases.
    room = sum(path.stat().st_size + 3 * PAGE for path in source.paths) * 11 // 10 + 1024 * PAGE
    environment = lmdb.open(str(unfinished), map_size=room)
    lines: list[str] = []
    transaction = environment.begin(write=True)
    for path, encoded, shape in _usable(source):
        transaction.put(_key(source, path).encode(), encoded.tobytes())
        # BasicSR writes its level of PNG compression last and does not read it; here nothing was compressed again.
        lines.append(f"{path.relative_to(source.root).as_posix()} ({shape[0]},{shape[1]},{shape[2]}) 0\n")
        if len(lines) % COMMIT_EVERY == 0:
            transaction.commit()
            transaction = environment.begin(write=True)
    transaction.commit()
    environment.close()
    return lines


def _usable(source: Folder) -> Iterator[tuple[Path, np.ndarray, tuple[int, ...]]]:
    left_out = 0
    for path in tqdm(source.paths, unit="image", disable=None):
        encoded = source.encoded(path)
        image = decode(encoded, path)
        why = fault(image)
        if why:
            left_out += 1
            _say(f"{path} is left out: {why} ({left_out} left out so far)")
            continue
        yield path, encoded, image.shape


def _say(text: str) -> None:
    tqdm.write(f"make_lmdb: {text}", file=sys.stderr)


def main() -> int:
    """Packs what the command line names and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images, also in subfolders, and landmarks68.json")
    parser.add_argument("target", type=Path, metavar="OUT.lmdb", help="the LMDB to write")
    arguments = parser.parse_args()
    try:
        if not arguments.folder.is_dir():
            raise PackingError(f"{arguments.folder} is not a folder")
        count = make_lmdb(arguments.folder, arguments.target)
    except (PackingError, OSError) as error:
        print(f"make_lmdb: error: {error}", file=sys.stderr)
        return 1
    size = (arguments.target / "data.mdb").stat().st_size
    print(f"{arguments.target}: {count} images, {size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
