"""Weights by name or path: which ship, where a name's file is, and the networks of a restoration built from it."""

import difflib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from sgpn_data.alignment import TEMPLATES
from sgpn_model.weights.bundle import read_bundle
from sgpn_model.weights.formats import CHECKPOINT_FORMAT, CheckpointError

if TYPE_CHECKING:
    import torch

    from sgpn_arch.face3d.shape_prior import ShapePrior
    from sgpn_model.weights.checkpoint import Checkpoint

WEIGHTS_FOLDER = Path(__file__).parent


def available_weights() -> list[str]:
    """Names of the checkpoints that ship with the library."""
    return sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors") if _is_checkpoint(path))


def _is_checkpoint(path: Path) -> bool:
    try:
        with safe_open(str(path), framework="np") as file:
            return (file.metadata() or {}).get("format") == CHECKPOINT_FORMAT
    except (OSError, SafetensorError):
        return False


def find_weights(name: str | Path) -> Path:
    """The file that a name or a path of weights means: ``default`` (named in ``default.txt``), weights that ship, a file,
    the folder of a bundle, or what was fetched from the catalogue.

    Raises:
        CheckpointError: there is none.
    """
    if name == "default":
        name = (WEIGHTS_FOLDER / "default.txt").read_text(encoding="utf-8").strip()
    shipped = WEIGHTS_FOLDER / f"{name}.safetensors"
    if shipped.is_file() and Path(name).name == str(name):
        return shipped
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return read_bundle(path).weights
    # Here and not above: what most restorations need is found by now.
    from sgpn_model.weights.catalogue import find_file, load_catalogue

    catalogue = load_catalogue()
    if name not in catalogue:
        restoring = {"default", *available_weights()}  # most of the catalogue is for metrics and losses
        near = difflib.get_close_matches(str(name), restoring | set(catalogue), n=1)
        hint = (
            f"did you mean '{near[0]}'?"
            if near
            else f"known: {', '.join(sorted(restoring))}; sgpn weights list has more"
        )
        raise CheckpointError(f"weights '{name}': no such file, and no weights of this name; {hint}")
    place = find_file(catalogue[str(name)])
    if place is None:
        raise CheckpointError(f"weights '{name}' are not on this machine; run: sgpn weights fetch {name}")
    return place


def load_networks(weights: str | Path) -> "tuple[torch.nn.Module, ShapePrior, str]":
    """The network, the shape prior and the alignment template's name of weights, by their name or path.

    Raises:
        CheckpointError: there are no such weights, or they do not describe a restoration.
    """
    from sgpn_model.weights.checkpoint import load_checkpoint

    return build_networks(load_checkpoint(find_weights(weights)))


def build_networks(checkpoint: "Checkpoint") -> "tuple[torch.nn.Module, ShapePrior, str]":
    """The network, the shape prior and the alignment template's name of a checkpoint that was read.

    Raises:
        CheckpointError: it does not describe a restoration.
    """
    from sgpn_arch.face3d.shape_prior import ShapePrior

    path, about = checkpoint.path, checkpoint.metadata
    network, regressor = checkpoint.network("network_g"), checkpoint.network("network_shape")
    _check_call(checkpoint, "network_g", network, "photo", "rendering", "coefficients", return_masks=True)
    _check_call(checkpoint, "network_shape", regressor, "photo")
    template = about.get("template")
    if template not in TEMPLATES:
        raise CheckpointError(f"{path}: unknown alignment template {template!r} (known: {', '.join(TEMPLATES)})")
    model = checkpoint.morphable_model()
    try:
        prior = ShapePrior(regressor, model, protocol=about.get("protocol", "open"))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    wanted = getattr(network, "coeff_dim", prior.coeff_dim)  # PhotoOnly takes any
    if wanted != prior.coeff_dim:
        raise CheckpointError(
            f"{path}: the network takes {wanted} coefficients, the shape prior gives {prior.coeff_dim}"
        )
    return network, prior, template


def _check_call(checkpoint: "Checkpoint", name: str, network: "torch.nn.Module", *inputs: str, **options: Any) -> None:
    """Whether a network can be called as its place demands; a discriminator's fits its description as well."""
    kind, shown = type(network).__name__, ", ".join((*inputs, *(f"{key}={value}" for key, value in options.items())))
    try:
        inspect.signature(network.forward).bind(*inputs, **options)
    except TypeError as error:
        raise CheckpointError(f"{checkpoint.path}: {name}: {kind} is not called with ({shown}): {error}") from error
    if options and not isinstance(getattr(network, "size", None), int):
        raise CheckpointError(f"{checkpoint.path}: {name}: {kind} restores no pictures, for it has no size")
