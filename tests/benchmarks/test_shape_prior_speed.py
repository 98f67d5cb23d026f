"""pytest-benchmark of the shape prior: step by step on one face, plain definitions beside their fast forms, and a large mesh.

``pytest tests/benchmarks/test_shape_prior_speed.py --benchmark-enable`` measures; otherwise each runs once, with a small
regressor.
"""

import pytest
import torch

from oracles.synthetic_model import BFM_VERTICES, synthetic_model
from sgpn_arch.d3dfr_arch import D3DFR
from sgpn_arch.face3d.crop224 import invert_affine, warp_affine
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.normals import plain_normals
from sgpn_arch.face3d.raster.rasterizer import interpolate, plain_interpolate, rasterize
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_data.alignment import template_points

SIDE, PHOTO = 224, 512
STEPS = {
    "warp to the regressor": "steps",
    "regressor": "steps",
    "mesh": "steps",
    "normals": "normals",
    "plain normals": "normals",
    "rasterise": "steps",
    "interpolate": "interpolate",
    "plain interpolate": "interpolate",
    "warp onto the photo": "steps",
    "whole": "steps",
}


def step_calls(backbone: str) -> dict:
    """Name -> one step of the prior on a photo of noise, as it is called in :meth:`ShapePrior.forward`, and the whole."""
    torch.manual_seed(0)
    model = MorphableModel.open()
    prior = ShapePrior(D3DFR(*model.dims, backbone=backbone), model).eval().requires_grad_(False)
    photos = torch.rand(1, 3, PHOTO, PHOTO) * 2 - 1
    points = torch.tensor(template_points("ffhq", PHOTO), dtype=torch.float32)[None]
    transform = prior.transform(points, PHOTO)
    seen = warp_affine((photos + 1) / 2, transform, SIDE).clamp(0, 1)
    coeffs = prior.regressor(seen)
    mesh = prior.mesh(coeffs)
    fragments = rasterize(mesh.points, mesh.depth, model.triangles, (SIDE, SIDE), prior.rasterizer)
    shown = (mesh.colors, fragments.barycentrics, fragments.triangle_ids, model.triangles)
    drawn = torch.cat(prior.render224(mesh), dim=1)
    return {
        "warp to the regressor": lambda: warp_affine((photos + 1) / 2, prior.transform(points, PHOTO), SIDE),
        "regressor": lambda: prior.regressor(seen),
        "mesh": lambda: prior.mesh(coeffs),
        "normals": lambda: model.normals(mesh.shape),
        "plain normals": lambda: plain_normals(mesh.shape, model.triangles, model.face_normals == "unit"),
        "rasterise": lambda: rasterize(mesh.points, mesh.depth, model.triangles, (SIDE, SIDE), prior.rasterizer),
        "interpolate": lambda: interpolate(mesh.colors, fragments, model.triangles),
        "plain interpolate": lambda: plain_interpolate(*shown),
        "warp onto the photo": lambda: warp_affine(drawn, invert_affine(transform), PHOTO),
        "whole": lambda: prior(photos, points),
    }


@pytest.fixture(scope="module")
def calls(measuring):
    with torch.inference_mode():
        return step_calls("resnet50" if measuring else "mobilenet_v2")


@pytest.mark.parametrize("name", STEPS)
def test_step(benchmark, calls, name):
    benchmark.group = STEPS[name]
    out = benchmark(torch.inference_mode()(calls[name]))
    if name.startswith("plain"):
        assert (out - calls[name.removeprefix("plain ")]()).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["forward", "gradients"])
def test_mesh_of_the_basel_models_size(benchmark, kind):
    model = synthetic_model(BFM_VERTICES if benchmark.enabled else 2000, dims=(1, 1, 1))
    points = (model.shape_mean[None, :, :2] * torch.tensor([1, -1]) * 100 + SIDE / 2).contiguous()
    depth = 10 - model.shape_mean[None, :, 2].contiguous()
    benchmark.group = "rasterise a mesh of Basel size"

    def forward():
        with torch.no_grad():
            return rasterize(points, depth, model.triangles, (SIDE, SIDE))

    def gradients():
        leaves = points.clone().requires_grad_(), depth.clone().requires_grad_()
        fragments = rasterize(*leaves, model.triangles, (SIDE, SIDE))
        torch.autograd.grad(fragments.barycentrics.sum() + fragments.depth.sum(), leaves)
        return fragments

    fragments = benchmark(forward if kind == "forward" else gradients)
    assert 0.5 < (fragments.triangle_ids >= 0).float().mean() < 0.65
