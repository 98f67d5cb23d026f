"""``sgpn bench network``: SGPN's forward pass, prepared and plain, in every precision; and how it grows with batch and size."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from sgpn_arch.d3dfr_arch import D3DFR
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.layers import StyledConv, ToRGB
from sgpn_arch.sgpn_arch import SGPN
from sgpn_data.alignment import template_points
from sgpn_model.cli.bench_measure import (
    CEILING_CHANNELS,
    CEILING_SIDE,
    DTYPES,
    Measured,
    Settings,
    ceiling_call,
    ceiling_name,
    difference,
    gflop,
    measure,
    ratio,
)
from sgpn_model.cli.bench_report import Row, Table
from sgpn_model.weights.pretrained import load_networks

RANDOM = "The weights are random (seed {seed}): speed does not depend on them."
# The paper's regressor.
BACKBONE = "resnet50"
# The standard deviation of photos in [-1, 1] is about this; a random network's pictures are scaled to it.
PHOTO_DEVIATION = 0.45


def run(settings: Settings) -> Table:
    """Measures one batch in every precision that was asked for."""
    network, prior = build(settings)
    inputs = make_inputs(network, prior, settings.batch or 1, settings)
    rows = measure_network(network, inputs, settings)
    batch = len(inputs[0])
    title = f"{describe(network, settings)}, forward, batch {batch}"
    return Table("network", title, rows, notes(settings))


def sweep(axis: str, settings: Settings) -> Table:
    """The same over batches (up to ``batch``, default 8) or sizes (from 64 up to ``size``)."""
    rows = []
    if axis == "batch":
        network, prior = build(settings)
        for batch in powers(1, settings.batch or 8):
            inputs = make_inputs(network, prior, batch, settings)
            rows += _placed(measure_network(network, inputs, settings), batch)
        title = f"{describe(network, settings)}, forward, over the batch"
        return Table("sweep_batch", title, rows, notes(settings), "faces in a batch")
    for size in powers(64, settings.size):
        own = replace(settings, size=size)
        network, prior = build(own)
        rows += _placed(measure_network(network, make_inputs(network, prior, settings.batch or 1, own), own), size)
    title = f"SGPN, width {settings.width:g}, {settings.fusion}, forward, batch {settings.batch or 1}, over the size"
    return Table("sweep_size", title, rows, notes(settings), "side of the face, pixels")


def powers(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first, ... and ``last``."""
    values = []
    while first < last:
        values.append(first)
        first *= 2
    return [*values, last]


def _placed(rows: list[Row], place: int) -> list[Row]:
    for row in rows:
        row.what, row.at = f"{row.what}, {place}", place
    return [row for row in rows if row.faces]


def notes(settings: Settings) -> list[str]:
    """What the reader of a table should know."""
    found = [] if settings.weights else [RANDOM.format(seed=settings.seed)]
    found.append("GFLOP: of the plain definition, 2 for each multiply-add, also where a fast path does with fewer.")
    found.append(
        f"ceiling: one 3x3 convolution, {CEILING_CHANNELS} channels in and out at {CEILING_SIDE}x{CEILING_SIDE}, channels-last, "
        "measured in turns with the rest; the column says what part of its GFLOP/s was reached."
    )
    if settings.compare:
        found.append(
            "x plain, x fp32: the time of the plain path in the same precision, and in fp32, over this one's: measured in "
            "turns, the median over the rounds. difference: from the plain path in fp32; the largest absolute one in fp32, "
            "else PSNR; pictures in [-1, 1]."
        )
    return found


def describe(network: nn.Module, settings: Settings) -> str:
    """What network it is."""
    if settings.weights:
        return f"SGPN-{network.size} of the weights '{settings.weights}'"
    return f"SGPN-{network.size}, width {settings.width:g}, {settings.fusion}"


# ---------------------------------------------------------------------------------------------------------------------
# The network and its inputs


def build(settings: Settings) -> tuple[nn.Module, ShapePrior]:
    """The network and the shape prior to measure: those of the weights, or random ones of the paper's kind."""
    if settings.weights:
        network, prior, _ = load_networks(settings.weights)
    else:
        prior = random_prior(settings.seed)
        torch.manual_seed(settings.seed)
        network = SGPN(settings.size, settings.width, coeff_dim=prior.coeff_dim, fusion=settings.fusion)
        enliven(network)
    parts = (part.eval().requires_grad_(False).to(settings.device) for part in (network, prior))
    return tuple(parts)


