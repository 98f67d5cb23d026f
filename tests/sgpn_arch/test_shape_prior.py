"""The shape prior on a toy model and on the open one: where it draws, what it says, and its gradients."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from oracles import face3d as oracle
from oracles import rasterizer as brute_force
from sgpn_arch.d3dfr_arch import D3DFR
from sgpn_arch.face3d.crop224 import warp_affine
from sgpn_arch.face3d.lighting import shade
from sgpn_arch.face3d.morphable_model import MorphableModel, five_points
from sgpn_arch.face3d.shape_prior import ShapePrior

SIZE, SCALE, CENTRE = 160, 62.0, np.array([75.3, 88.6])  # a face of 62 pixels to the decimetre, in a crop of 160


class Constant(nn.Module):
    """A regressor that says the same of every picture and remembers the last one."""

    def __init__(self, coefficients):
        super().__init__()
        self.coefficients = coefficients
        self.coeff_dim = len(coefficients)

    def forward(self, image):
        self.image = image
        return self.coefficients.expand(len(image), -1)


def random_coefficients(model, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [*model.dims, 3, 27, 3]
    spread = [0.7, 0.7, 0.7, 0.2, 0.05, 0.1]
    parts = [s * rng.normal(size=n) for n, s in zip(sizes, spread, strict=True)]
    return torch.tensor(np.concatenate(parts))


def seen_points(model):
    """The mean's five points as a distant camera sees them on the crop (1, 5, 2)."""
    points = five_points(model.shape_mean[model.landmarks]).double().numpy()
    return torch.tensor(SCALE * points[:, :2] * [1, -1] + CENTRE).float()[None]


def prior_of(model, coefficients=None, **options):
    if coefficients is None:
        coefficients = torch.zeros(sum(model.dims) + 33)
    return ShapePrior(Constant(coefficients), model, rasterizer="cpu", **options)


@pytest.fixture(scope="module")
def open_result():
    model = MorphableModel.open()
    crop = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return model, prior_of(model)(crop, seen_points(model))


def test_mean_face_falls_on_the_given_points(open_result):
    model, result = open_result
    drawn = five_points(result.landmarks)[0]
    # Near, not equal: the camera is ten decimetres away, and what is nearer looks larger.
    assert (drawn - seen_points(model)[0]).norm(dim=1).max() < 0.08 * SCALE
    for i in range(68):
        x, y = oracle.pinhole(model.shape_mean[model.landmarks[i]]) - 0.5
        expected = CENTRE + (np.array([x, y]) - 112) * SCALE / 102
        np.testing.assert_allclose(result.landmarks[0, i], expected, atol=2e-3)


def test_mask_and_picture_cover_the_face(open_result):
    _, result = open_result
    assert result.render.shape == (1, 3, SIZE, SIZE) and result.mask.shape == (1, 1, SIZE, SIZE)
    x, y = result.landmarks[0, 30].round().long().tolist()
    assert result.mask[0, 0, y, x] == 1
    for i in range(17, 48):  # the jaw's landmarks lie on the outline, the mouth's on a slit
        x, y = result.landmarks[0, i].round().long().tolist()
        assert result.mask[0, 0, y, x] > 0.5, i
    outside = result.mask == 0
    assert 0.3 < outside.float().mean() < 0.8
    assert (result.render[outside.expand_as(result.render)] == -1).all()
    assert (result.render.amin(), result.render.amax()) >= (-1, -1) and result.render.amax() <= 1
    assert result.render[0, :, y, x].mean() > -0.5


def test_regressor_sees_the_upright_crop_in_its_own_range():
    model = oracle.toy_model()
    prior = prior_of(model)
    crop = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    result = prior(crop, seen_points(model).expand(2, -1, -1))
    image = prior.regressor.image
    assert image.shape == (2, 3, 224, 224) and image.min() >= 0 and image.max() <= 1
    np.testing.assert_allclose(image, warp_affine(crop / 2 + 0.5, result.transform, 224), atol=1e-5)
    white = prior.coefficients  # a white crop is 1 inside and 0, not grey, beyond its border
    white(torch.ones(1, 3, SIZE, SIZE), result.transform[:1] + torch.tensor([0, 0, 150.0]))
    assert prior.regressor.image.unique().min() == 0 and prior.regressor.image.max() > 0.999


