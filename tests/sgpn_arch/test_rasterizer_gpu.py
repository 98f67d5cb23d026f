"""The rasteriser on a GPU against the CPU's compiled loops: triangles, values and gradients; run where there is CUDA."""

import pytest
import torch

from oracles.synthetic_model import synthetic_model
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.raster.rasterizer import interpolate, plain_fragments, rasterize
from sgpn_arch.face3d.shape_prior import ShapePrior

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module", params=["open", "as large as the Basel model"])
def model(request):
    return MorphableModel.open() if request.param == "open" else synthetic_model()


def posed(model, batch, size):
    """Random faces on images of size: points, depth and colours on the CPU."""
    prior = ShapePrior(torch.nn.Identity(), model)
    coefficients = 0.5 * torch.randn(batch, prior.coeff_dim, generator=torch.Generator().manual_seed(batch))
    coefficients[:, -30:] *= 0.2
    with torch.no_grad():
        mesh = prior.mesh(coefficients)
    return mesh.points * size / 224, mesh.depth, mesh.colors


def draw(inputs, model, size, backend, device):
    """Fragments, picture, and the gradients of one loss."""
    leaves = [value.to(device).requires_grad_() for value in inputs]
    triangles = model.triangles.to(device)
    seen = rasterize(leaves[0], leaves[1], triangles, (size, size), backend)
    return seen, *picture(leaves, seen, triangles)


def picture(leaves, seen, triangles):
    image = interpolate(leaves[2], seen, triangles)
    weights = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    loss = (image * weights).sum() + (seen.depth * weights[..., 0]).sum()
    return image.detach().cpu(), [grad.cpu() for grad in torch.autograd.grad(loss, leaves)]


def assert_near(found, expected, tolerance=1e-3):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < tolerance * theirs.norm()


@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parametrize("batch", [1, 4])
def test_torch_backend_agrees_with_the_cpu(model, size, batch):
    inputs = posed(model, batch, size)
    on_cpu, image, grads = draw(inputs, model, size, "cpu", "cpu")
    on_gpu, gpu_image, gpu_grads = draw(inputs, model, size, "torch", "cuda")
    assert (on_gpu.triangle_ids.cpu() == on_cpu.triangle_ids).float().mean() > 0.999
    assert_near([gpu_image, *gpu_grads], [image, *grads])


@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parametrize("batch", [1, 4])
def test_nvdiffrast_agrees_but_for_its_rounding(model, size, batch):
    """It sees some neighbours of the triangles that the CPU sees; with its triangles, values and gradients are the same."""
    pytest.importorskip("nvdiffrast.torch")
    inputs = posed(model, batch, size)
    on_cpu, image, _ = draw(inputs, model, size, "cpu", "cpu")
    seen, gpu_image, gpu_grads = draw(inputs, model, size, "nvdiffrast", "cuda")
    ids = seen.triangle_ids.cpu()
    assert ((ids >= 0) == (on_cpu.triangle_ids >= 0)).float().mean() > 0.999
    assert (ids == on_cpu.triangle_ids).float().mean() > 0.93
    assert_near([gpu_image], [image], 1e-2)
    leaves = [value.clone().requires_grad_() for value in inputs]
    plain = plain_fragments(leaves[0], leaves[1], model.triangles, ids)
    plain_image, plain_grads = picture(leaves, plain, model.triangles)
    assert_near([gpu_image, *gpu_grads], [plain_image, *plain_grads], 5e-3)


@pytest.mark.parametrize("backend", ["torch", "nvdiffrast"])
@pytest.mark.parametrize("size", [(37, 61), (2056, 2100)])
def test_any_size_and_autocast(backend, size):
    if backend == "nvdiffrast":
        pytest.importorskip("nvdiffrast.torch")
    model = MorphableModel.open()
    points, depth, _ = posed(model, 1, min(size))
    expected = rasterize(points, depth, model.triangles, size)
    with torch.autocast("cuda", torch.float16):
        seen = rasterize(points.cuda(), depth.cuda(), model.triangles.cuda(), size, backend)
    both = (seen.triangle_ids.cpu() == expected.triangle_ids) & (expected.triangle_ids >= 0)
    assert both.float().sum() > 0.97 * (expected.triangle_ids >= 0).float().sum()
    torch.testing.assert_close(seen.depth.cpu()[both], expected.depth[both], rtol=1e-4, atol=1e-3)


def test_half_precision_of_the_regressor_is_the_default():
    from sgpn_arch.d3dfr_arch import D3DFR

    model = synthetic_model(2000, dims=(4, 3, 2))
    prior = ShapePrior(D3DFR(*model.dims, backbone="resnet18"), model).cuda().eval()
    prepared = prior.for_inference()
    assert prepared.regressor.precision == "fp16"
    crop, points = (
        torch.rand(2, 3, 128, 128).cuda() * 2 - 1,
        (model.reference5[:, :2] * 40 + 64).expand(2, -1, -1).cuda(),
    )
    with torch.inference_mode():
        assert (prepared(crop, points).landmarks - prior(crop, points).landmarks).abs().max() < 0.1
