"""``sgpn bench shape``: the shape prior step by step, its share beside the network, and the rasteriser on a larger mesh."""

from collections.abc import Callable

import torch
from torch import Tensor

from sgpn_arch.face3d.crop224 import invert_affine, warp_affine
from sgpn_arch.face3d.normals import plain_normals
from sgpn_arch.face3d.raster.rasterizer import interpolate, plain_interpolate, rasterize
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.inference.network import choose_precision
from sgpn_data.alignment import template_points
from sgpn_model.cli.bench_measure import Settings, difference, gflop, measure, ratio
from sgpn_model.cli.bench_network import RANDOM, build, describe, make_inputs
from sgpn_model.cli.bench_report import Row, Table

# As many vertices and triangles as the Basel Face Model has without ears and neck (35,709 and 70,789), in a square grid.
GRID, SIDE = 189, 224
NETWORK, WHOLE = "network, prepared", "shape prior, whole"


def run(settings: Settings) -> Table:
    """Measures the steps of the prior on one batch, the whole, and the network that it works for."""
    network, prior = build(settings)
    precision = choose_precision(settings.precision or "auto", settings.device)
    inputs = make_inputs(network, prior, settings.batch or 1, settings)
    prepared = network.for_inference(precision)
    calls = {**step_calls(prior, inputs[0], settings), NETWORK: lambda: prepared(*inputs)}
    found = measure(calls | grid_calls(settings), settings)
    rows = {name: Row(name, own.seconds, peak_mib=own.peak_mib) for name, own in found.items()}
    together = rows[WHOLE].median + rows[NETWORK].median
    for name in calls:
        if not name.startswith("plain"):
            rows[name].share = rows[name].median / together
    rows[NETWORK].gflop = gflop(network, *inputs)
    rows["regressor"].gflop = gflop(prior.regressor, torch.zeros(len(inputs[0]), 3, SIDE, SIDE, device=settings.device))
    for name in calls:
        if f"plain {name}" in found:
            rows[name].ratio = ratio(found[f"plain {name}"].seconds, found[name].seconds)
            rows[name].difference = difference(found[name].output, found[f"plain {name}"].output)
    regressor = getattr(prior.regressor.backbone, "__class__", type(prior.regressor)).__name__
    title = f"Shape prior ({regressor}, {len(prior.model.shape_mean)} vertices) of {describe(network, settings)}, "
    notes = [] if settings.weights else [RANDOM.format(seed=settings.seed)]
    notes.append(f"share: of the shape prior and the prepared network ({precision}) together.")
    notes.append(
        f"grid: a made-up mesh of {GRID**2} vertices and {2 * (GRID - 1) ** 2} triangles, about the Basel Face Model's, at "
        f"{SIDE}x{SIDE}; its gradients are those of points and depth."
    )
    return Table("shape", f"{title}batch {len(inputs[0])}", list(rows.values()), notes)


def step_calls(prior: ShapePrior, photos: Tensor, settings: Settings) -> dict[str, Callable]:
    """Name -> one step of the prior on these photos, as :meth:`ShapePrior.forward` takes them, and the whole."""
    size, model = photos.shape[-1], prior.model
    points = torch.tensor(template_points("ffhq", size), dtype=torch.float32, device=settings.device)
    points = points.expand(len(photos), -1, -1)
    with torch.no_grad():
        transform = prior.transform(points, size)
        seen = warp_affine((photos + 1) / 2, transform, SIDE).clamp(0, 1)
        mesh = prior.mesh(prior.regressor(seen))
        fragments = rasterize(mesh.points, mesh.depth, model.triangles, (SIDE, SIDE), prior.rasterizer)
        picture, mask = prior.render224(mesh)
        coeffs = prior.regressor(seen)
        drawn = torch.cat([picture, mask], dim=1)
    shown = (mesh.colors, fragments.barycentrics, fragments.triangle_ids, model.triangles)
    steps = {
        "warp to the regressor": lambda: warp_affine((photos + 1) / 2, prior.transform(points, size), SIDE).clamp(0, 1),
        "regressor": lambda: prior.regressor(seen),
        "mesh": lambda: prior.mesh(coeffs),
        "normals": lambda: model.normals(mesh.shape),
        "rasterise": lambda: rasterize(mesh.points, mesh.depth, model.triangles, (SIDE, SIDE), prior.rasterizer),
        "interpolate": lambda: interpolate(mesh.colors, fragments, model.triangles),
        "warp onto the photo": lambda: warp_affine(drawn, invert_affine(transform), size),
        WHOLE: lambda: prior(photos, points),
    }
    if settings.compare:
        unit = model.face_normals == "unit"
        steps["plain normals"] = lambda: plain_normals(mesh.shape, model.triangles, unit)
        steps["plain interpolate"] = lambda: plain_interpolate(*shown)
    return {name: torch.inference_mode()(call) for name, call in steps.items()}


def grid_calls(settings: Settings) -> dict[str, Callable]:
    """Rasterising a dome of GRID x GRID vertices, forward, and with the gradients of its vertices."""
    line = torch.linspace(-1, 1, GRID, device=settings.device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = (SIDE / 2 + 0.4 * SIDE * torch.stack([x, y], dim=-1)).reshape(1, -1, 2)
    depth = (10 - torch.sqrt(2.5 - x**2 - y**2)).reshape(1, -1)
    corner = (torch.arange(GRID - 1)[:, None] * GRID + torch.arange(GRID - 1)).reshape(-1)
    halves = [corner, corner + GRID, corner + 1], [corner + 1, corner + GRID, corner + GRID + 1]
    triangles = torch.cat([torch.stack(half, dim=1) for half in halves]).to(settings.device)

    def forward():
        with torch.no_grad():
            return rasterize(points, depth, triangles, (SIDE, SIDE))

    def backward():
        leaves = points.clone().requires_grad_(), depth.clone().requires_grad_()
        fragments = rasterize(*leaves, triangles, (SIDE, SIDE))
        return torch.autograd.grad(fragments.barycentrics.sum() + fragments.depth.sum(), leaves)

    return {"grid: rasterise": forward, "grid: with gradients": backward}