def test_mesh_is_posed_and_lit_as_the_formulas_say():
    model = oracle.toy_model().double()
    coefficients = random_coefficients(model)
    prior = prior_of(model, coefficients)
    mesh = prior.mesh(coefficients[None])
    identity, expression, texture, angles, lighting, translation = prior.split(coefficients[None])
    turn = oracle_rotation(angles[0].numpy())
    shape = oracle.linear_combination(model.shape_mean, model.id_basis, identity[0])
    shape = oracle.linear_combination(shape, model.exp_basis, expression[0])
    posed = shape @ turn.T + translation[0].numpy()
    np.testing.assert_allclose(mesh.vertices[0], posed, atol=1e-9)
    np.testing.assert_allclose(mesh.points[0], [oracle.pinhole(v) for v in posed], atol=1e-8)
    np.testing.assert_allclose(mesh.depth[0], 10 - posed[:, 2], atol=1e-9)
    normals = torch.tensor(oracle.vertex_normals(posed, model.triangles))
    albedo = torch.tensor(oracle.linear_combination(model.tex_mean, model.tex_basis, texture[0]))
    np.testing.assert_allclose(mesh.colors[0], shade(albedo[None], normals[None], lighting)[0], atol=1e-8)


@pytest.mark.parametrize("size", [120, 300])
def test_rendering_is_the_lit_mesh_drawn_and_moved_onto_the_crop(size):
    """A brute-force drawing with colours clamped, the mask likewise, both warped, multiplied, and brought to [-1, 1]."""
    model = oracle.toy_model(dims=(2, 1, 2)).double()
    coefficients = random_coefficients(model, 3)
    coefficients[5 + 3 : 5 + 30] *= 12  # some colours beyond 0..1
    prior = prior_of(model, coefficients)
    transform = torch.tensor([[[1.3, 0.1, -20.0], [-0.1, 1.3, 11.0]]], dtype=torch.float64)
    result, mesh = prior.draw(coefficients[None], transform, size), prior.mesh(coefficients[None])
    triangles, colors = model.triangles.numpy(), mesh.colors[0].numpy()
    ids, weights, _ = brute_force.rasterize(mesh.points[0].numpy(), mesh.depth[0].numpy(), triangles, (224, 224))
    picture = np.einsum("hwk,hwkc->chw", weights, colors[triangles[ids]])
    assert picture.min() < 0 and picture.max() > 1
    layers = np.concatenate([picture.clip(0, 1), (ids >= 0)[None]])
    back = np.linalg.inv(np.vstack([transform[0].numpy(), [0, 0, 1]]))[:2]
    moved = oracle.warp(layers, back, size)
    np.testing.assert_allclose(result.mask[0, 0], moved[3], atol=1e-9)
    np.testing.assert_allclose(result.render[0], moved[:3] * moved[3] * 2 - 1, atol=1e-9)
    landmarks = np.stack([oracle.pinhole(v) - 0.5 for v in mesh.vertices[0, model.landmarks]])
    np.testing.assert_allclose(result.landmarks[0], landmarks @ back[:, :2].T + back[:, 2], atol=1e-8)


