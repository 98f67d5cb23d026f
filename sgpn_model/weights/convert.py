"""The authors' checkpoints and Basel Face Model files -> one file of weights of this library."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sgpn_arch import complete_options
from sgpn_arch.d3dfr_arch import D3DFR
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.files import sha256_of
from sgpn_arch.released_names import PriorReport, d3dfr_options, init_from_prior, sgpn_options
from sgpn_arch.sgpn_arch import SGPN
from sgpn_model.weights.checkpoint import CheckpointError, read_state_dict, save_checkpoint

TEMPLATE = "gpen"
LICENCE = "the licences of the files it was made from: the authors' weights for research only, BFM not to be passed on"


def convert(
    output: str | Path,
    sgpn: str | Path | None = None,
    d3dfr: str | Path | None = None,
    bfm: str | Path | None = None,
    init_prior: str | Path | None = None,
) -> str:
    """Converts released files into one self-describing checkpoint, and says what it did.

    With ``sgpn``, ``d3dfr`` and ``bfm`` the result restores photos. With fewer, it holds what was given, for training to
    start from.

    Args:
        output: the file to write. sgpn: the authors' ``sgpn.pth``. d3dfr: their ``d3dfr_*.pth`` or Deep3DFaceRecon's
            ``epoch_20.pth``. bfm: directory or file of the Basel Face Model. init_prior: a GPEN generator, to initialise
            an SGPN of the released size in place of ``sgpn``.

    Returns:
        A report: what each file was found to be, and for a prior which tensors it did not initialise.

    Raises:
        CheckpointError: nothing or too much is given, or a file cannot be used; the message names it. Nothing is written.
    """
    if (sgpn is None) == (init_prior is None) and (sgpn or d3dfr is None):
        raise CheckpointError("give one of --sgpn and --init-prior, or --d3dfr alone")
    lines: list[str] = []
    networks: dict[str, tuple[dict, nn.Module]] = {}
    if sgpn:
        networks["network_g"] = _network(sgpn, SGPN, sgpn_options, lines)
    if init_prior:
        networks["network_g"] = _from_prior(init_prior, lines)
    if d3dfr:
        networks["network_shape"] = _network(d3dfr, D3DFR, d3dfr_options, lines)
    model = _basel(bfm, lines) if bfm else None
    _check_together(networks, model)
    metadata: dict[str, Any] = {
        "archs": {name: complete_options(options) for name, (options, _) in networks.items()},
        "template": TEMPLATE,
        "protocol": "released",
        "licence": LICENCE,
        "step": None,
        "sources": {Path(path).name: sha256_of(path) for path in (sgpn, d3dfr, init_prior) if path},
    }
    if "network_g" in networks:
        metadata["size"] = networks["network_g"][1].size
    weights = {name: network.state_dict() for name, (_, network) in networks.items()}
    save_checkpoint(output, weights, metadata, morphable_model=model)
    lines.append(f"{output}: {Path(output).stat().st_size / 1e6:.1f} MB; {_use(networks, model, output)}")
    return "\n".join(lines)


def _network(
    path: str | Path, kind: type[SGPN] | type[D3DFR], options_of: Callable[[Any], dict], lines: list[str]
) -> tuple[dict, nn.Module]:
    state = read_state_dict(path)
    try:
        options = options_of(state)
        network = kind.from_released(state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    told = ", ".join(f"{key} {value}" for key, value in options.items())
    lines.append(f"{path}: {kind.__name__} ({told}), {_parameters(network)}")
    return {"type": kind.__name__, **options}, network


def _from_prior(path: str | Path, lines: list[str]) -> tuple[dict, nn.Module]:
    network = SGPN()
    try:
        report = init_from_prior(network, read_state_dict(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    lines.append(_tell(path, report))
    return {"type": "SGPN"}, network


def _tell(path: str | Path, report: PriorReport) -> str:
    lines = [f"{path}: a prior; {len(report.taken)} tensors initialise an SGPN of 512 px"]
    for title, names in (
        ("not in the prior, at random", report.absent),
        ("of another shape there, at random", report.unfit),
        ("of the prior, without a place here", report.unused),
    ):
        lines += [f"  {title} ({len(names)}):"] + [f"    {name}" for name in names]
    return "\n".join(lines)


def _basel(path: str | Path, lines: list[str]) -> MorphableModel:
    try:
        model = MorphableModel.from_bfm(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error
    lines.append(f"{path}: morphable model '{model.name}', {len(model.shape_mean)} vertices, {model.dims} modes")
    return model


def _check_together(networks: Mapping[str, tuple[dict, nn.Module]], model: MorphableModel | None) -> None:
    network, regressor = (networks.get(name, (None, None))[1] for name in ("network_g", "network_shape"))
    if regressor is not None and model is not None:
        try:
            ShapePrior(regressor, model)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    if network is not None and regressor is not None and network.coeff_dim != regressor.coeff_dim:
        raise CheckpointError(
            f"SGPN takes {network.coeff_dim} coefficients, D3DFR gives {regressor.coeff_dim}: they do not belong together"
        )


def _use(networks: Mapping, model: MorphableModel | None, output: str | Path) -> str:
    if len(networks) == 2 and model is not None:
        return f"try it: sgpn restore --weights {output} photo.jpg"
    return (
        f"holds {' and '.join(networks)}{' and the morphable model' if model else ''}: for training, not for restoring"
    )


def _parameters(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"