def random_prior(seed: int) -> ShapePrior:
    """The open morphable model and a regressor of the paper's kind, which sees the mean face everywhere."""
    torch.manual_seed(seed)
    model = MorphableModel.open()
    return ShapePrior(D3DFR(*model.dims, backbone=BACKBONE), model)


def enliven(network: nn.Module) -> None:
    """Gives values to the parameters that begin at zero, so that every part of the network has a say in the result."""
    for module in network.modules():
        if isinstance(module, StyledConv):
            module.weight.data.fill_(0.5)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.1)


def make_inputs(network: nn.Module, prior: ShapePrior, batch: int, settings: Settings) -> tuple[Tensor, ...]:
    """Photos, renderings as large as in an aligned photo, and coefficients, on the settings' device."""
    size, device = network.size, settings.device
    generator = torch.Generator().manual_seed(settings.seed)
    coarse = torch.rand(batch, 3, 16, 16, generator=generator) * 2 - 1
    photos = nn.functional.interpolate(coarse, size=size, mode="bicubic")
    photos = (photos + 0.1 * torch.randn(photos.shape, generator=generator)).clamp(-1, 1).to(device)
    points = torch.tensor(template_points("ffhq", size), dtype=torch.float32, device=device).expand(batch, -1, -1)
    coeffs = 0.3 * torch.randn(batch, prior.coeff_dim, generator=generator).to(device)
    coeffs[:, -33:] = 0  # pose, light and place as they are on average
    coeffs[:, -30:-3:9] = 0.3
    with torch.inference_mode():
        render = prior.draw(coeffs, prior.transform(points, size), size).render
    return photos, render.clone(), coeffs


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def measure_network(network: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> list[Row]:
    """Rows of the prepared network in every precision, of the plain one where it is to be compared, and of the ceiling."""
    if settings.compare and not settings.weights:
        _scale_pictures(network, inputs)
    calls = network_calls(network, inputs, settings)
    precisions = dict.fromkeys(name.split()[1] for name in calls)
    works = {ceiling_name(precision): ceiling_call(precision, settings.device) for precision in precisions}
    found = measure(calls | {name: call for name, (call, _) in works.items()}, settings)
    work = gflop(network, *inputs)
    rows = []
    for name in calls:
        precision = name.split()[1]
        ceiling = _gflops(found[ceiling_name(precision)], works[ceiling_name(precision)][1])
        rows.append(_row(name, found, len(inputs[0]), work, ceiling))
    rows += [Row(name, found[name].seconds, gflop=work) for name, (_, work) in works.items()]
    return rows


def network_calls(network: nn.Module, inputs: tuple[Tensor, ...], settings: Settings) -> dict[str, Callable]:
    """Name -> call: "prepared PRECISION", and with ``compare`` "plain PRECISION"; fp32 is always among the plain ones."""
    precisions, calls = settings.precisions(), {}
    for precision in dict.fromkeys(["fp32", *precisions]) if settings.compare else ():
        calls[f"plain {precision}"] = plain_call(network, inputs, precision)
    for precision in precisions:
        prepared = network.for_inference(precision)
        calls[f"prepared {precision}"] = lambda prepared=prepared: prepared(*inputs)
    return calls


def plain_call(network: nn.Module, inputs: tuple[Tensor, ...], precision: str) -> Callable:
    """The network as it is written, under autocast where the precision is not full."""
    device = inputs[0].device.type

    def call():
        half = contextlib.nullcontext() if precision == "fp32" else torch.autocast(device, DTYPES[precision])
        with torch.inference_mode(), half:
            return network(*inputs).float()

    return call


def _row(name: str, found: dict[str, Measured], faces: int, work: float, ceiling: float) -> Row:
    own, (kind, precision) = found[name], name.split()
    row = Row(name, own.seconds, faces, work, ceiling, peak_mib=own.peak_mib, exact=precision == "fp32")
    if "plain fp32" not in found or name == "plain fp32":
        return row
    row.difference = difference(own.output, found["plain fp32"].output)
    row.versus_fp32 = ratio(found["plain fp32"].seconds, own.seconds)
    if kind == "prepared":
        row.ratio = ratio(found[f"plain {precision}"].seconds, own.seconds)
    return row


def _gflops(ceiling: Measured, work: float) -> float:
    return Row("", ceiling.seconds, gflop=work).gflops


@torch.inference_mode()
def _scale_pictures(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Scales what the network adds up to a picture, so that its pictures have a photo's contrast, for which PSNR is meant."""
    factor = PHOTO_DEVIATION / network(*inputs).std()
    for module in network.modules():
        if isinstance(module, ToRGB):
            module.conv.weight.mul_(factor)
            module.bias.mul_(factor)