@pytest.mark.parametrize("protocol", ["open", "released"])
def test_a_crop_without_colour_has_a_grey_rendering_of_the_same_lightness(protocol):
    model = oracle.toy_model()
    prior = prior_of(model, random_coefficients(model).float(), protocol=protocol)
    crop = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    crop[1] = crop[1, :1]
    result = prior(crop, seen_points(model).expand(2, -1, -1))
    colors = prior.mesh(result.coeffs).colors
    assert torch.equal(result.mesh.colors[0], colors[0]) and np.ptp(colors.numpy(), axis=2).max() > 0.05
    if protocol == "released":  # as in the authors' code
        assert torch.equal(result.mesh.colors[1], colors[1])
        return
    lightness = cv2.cvtColor(colors[1:].numpy(), cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(result.mesh.colors[1], np.repeat(lightness[0, :, None], 3, axis=1), atol=1e-6)
    assert np.ptp(result.render[1].numpy(), axis=0).max() < 1e-6 < np.ptp(result.render[0].numpy(), axis=0).max()
    assert torch.equal(result.mask[0], result.mask[1])


def oracle_rotation(angles):
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", angles).as_matrix()


def test_drawing_given_coefficients_is_the_forward_pass():
    model = oracle.toy_model()
    coefficients = random_coefficients(model, 1).float()
    prior = prior_of(model, coefficients)
    result = prior(torch.rand(1, 3, SIZE, SIZE), seen_points(model))
    again = prior.draw(coefficients[None], result.transform, SIZE)
    assert torch.equal(result.render, again.render) and torch.equal(result.landmarks, again.landmarks)
    assert torch.equal(result.coeffs, coefficients[None])


def test_landmarks_gradients_reach_identity_expression_and_pose():
    model = oracle.toy_model().double()
    prior = prior_of(model)
    coefficients = random_coefficients(model)[None].requires_grad_()

    def landmarks(value):
        return prior.landmarks224(prior.mesh(value))[:, ::8]

    assert torch.autograd.gradcheck(landmarks, coefficients)
    landmarks(coefficients).sum().backward()
    parts = prior.split(coefficients.grad)
    assert all((parts[i] != 0).all() for i in (0, 1, 3, 5))
    assert (parts[2] == 0).all() and (parts[4] == 0).all()


def test_picture_gradients_reach_lighting_and_texture():
    """Finite differences of the picture's colours, where light and texture change them smoothly."""
    model = oracle.toy_model().double()
    prior = prior_of(model)
    coefficients = random_coefficients(model)[None]
    start, stop = sum(model.dims[:2]), sum(model.dims)
    transform = prior.transform(seen_points(model).double(), 48)
    weights = torch.rand(1, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def scalar(texture, lighting):
        value = torch.cat(
            [
                coefficients[:, :start],
                texture,
                coefficients[:, stop : stop + 3],
                lighting,
                coefficients[:, stop + 30 :],
            ],
            1,
        )
        return (prior.draw(value, transform, 48).render * weights).mean()

    inputs = [coefficients[:, a:b].clone().requires_grad_() for a, b in ((start, stop), (stop + 3, stop + 30))]
    assert torch.autograd.gradcheck(scalar, inputs, atol=1e-7)


def test_whole_picture_has_finite_gradients_for_all_coefficients():
    model = MorphableModel.open()
    prior = prior_of(model)
    coefficients = random_coefficients(model).float()[None].requires_grad_()
    result = prior.draw(coefficients, prior.transform(seen_points(model), 96), 96)
    (result.render**2).mean().backward()
    assert coefficients.grad.isfinite().all()
    assert all((part != 0).any() for part in prior.split(coefficients.grad))


def test_larger_lighting_brightens_only_its_colour():
    model = oracle.toy_model()
    prior = prior_of(model)
    dark, bright = torch.zeros(1, prior.coeff_dim), torch.zeros(1, prior.coeff_dim)
    bright[0, sum(model.dims) + 3 + 9] = 0.3  # constant band of green
    transform = prior.transform(seen_points(model), 64)
    change = prior.draw(bright, transform, 64).render - prior.draw(dark, transform, 64).render
    assert change[:, 1].max() > 0.05 and change[:, 1].min() >= 0
    assert (change[:, [0, 2]] == 0).all()


def test_dimensions_must_match():
    model = oracle.toy_model()
    with pytest.raises(ValueError, match=r"257 coefficients.*'toy'.*needs 40.*id_dim"):
        ShapePrior(D3DFR(), model)
    identity, expression, texture = model.dims
    prior = ShapePrior(D3DFR(identity, expression, texture, backbone="resnet18"), model)
    assert prior.coeff_dim == 40


# ---- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_geometry_alone(dtype):
    model = oracle.toy_model()
    coefficients = random_coefficients(model).float()
    prior, points = prior_of(model, coefficients), seen_points(model)
    crop = torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    expected = prior(crop, points)
    with torch.autocast("cpu", dtype):
        found = prior(crop, points)
        drawn = prior.draw(coefficients[None].to(dtype).float(), expected.transform, SIZE)
    for name in ("coeffs", "render", "mask", "landmarks", "transform"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert drawn.render.dtype == drawn.landmarks.dtype == torch.float32


def trained_prior(backbone, protocol="open", normalisation=True):
    """A prior whose regressor has heads that say something and batch norms that do something."""
    model = oracle.toy_model()
    torch.manual_seed(0)
    regressor = D3DFR(*model.dims, backbone=backbone, imagenet_normalisation=normalisation)
    for module in regressor.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    for head in regressor.final_layers:
        nn.init.normal_(head.weight, std=1e-3)
    return ShapePrior(regressor, model, "cpu", protocol).eval()


@pytest.mark.parametrize("protocol", ["open", "released"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "mobilenet_v2"])
@torch.inference_mode()
def test_prepared_prior_says_the_same(backbone, protocol):
    prior = trained_prior(backbone, protocol)
    crop = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = {key: value.clone() for key, value in prior.regressor.state_dict().items()}
    prepared = prior.for_inference("fp32")
    expected, found = (p(crop, seen_points(prior.model)) for p in (prior, prepared))
    assert prepared.protocol == protocol and prepared.coeff_dim == prior.coeff_dim
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    assert all(torch.equal(before[key], value) for key, value in prior.regressor.state_dict().items())
    scale = expected.coeffs.abs().max()
    assert scale > 1e-3
    torch.testing.assert_close(found.coeffs / scale, expected.coeffs / scale, rtol=1e-3, atol=1e-4)
    assert (found.landmarks - expected.landmarks).abs().max() < 0.01


@torch.inference_mode()
def test_half_precision_is_near_and_gives_full_precision():
    prior = trained_prior("resnet18")
    crop = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = prior(crop, seen_points(prior.model)).coeffs
    found = prior.for_inference("bf16")(crop, seen_points(prior.model)).coeffs
    assert found.dtype == torch.float32 and 0 < (found - expected).norm() < 0.05 * expected.norm()


def test_automatic_precision_of_a_cpu_is_full():
    prior = trained_prior("resnet18")
    assert prior.for_inference().regressor.precision == "fp32"
    with pytest.raises(ValueError, match="'int8' is unknown"):
        prior.for_inference("int8")
