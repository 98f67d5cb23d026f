"""Weights by name or path: which ship, where a name's file is, and the networks of a restoration built from it."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sgpn_arch.errors import nearest
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_data.alignment import TEMPLATES
from sgpn_model.weights.checkpoint import FORMAT, Checkpoint, CheckpointError, load_checkpoint

WEIGHTS_FOLDER = Path(__file__).parent


def available_weights() -> list[str]:
    """Names of the checkpoints that ship with the library."""
    return sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors") if _is_checkpoint(path))


def _is_checkpoint(path: Path) -> bool:
    try:
        with safe_open(str(path), framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def find_weights(name: str | Path) -> Path:
    """The file that a name or a path of weights means: ``default`` (named in ``default.txt``), weights that ship, a file, or
    what was fetched from the catalogue.

    Raises:
        CheckpointError: there is none.
    """
    if name == "default":
        name = (WEIGHTS_FOLDER / "default.txt").read_text(encoding="utf-8").strip()
    shipped = WEIGHTS_FOLDER / f"{name}.safetensors"
    if shipped.is_file() and Path(name).name == str(name):
        return shipped
    if Path(name).is_file():
        return Path(name)
    if Path(name).is_dir():
        raise CheckpointError(f"{name}: is a folder, not a file of weights")
    # Here and not above: what most restorations need is found by now, and pydantic takes a while to import.
    from sgpn_model.weights.catalogue import find_file, load_catalogue

    catalogue = load_catalogue()
    if name not in catalogue:
        hint = nearest(str(name), {"default", *available_weights(), *catalogue})
        raise CheckpointError(f"weights '{name}': no such file, and no weights of this name{hint}")
    place = find_file(catalogue[str(name)])
    if place is None:
        raise CheckpointError(f"weights '{name}' are not on this machine; run: sgpn weights fetch {name}")
    return place


def load_networks(weights: str | Path) -> tuple[torch.nn.Module, ShapePrior, str]:
    """The network, the shape prior and the alignment template's name of weights, by their name or path.

    Raises:
        CheckpointError: there are no such weights, or they do not describe a restoration.
    """
    return build_networks(load_checkpoint(find_weights(weights)))


def build_networks(checkpoint: Checkpoint) -> tuple[torch.nn.Module, ShapePrior, str]:
    """The network, the shape prior and the alignment template's name of a checkpoint that was read.

    Raises:
        CheckpointError: it does not describe a restoration.
    """
    path, about = checkpoint.path, checkpoint.metadata
    network, regressor = checkpoint.network("network_g"), checkpoint.network("network_shape")
    template = about.get("template")
    if template not in TEMPLATES:
        raise CheckpointError(f"{path}: unknown alignment template {template!r} (known: {', '.join(TEMPLATES)})")
    model = checkpoint.morphable_model()
    try:
        prior = ShapePrior(regressor, model, protocol=about.get("protocol", "open"))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if network.coeff_dim != prior.coeff_dim:
        raise CheckpointError(
            f"{path}: the network takes {network.coeff_dim} coefficients, the shape prior gives {prior.coeff_dim}"
        )
    return network, prior, template
