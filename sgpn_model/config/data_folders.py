"""``--data FOLDER``: the faces of an option file's datasets, where the file names none."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sgpn_arch.by_name import options_of
from sgpn_arch.errors import OptionError, Problem
from sgpn_arch.registry import DATASET_REGISTRY
from sgpn_model.config.origins import Origins
from sgpn_model.config.registries import fill_registries

PHASES = {"train": "train", "val": "val", "test": "val"}  # of datasets -> which of the faces
HOW = "`sgpn align PHOTOS -o FOLDER` makes such a folder; one with train/ and val/ inside is split as it stands"


def fill_roots(options: dict, origins: Origins, folders: Sequence[str]) -> None:
    """Gives ``folders`` to every dataset that names no ``dataroot``: to train, or the pictures held back to val and test.

    Args:
        options: of a whole file, changed in place. origins: likewise; the message of a later error names ``--data``.
        folders: of aligned faces, see :func:`sgpn_data.sources.open_split`; all of them are joined.

    Raises:
        OptionError: every dataset names its own; or one names a folder of these without saying which part of it.
    """
    without = _without_root(options) if folders else []
    if folders and not without:
        raise OptionError(
            "--data: has no effect, for every dataset names its own folder; change that: --set datasets.train.dataroot=FOLDER",
            source=origins.top,
        )
    given = {os.path.realpath(os.path.expanduser(folder)) for folder in folders}
    for phase, section in options["datasets"].items() if without else ():
        roots = section.get("dataroot") if isinstance(section, dict) else None
        named = {
            os.path.realpath(os.path.expanduser(str(root))) for root in (roots if isinstance(roots, list) else [roots])
        }
        if roots and named & given and not section.get("split"):
            raise OptionError(
                f"datasets.{phase}.dataroot: is a folder of --data too, so faces would be trained on and measured; name it in "
                f"neither or both, or write datasets.{phase}.split"
            )
    for phase in without:
        section = options["datasets"][phase]
        added: dict[str, Any] = {"dataroot": [str(folder) for folder in folders]}
        if not section.get("split"):  # else the file chooses it itself
            added["split"] = PHASES[phase]
        for key, value in added.items():
            section[key] = value
            origins.put(["datasets", phase, key], value, f"--data {' '.join(map(str, folders))}")


def missing_roots(options: Mapping) -> list[Problem]:
    """A problem for each dataset that does not say where its faces are."""
    text = f"this option is missing; name a folder, or add --data FOLDER. {HOW}"
    return [Problem(f"datasets.{phase}.dataroot", text) for phase in _without_root(options)]


def _without_root(options: Mapping) -> list[str]:
    """The phases whose dataset could take a folder with a split, and has none."""
    fill_registries()
    found = []
    for phase, section in options["datasets"].items() if isinstance(options.get("datasets"), dict) else ():
        if phase in PHASES and isinstance(section, dict) and str(section.get("type")) in DATASET_REGISTRY:
            model = options_of(DATASET_REGISTRY.get(section["type"]))
            if model and {"dataroot", "split"} <= model.model_fields.keys() and not section.get("dataroot"):
                found.append(phase)
    return found
