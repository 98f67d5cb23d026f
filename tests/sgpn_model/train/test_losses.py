"""The losses against their formulas in plain double precision, their gradients, and the objectives the stages make of them."""

import copy

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from oracles import losses as oracle
from oracles import metrics as scores
from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.crop224 import warp_affine
from sgpn_arch.face3d.morphable_model import MorphableModel
from sgpn_arch.face3d.shape_prior import Mesh
from sgpn_arch.registry import ARCH_REGISTRY, LOSS_REGISTRY, load_basicsr
from sgpn_data.alignment import template_points
from sgpn_data.tensors import to_images
from sgpn_model.config.registries import fill_registries
from sgpn_model.train.joint_model import SGPNModel
from sgpn_model.train.losses import (
    COMPONENTS,
    FacialComponentLoss,
    GridLoss,
    MobileNetPerceptualLoss,
    coefficient_prior,
    landmark_loss_2d,
    landmark_loss_3d,
    mesh_loss,
    nonsaturating_loss,
    photometric_loss,
    r1_penalty,
)
from sgpn_model.train.shape_model import LANDMARK_WEIGHTS, ShapeModel, face_region


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def mesh(shape, colors):
    """A mesh of which nothing else is known: a loss that looked elsewhere would be NaN."""
    nothing = torch.full_like(shape, torch.nan)
    return Mesh(shape, nothing, nothing, colors, nothing[..., :2], nothing[..., 0])


# -- Pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def perceptual():
    return MobileNetPerceptualLoss(loss_weight=2.0, size=64)


@pytest.fixture(scope="module")
def photo(astronaut):
    """(1, 3, 64, 64) of the astronaut's face, in [-1, 1]."""
    face = np.ascontiguousarray(astronaut[30:190, 140:300, ::-1])
    return torch.from_numpy(cv2.resize(face, (64, 64), interpolation=cv2.INTER_AREA)).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_l1_is_the_mean_absolute_difference(weight):
    load_basicsr()
    a, b = random(2, 3, 5, 4), random(2, 3, 5, 4, seed=1)
    load_basicsr()
    loss = LOSS_REGISTRY.get("L1Loss")(loss_weight=weight)
    assert loss(a, b).item() == pytest.approx(weight * oracle.l1(a, b), rel=1e-12)


class TestPerceptual:
    def test_is_the_mean_of_the_stages_l1(self, perceptual, photo):
        """The features themselves are compared with torchvision's in test_perceptual.py."""
        pair = photo.flip(3), photo
        wanted = 2.0 * oracle.perceptual(*(perceptual.features(picture) for picture in pair))
        assert perceptual(*pair).item() == pytest.approx(wanted, rel=1e-5) and wanted > 0.01
        assert LOSS_REGISTRY.get("MobileNetPerceptualLoss") is MobileNetPerceptualLoss

    def test_larger_pictures_are_averaged_down(self, perceptual):
        large = random(2, 3, 256, 256).float().clamp(-1, 1)
        small = torch.from_numpy(oracle.block_means(large, 4)).float()
        assert perceptual(large.flip(3), large).item() == pytest.approx(
            perceptual(small.flip(3), small).item(), rel=1e-4
        )

    def test_slope_along_a_direction(self, photo):
        loss = MobileNetPerceptualLoss().double()
        output, truth, direction = photo.flip(3).double(), photo.double(), random(1, 3, 64, 64)
        output.requires_grad_(True)
        loss(output, truth).backward()
        slope = oracle.slope(lambda x: loss(x, truth), output.detach(), direction)
        assert (output.grad * direction).sum().item() == pytest.approx(slope, rel=1e-4)

    def test_the_output_learns_and_the_features_do_not(self, perceptual, photo):
        output, truth = photo.flip(3).requires_grad_(True), photo.clone().requires_grad_(True)
        perceptual(output, truth).backward()
        assert (output.grad != 0).any() and truth.grad is None
        assert not any(parameter.requires_grad for parameter in perceptual.parameters())


# -- Adversarial ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_nonsaturating_loss_is_the_logistic_cross_entropy(logits):
    tensor = torch.tensor(logits, dtype=torch.float64).view(-1, 1)
    for real in (True, False):
        assert nonsaturating_loss(tensor, real).item() == pytest.approx(
            oracle.logistic(logits, real), rel=1e-9, abs=1e-12
        )


def test_nonsaturating_loss_stays_finite_and_keeps_its_gradient_where_the_discriminator_is_sure():
    logits = torch.tensor([[-1e4]], requires_grad=True)
    loss = nonsaturating_loss(logits, real=True)
    loss.backward()
    assert loss.item() == pytest.approx(1e4) and logits.grad.item() == pytest.approx(-1)


def curved_discriminator():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(beta=3), nn.Flatten(), nn.Linear(16, 1)).double()


class TestR1:
    def test_of_a_linear_discriminator_is_its_squared_norm(self):
        direction, images = random(3, 4, 5), random(2, 3, 4, 5, seed=1).requires_grad_(True)
        penalty = r1_penalty((images * direction).sum(dim=(1, 2, 3)).view(-1, 1), images)
        assert penalty.item() == pytest.approx(sum(x * x for x in direction.flatten().tolist()), rel=1e-12)

    def test_of_a_curved_discriminator_is_that_of_finite_differences(self):
        """Each picture on its own, each of its numbers moved; so the mean is over pictures and the sum over numbers."""
        net, images = curved_discriminator(), random(3, 3, 4, 4)
        penalty = r1_penalty(net(images.requires_grad_(True)), images)
        assert penalty.item() == pytest.approx(oracle.r1_by_differences(net, images), rel=1e-6)

    def test_slope_along_every_weight_of_the_discriminator(self):
        net, images = curved_discriminator(), random(3, 3, 4, 4).requires_grad_(True)
        r1_penalty(net(images), images).backward()
        for parameter in (net[0].weight, net[0].bias, net[3].weight):
            start, direction = parameter.detach().clone(), random(*parameter.shape, seed=1)
            values = []
            for sign in (1, -1):
                parameter.data.copy_(start + sign * 1e-6 * direction)
                values.append(r1_penalty(net(images), images).item())
            parameter.data.copy_(start)
            slope = (values[0] - values[1]) / 2e-6
            assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5)


# -- Shape ------------------------------------------------------------------------------------------------------------


class TestMesh:
    def test_is_the_mean_distance_of_unposed_vertices_plus_that_of_lit_colours(self):
        a, b, c, d = (random(2, 7, 3, seed=seed) for seed in range(4))
        assert mesh_loss(mesh(a, c), mesh(b, c)).item() == pytest.approx(oracle.mean_distance(a, b), rel=1e-12)
        assert mesh_loss(mesh(a, c), mesh(a, d)).item() == pytest.approx(oracle.mean_distance(c, d), rel=1e-12)
        both = oracle.mean_distance(a, b) + oracle.mean_distance(c, d)
        assert mesh_loss(mesh(a, c), mesh(b, d)).item() == pytest.approx(both, rel=1e-12)

    def test_of_equal_meshes_is_zero_with_a_finite_gradient(self):
        shape = random(2, 7, 3).requires_grad_(True)
        loss = mesh_loss(mesh(shape, shape), mesh(shape.detach(), shape.detach()))
        loss.backward()
        assert loss.item() == 0 and torch.isfinite(shape.grad).all()


def test_landmark_loss_3d_is_the_mean_squared_distance():
    a, b = random(3, 68, 3), random(3, 68, 3, seed=1)
    assert landmark_loss_3d(a, b).item() == pytest.approx(oracle.landmark_3d(a, b), rel=1e-12)
    assert landmark_loss_3d(a, a).item() == 0


class TestLandmarkLoss2D:
    def test_weighs_points_and_leaves_unknown_faces_out(self):
        points, target = random(3, 68, 2), random(3, 68, 2, seed=1)
        target[1] = torch.nan
        wanted = oracle.landmark_2d(points, target, LANDMARK_WEIGHTS)
        assert landmark_loss_2d(points, target, LANDMARK_WEIGHTS).item() == pytest.approx(wanted, rel=1e-6)

    def test_unknown_faces_get_no_gradient(self):
        points, target = random(2, 68, 2).requires_grad_(True), random(2, 68, 2, seed=1)
        target[0] = torch.nan
        landmark_loss_2d(points, target, LANDMARK_WEIGHTS).backward()
        assert (points.grad[0] == 0).all() and (points.grad[1] != 0).any(dim=1).all()

    def test_without_any_known_face_it_is_a_differentiable_zero(self):
        points = random(2, 68, 2).requires_grad_(True)
        loss = landmark_loss_2d(points, torch.full((2, 68, 2), torch.nan), LANDMARK_WEIGHTS)
        loss.backward()
        assert loss.item() == 0 and (points.grad == 0).all()

    def test_the_weights_go_with_the_ibug_points(self):
        assert LANDMARK_WEIGHTS.shape == (68,)
        jaw, brows_and_nose, eyes, mouth = LANDMARK_WEIGHTS.split([17, 19, 12, 20])
        assert [part.unique().numel() for part in (jaw, brows_and_nose, eyes, mouth)] == [1] * 4
        assert jaw[0] < brows_and_nose[0] < mouth[0] < eyes[0]


class TestPhotometric:
    def test_is_the_mean_distance_of_colours_over_the_mask(self):
        render, image = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
        mask = (random(2, 1, 4, 5, seed=2) > 0).double() * random(2, 1, 4, 5, seed=3).abs().clamp(max=1)
        wanted = oracle.photometric(render, image, mask)
        assert photometric_loss(render, image, mask).item() == pytest.approx(wanted, rel=1e-6)

    def test_nothing_outside_the_mask_learns(self):
        render, image = random(1, 3, 6, 6).requires_grad_(True), random(1, 3, 6, 6, seed=1)
        mask = torch.zeros(1, 1, 6, 6)
        mask[..., :3] = 1
        photometric_loss(render, image, mask).backward()
        assert (render.grad[..., 3:] == 0).all() and (render.grad[..., :3] != 0).all()

    def test_an_empty_mask_gives_zero(self):
        render = random(1, 3, 200, 200).requires_grad_(True)
        loss = photometric_loss(render, random(1, 3, 200, 200, seed=1), torch.zeros(1, 1, 200, 200))
        loss.backward()
        assert loss.item() == 0 and (render.grad == 0).all()

    def test_equal_pictures_have_a_finite_gradient(self):
        render = random(1, 3, 4, 4).requires_grad_(True)
        photometric_loss(render, render.detach().clone(), torch.ones(1, 1, 4, 4)).backward()
        assert torch.isfinite(render.grad).all()


def test_coefficient_prior_is_its_formula_and_white_light_on_the_mean_face_is_free():
    parts = [random(3, n, seed=n) for n in (8, 6, 4, 27)]
    assert coefficient_prior(*parts).item() == pytest.approx(oracle.coefficient_prior(*parts), rel=1e-12)
    free = [torch.zeros(2, n) for n in (8, 6, 4)]
    assert coefficient_prior(*free, random(2, 9).repeat(1, 3)).item() == pytest.approx(0, abs=1e-12)


FLAT = random(2, 3, 4, 4, seed=9)
UNKNOWN = torch.stack([random(68, 2, seed=8), torch.full((68, 2), torch.nan)])
MASK = (random(2, 1, 4, 4, seed=7) > 0).double()
SLOPES = {
    "adversarial, generator": (lambda x: nonsaturating_loss(x, real=True), [(3, 1)]),
    "adversarial, made": (lambda x: nonsaturating_loss(x, real=False), [(3, 1)]),
    "mesh": (
        lambda s, c: mesh_loss(mesh(s, c), mesh(random(2, 5, 3, seed=5), random(2, 5, 3, seed=6))),
        [(2, 5, 3)] * 2,
    ),
    "landmarks in 3D": (lambda x: landmark_loss_3d(x, random(2, 8, 3, seed=5)), [(2, 8, 3)]),
    "landmarks in 2D": (lambda x: landmark_loss_2d(x, UNKNOWN, LANDMARK_WEIGHTS.double()), [(2, 68, 2)]),
    "photometric": (lambda x: photometric_loss(x, FLAT, MASK), [(2, 3, 4, 4)]),
    "coefficients": (coefficient_prior, [(2, 4), (2, 3), (2, 5), (2, 27)]),
}


@pytest.mark.parametrize("function, shapes", SLOPES.values(), ids=SLOPES)
def test_gradients_are_those_of_finite_differences(function, shapes):
    inputs = [random(*shape, seed=seed).requires_grad_(True) for seed, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(function, inputs)


# -- What the stages make of them -------------------------------------------------------------------------------------

SIZE = 64
DIMS = MorphableModel.open().dims
RATES = {"optim_g": 2e-3, "optim_d": 1e-3, "optim_shape": 1e-5}
BETAS = {"optim_g": (0.5, 0.9), "optim_d": (0.0, 0.99), "optim_shape": (0.9, 0.999)}


@ARCH_REGISTRY.register()
class PooledRegressor(nn.Module):
    """Coefficients linear in an 8x8 picture: what a stage makes of a regressor does not depend on its depth."""

    coeff_dim = sum(DIMS) + 33

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, self.coeff_dim)
        self.disturb()

    def disturb(self):
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.normal_(self.head.bias, std=0.05)

    def forward(self, image):
        return self.head(F.avg_pool2d(image, 28).flatten(1))


def stage(model_class, **train):
    tiny = {"size": SIZE, "width": 0.02, "max_channels": 8}
    options = {
        "name": "tiny",
        "model_type": model_class.__name__,
        "datasets": {"train": {"type": "FaceRestorationDataset", "dataroot": "unread", "size": SIZE}},
        "train": {"total_iter": 100, **train},
    }
    networks = {
        "network_g": {"type": "SGPN", **tiny, "style_dim": 16, "latent_dim": 8, "coeff_dim": sum(DIMS) + 33},
        "network_d": {"type": "SGPNDiscriminator", **tiny},
        "network_shape": {"type": "PooledRegressor"},
    }
    options.update({name: networks[name] for name in model_class.NETWORKS})
    fill_registries()
    torch.manual_seed(0)
    return model_class(options, torch.device("cpu"))


def joint_stage(**train):
    optimisers = {name: {"type": "Adam", "lr": RATES[name], "betas": BETAS[name]} for name in RATES}
    train = {"losses": {"pixel": {"type": "L1Loss"}}, "gan": {}, **optimisers, **train}
    model = stage(SGPNModel, **train)
    model.frozen_prior.regressor.disturb()  # so that it matters which of the two is asked
    with torch.no_grad():
        for parameter in model.networks["network_g"].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # features begin to count
    return model


@pytest.fixture(scope="module")
def batch(photo):
    """Two faces, blurred and good; only the first has landmarks."""
    hq = torch.cat([photo, photo.flip(3)])
    lq = F.interpolate(F.avg_pool2d(hq, 4), size=SIZE, mode="bilinear", align_corners=False)
    points5 = torch.from_numpy(np.stack([template_points("ffhq", SIZE)] * 2)).float()
    landmarks = torch.full((2, 68, 2), torch.nan)
    landmarks[0] = torch.from_numpy(drawn_points()).float() * SIZE / 100
    return {"hq": hq, "lq": lq, "points5": points5, "landmarks68": landmarks}


def drawn_points():
    """68 points of a drawn face on 100 pixels: the jaw on a half ellipse, everything else on rows inside it."""
    points = np.zeros((68, 2))
    angle = np.linspace(np.pi, 0, 17)
    points[:17] = np.stack([50 + 30 * np.cos(angle), 50 + 35 * np.sin(angle)], axis=1)
    points[17:27] = np.stack([np.linspace(28, 72, 10), np.full(10, 40)], axis=1)
    points[27:36] = np.stack([np.full(9, 50), np.linspace(45, 65, 9)], axis=1)
    points[36:48] = np.stack([np.linspace(32, 68, 12), np.full(12, 47)], axis=1)
    points[48:] = np.stack([np.linspace(40, 60, 20), np.full(20, 74)], axis=1)
    return points


def recorded_losses(model, monkeypatch):
    """Optimiser names -> the loss whose gradient they followed, filled as the model trains."""
    losses, original = {}, model.step_optimizer

    def step_optimizer(names, loss):
        losses[names if isinstance(names, str) else names[0]] = loss.item()
        original(names, loss)

    monkeypatch.setattr(model, "step_optimizer", step_optimizer)
    return losses


def generator_objective(model, batch, weights):
    """L = L_rec + w_adv L_adv + w_lm L_3dlm + w_mesh L_mesh, written out; also the output."""
    shape = model.prior(batch["lq"], batch["points5"])
    output = model.networks["network_g"](batch["lq"], shape.render, shape.coeffs)
    frozen = model.frozen_prior
    seen = [frozen.coefficients(x, shape.transform) for x in (batch["hq"], output)]
    wanted, found = (frozen.mesh(coeffs) for coeffs in seen)
    indices = model.prior.model.landmarks
    posed = model.train_opt.landmark_frame == "posed"

    def frame(mesh):
        return mesh.vertices if posed else mesh.shape

    parts = {
        "pixel": (output - batch["hq"]).abs().mean(),
        "adv": torch.log1p(torch.exp(-model.networks["network_d"](output))).mean(),
        "landmark3d": ((frame(found) - frame(wanted))[:, indices] ** 2).sum(-1).mean(),
        "mesh": sum(
            torch.sqrt(((have - want.detach()) ** 2).sum(-1)).mean()
            for have, want in ((shape.mesh.shape, wanted.shape), (shape.mesh.colors, wanted.colors))
        ),
        "pose": sum((shape.coeffs[:, -33:] - seen[0].detach()[:, -33:]).abs().flatten()) / (33 * len(shape.coeffs)),
    }
    assert all(part.item() > 1e-5 for part in parts.values()), "each must be seen"
    return sum(weights[name] * part for name, part in parts.items()), output.detach()


def discriminator_objective(discriminator, real, fake, r1_scale):
    """Logistic loss on both sides and, times r1_scale, the mean over pictures of the squared gradient of D."""
    real = real.clone().requires_grad_(True)
    logits = discriminator(real)
    loss = torch.log1p(torch.exp(-logits)).mean() + torch.log1p(torch.exp(discriminator(fake))).mean()
    (slopes,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    penalty = sum((slope**2).sum() for slope in slopes) / len(real)
    assert penalty.item() > 1e-6
    return loss + r1_scale * penalty


# The pose is ours, the others the paper's.
PAPER = {"pixel": 1, "adv": 1, "landmark3d": 100, "mesh": 100, "pose": 100}
JOINT = [
    ({}, 0, PAPER, 10 / 2 * 16),  # R1: gamma / 2, made up for 15 steps without it
    ({}, 5, PAPER, 0),
    (
        {
            "losses": {"pixel": {"type": "L1Loss", "loss_weight": 2.0}},
            "gan": {"loss_weight": 0.3, "r1_weight": 4, "r1_every": 3},
            "landmark_weight": 7,
            "landmark_frame": "posed",
            "landmark_every": 2,
            "mesh_weight": 5,
            "pose_weight": 3,
        },
        6,
        {"pixel": 2, "adv": 0.3, "landmark3d": 7 * 2, "mesh": 5, "pose": 3},
        4 / 2 * 3,
    ),
    ({"landmark_start_iter": 9}, 8, {**PAPER, "landmark3d": 0}, 0),
]


@pytest.mark.parametrize("train, step, weights, r1_scale", JOINT, ids=["paper", "between R1", "own weights", "start"])
def test_the_joint_stage_minimises_the_papers_loss(batch, monkeypatch, train, step, weights, r1_scale):
    """Values and every gradient of generator, regressor and discriminator."""
    model = joint_stage(**train)
    model.feed_data(batch)
    networks = model.networks
    total, fake = generator_objective(model, batch, weights)
    learners = [*networks["network_g"].parameters(), *networks["network_shape"].parameters()]
    wanted = torch.autograd.grad(total, learners, allow_unused=True)
    discriminator = copy.deepcopy(networks["network_d"]).requires_grad_(True)
    loss = discriminator_objective(discriminator, batch["hq"], fake, r1_scale)
    wanted_d = torch.autograd.grad(loss, list(discriminator.parameters()))

    losses = recorded_losses(model, monkeypatch)
    model.optimize_parameters(step)
    assert losses == {
        "optim_g": pytest.approx(total.item(), rel=1e-5),
        "optim_d": pytest.approx(loss.item(), rel=1e-4),
    }
    pairs = [*zip(learners, wanted, strict=True), *zip(networks["network_d"].parameters(), wanted_d, strict=True)]
    for parameter, gradient in pairs:
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        have = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(have, gradient, rtol=2e-3, atol=1e-5 * (1 + gradient.abs().max().item()))


@pytest.mark.parametrize("pose_weight", [0.0, 100.0])
def test_only_the_poses_loss_holds_the_translation(batch, pose_weight):
    """L_mesh looks at the shape before the pose: where it alone is asked, the head may go anywhere."""
    model = joint_stage(pose_weight=pose_weight)
    model.feed_data(batch)
    shape = model._input_shape()
    losses = model._shape_losses(batch["hq"], shape, step=1)
    assert ("pose" in losses) == bool(pose_weight)
    (gradient,) = torch.autograd.grad(sum(losses.values()), shape.coeffs)
    translation, angles = gradient[:, -3:], gradient[:, -33:-30]
    if pose_weight:  # of a mean absolute difference of 33 numbers
        assert torch.allclose(translation.abs(), torch.full_like(translation, pose_weight / 33 / len(translation)))
    else:
        assert (translation == 0).all()
    assert (angles != 0).any()


def test_two_steps_are_adams_with_the_options_rates_and_betas(batch):
    model = joint_stage(schedule="cosine", warmup_iter=4)
    model.feed_data(batch)
    places = {"optim_g": "network_g", "optim_d": "network_d", "optim_shape": "network_shape"}
    # One tensor of each, with its gradients; the rate is in its warm-up, at 1/4 and 2/4.
    tensors = {name: next(model.networks[network].parameters()) for name, network in places.items()}
    states = {name: [tensor.detach().clone()] for name, tensor in tensors.items()}
    gradients = {name: [] for name in tensors}
    for step in range(2):
        model.set_learning_rate(step)
        model.optimize_parameters(step)
        for name, tensor in tensors.items():
            gradients[name].append(tensor.grad.clone())
            states[name].append(tensor.detach().clone())
    for name, (start, after_one, after_two) in states.items():
        assert all(gradient.abs().max() > 1e-4 for gradient in gradients[name])
        first = oracle.adam(start, gradients[name][:1], RATES[name] / 4, BETAS[name])
        np.testing.assert_allclose(after_one - start, first - start.double().numpy(), rtol=2e-3, atol=1e-7)
        # The rate doubles, so the second move is twice what Adam would make of it at the first step's rate.
        both = oracle.adam(start, gradients[name], RATES[name] / 4, BETAS[name])
        rise = model.optimizers[name].param_groups[0]["lr"] / (RATES[name] / 4)
        np.testing.assert_allclose(after_two - after_one, rise * (both - first), rtol=2e-3, atol=1e-7)
        assert rise == pytest.approx(2, rel=0.01)


def test_validation_scores_the_averaged_generator(batch):
    """Input and output against the truth, and the frozen regressor's landmarks against the known ones."""
    model = joint_stage()  # whose generator has left its average, so that it matters which of the two is asked
    model.feed_data(batch)
    with torch.no_grad():
        shape = model.prior(batch["lq"], batch["points5"])
        output = model.ema["network_g"](batch["lq"], shape.render, shape.coeffs).clamp(-1, 1)
        landmarks = {
            name: model.frozen_prior(picture, batch["points5"]).landmarks.double().numpy()
            for name, picture in (("input", batch["lq"]), ("output", output))
        }
    values, _ = model.validate_batch()
    truth = batch["landmarks68"].double().numpy()
    for name, picture in (("input", batch["lq"]), ("output", output)):
        wanted = [scores.psnr(*pair) for pair in zip(to_images(picture), to_images(batch["hq"]), strict=True)]
        assert values[f"psnr_{name}"] == pytest.approx(wanted, rel=1e-4)
        error = scores.landmark_error(landmarks[name], truth)
        assert values[f"landmark_error_{name}"] == pytest.approx(error, rel=1e-3, nan_ok=True)
        assert np.isfinite(error).tolist() == [True, False]


SHAPE_WEIGHTS = {"landmark": 0.1, "photometric": 2.0, "prior": 1.0, "mesh": 10.0, "pose": 10.0}


@pytest.mark.parametrize("changed", [{}, {"landmark": 0.5, "photometric": 3.0, "prior": 7.0, "mesh": 2.0, "pose": 4.0}])
def test_the_shape_stage_minimises_its_weighted_losses(batch, monkeypatch, changed):
    """Photos shown degraded and judged clean, and renderings judged by the coefficients they were made of."""
    options = {"point_jitter": 0, "degraded_fraction": 1, "synthetic_fraction": 1, "weights": changed}
    model = stage(ShapeModel, optim_shape={"type": "Adam", "lr": 1e-4}, **options)
    model.feed_data(batch)
    made = model.sample_coefficients(2)
    monkeypatch.setattr(model, "sample_coefficients", lambda count: made[:count])
    weights = {**SHAPE_WEIGHTS, **changed}
    losses = recorded_losses(model, monkeypatch)
    parts = {**photo_parts(model, batch), **rendering_parts(model, batch, made)}
    model.optimize_parameters(0)
    assert {key: model.log[f"l_{key}"] for key in parts} == {key: pytest.approx(parts[key], rel=1e-3) for key in parts}
    assert losses == {"optim_shape": pytest.approx(sum(weights[key] * parts[key] for key in parts), rel=1e-3)}


@torch.no_grad()
def photo_parts(model, batch):
    prior = model.prior
    prior.regressor.train()
    shape = prior(batch["lq"], batch["points5"])
    render, mask = prior.render224(shape.mesh)
    photo = warp_affine((batch["hq"] + 1) / 2, shape.transform, 224)
    truth = torch.stack([p @ m[:, :2].T + m[:, 2] for p, m in zip(batch["landmarks68"], shape.transform, strict=True)])
    coeffs = shape.coeffs
    identity, expression, texture, lighting = (
        coeffs[:, start : start + width]
        for start, width in zip((0, DIMS[0], sum(DIMS[:2]), sum(DIMS) + 3), (*DIMS, 27), strict=True)
    )
    return {
        "landmark": oracle.landmark_2d(prior.landmarks224(shape.mesh), truth, LANDMARK_WEIGHTS),
        "photometric": oracle.photometric(render, photo, mask * face_region(truth, 224)),
        "prior": oracle.coefficient_prior(identity, expression, texture, lighting),
    }


@torch.no_grad()
def rendering_parts(model, batch, made):
    prior = model.prior
    target = prior.mesh(made)
    render, mask = prior.render224(target)
    transform = prior(batch["hq"], batch["points5"]).transform
    # A rendering stands before the other photo.
    background = warp_affine((batch["hq"] + 1) / 2, transform, 224)[[1, 0]]
    coeffs = prior.regressor(render * mask + background * (1 - mask))
    found = prior.mesh(coeffs)
    start = sum(DIMS)
    return {
        "mesh": oracle.mean_distance(found.shape, target.shape) + oracle.mean_distance(found.colors, target.colors),
        "pose": oracle.l1(coeffs[:, start:], made[:, start:]),
    }


def test_sampled_coefficients_are_normal_with_the_stated_deviations_in_the_regressors_order():
    """Identity, expression, texture, angles, lighting (its constant band moves all colours together), translation."""
    model = stage(ShapeModel, optim_shape={"type": "Adam"})
    made = model.sample_coefficients(4000).double()
    identity, expression, texture, angles, lighting, translation = made.split([*DIMS, 3, 27, 3], dim=1)
    assert made.mean(dim=0).abs().max() < 0.08
    assert identity.std().item() == pytest.approx(1, rel=0.01) and texture.std().item() == pytest.approx(1, rel=0.01)
    # A uniform factor of 0..1 on each face's expression: E u^2 = 1/3.
    assert expression.std().item() == pytest.approx(3**-0.5, rel=0.03)
    assert angles.std(dim=0).tolist() == pytest.approx([0.2, 0.35, 0.12], rel=0.05)
    assert translation.std(dim=0).tolist() == pytest.approx([0.05, 0.05, 0.3], rel=0.05)
    constant, rest = lighting.unflatten(1, (3, 9)).split([1, 8], dim=2)
    assert rest.std().item() == pytest.approx(0.12, rel=0.02)
    assert constant.std(dim=0).flatten().tolist() == pytest.approx([(0.12**2 + 0.15**2) ** 0.5] * 3, rel=0.05)
    common = np.corrcoef(constant[:, 0, 0], constant[:, 1, 0])[0, 1]
    assert common == pytest.approx(0.15**2 / (0.12**2 + 0.15**2), abs=0.05)


# -- The region of the face -------------------------------------------------------------------------------------------


def drawn_face():
    return torch.from_numpy(drawn_points()).float()


class TestFaceRegion:
    def test_covers_the_face_and_part_of_the_forehead_only(self):
        mask = face_region(drawn_face()[None], 100)
        assert mask.shape == (1, 1, 100, 100) and set(mask.unique().tolist()) == {0.0, 1.0}
        for x, y in [(50, 60), (50, 80), (30, 52), (50, 32)]:  # nose, chin, cheek, forehead
            assert mask[0, 0, y, x] == 1, (x, y)
        for x, y in [(50, 90), (10, 50), (50, 20), (25, 85), (0, 0)]:  # neck, ear, hair, shoulder, corner
            assert mask[0, 0, y, x] == 0, (x, y)

    def test_every_landmark_lies_in_it(self):
        points = drawn_face()
        mask = face_region(points[None], 100)[0, 0]
        assert all(mask[y, x] == 1 for x, y in points.round().long().tolist())

    def test_unknown_faces_have_none(self):
        points = torch.stack([drawn_face(), torch.full((68, 2), torch.nan)])
        mask = face_region(points, 100)
        assert mask[0].sum() > 1000 and mask[1].sum() == 0

    def test_a_face_beyond_the_picture_is_cut_off(self):
        mask = face_region(drawn_face()[None] + torch.tensor([60.0, 0.0]), 100)
        assert mask[0, 0, 60, 95] == 1 and mask[0, 0, :, :70].sum() == 0


# -- Grids ------------------------------------------------------------------------------------------------------------


def component_points(corners, sides):
    """68 landmarks (1, 68, 2) float64 whose windows are squares of pixels, with these corners (x, y) and sides."""
    points = torch.full((1, 68, 2), 1.0, dtype=torch.float64)
    for (part, margin), corner, side in zip(COMPONENTS, corners, sides, strict=True):
        first, end = part.start, part.stop
        middle = torch.tensor(corner, dtype=torch.float64) + side / 2 - 0.5
        points[0, part] = middle
        extent = side / margin * (1 - 1e-9)  # rounded up, a pixel would be sampled twice
        axis = 1 if first == 42 else 0  # the second eye is taller than wide
        points[0, first, axis] -= extent / 2
        points[0, first + 1 : end, axis] += extent / 2
    return points


class TestFacialComponentLoss:
    CORNERS, SIDES = ((3, 10), (30, 4), (20, 40)), (16, 32, 16)
    POINTS = component_points(CORNERS, SIDES)

    def test_is_the_difference_of_three_windows_and_of_their_averages(self):
        """Windows of 16 pixels are themselves at size 16, one of 32 is averaged down; squares are of 4 x 4."""
        pred, target = random(1, 3, 64, 64), random(1, 3, 64, 64, seed=1)
        windows = []
        for picture in (pred, target):
            cut = [picture[:, :, y : y + n, x : x + n] for (x, y), n in zip(self.CORNERS, self.SIDES, strict=True)]
            windows.append(np.concatenate([oracle.block_means(part, part.shape[2] // 16) for part in cut]))
        wanted = oracle.l1(*windows) + oracle.l1(*(oracle.block_means(part, 4) for part in windows))
        loss = FacialComponentLoss(2.0, size=16, square=4)
        assert loss(pred, target, self.POINTS).item() == pytest.approx(2 * wanted, rel=1e-6)

    def test_only_the_windows_of_faces_with_landmarks_learn(self):
        target = random(2, 3, 64, 64)
        pred = (target + 0.5).requires_grad_()
        points = torch.cat([torch.full_like(self.POINTS, torch.nan), self.POINTS])
        loss = FacialComponentLoss(size=16, square=4)(pred, target, points)
        alone = FacialComponentLoss(size=16, square=4)(pred[1:], target[1:], self.POINTS)
        assert loss.item() == pytest.approx(alone.item())
        loss.backward()
        inside = torch.zeros(64, 64, dtype=torch.bool)
        for (x, y), side in zip(self.CORNERS, self.SIDES, strict=True):
            inside[y : y + side, x : x + side] = True
        assert pred.grad[0].abs().max() == 0
        assert torch.equal((pred.grad[1].abs() > 1e-6).any(0), inside)

    def test_a_window_is_a_whole_number_of_squares(self):
        with pytest.raises(ValueError, match="size: is 10, which is no multiple of square, 8"):
            FacialComponentLoss(size=10, square=8)

    def test_a_batch_without_landmarks_costs_nothing_and_has_a_gradient(self):
        pred = random(1, 3, 64, 64).requires_grad_()
        loss = FacialComponentLoss()(pred, random(1, 3, 64, 64, seed=1), torch.full((1, 68, 2), torch.nan))
        loss.backward()
        assert loss.item() == 0 and pred.grad.abs().max() == 0

    def test_an_iris_of_another_colour_counts_more_than_texture_as_strong(self):
        target = random(1, 3, 64, 64)
        loss = FacialComponentLoss(size=16, square=4)
        noise = torch.randint(0, 2, target.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        assert loss(target + 0.1, target, self.POINTS) > 1.5 * loss(target + 0.1 * noise, target, self.POINTS)

    def test_the_joint_stage_gives_it_the_batchs_landmarks(self, batch):
        model = joint_stage(losses={"components": {"type": "FacialComponentLoss", "loss_weight": 3.0}})
        model.feed_data(batch)
        seen = []
        model.image_losses["components"].register_forward_hook(
            lambda _, given, named, value: seen.append((named, value)), with_kwargs=True
        )
        model.optimize_parameters(0)
        named, value = seen[0]
        assert list(named) == ["landmarks68"] and named["landmarks68"] is model.batch["landmarks68"]
        assert model.log["l_components"] == pytest.approx(value.item())

    def test_an_entry_that_the_batch_lacks_is_named(self, batch):
        model = joint_stage(losses={"components": {"type": "FacialComponentLoss"}})
        model.image_losses["components"].inputs = ("landmarks68", "hair")
        model.feed_data(batch)
        with pytest.raises(
            OptionError, match=r"train\.losses\.components: FacialComponentLoss needs hair, which .* lq"
        ):
            model.optimize_parameters(0)


class TestGridLoss:
    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 5), st.integers(0, 1000))
    def test_equals_a_loop_over_windows_and_phases(self, period, window, more, seed):
        side = period * (window + more)
        pred, target = random(2, 3, side, side, seed=seed), random(2, 3, side, side, seed=seed + 1)
        found = GridLoss(0.5, period, window)(pred, target)
        assert found.item() == pytest.approx(0.5 * oracle.grid_loss(pred.numpy(), target.numpy(), period, window))

    def test_a_grid_counts_by_its_height(self):
        """Columns lighter and darker by turns, by 0.1: that far each phase is from their mean."""
        target = random(1, 3, 32, 32)
        grid = torch.tensor([0.1, -0.1]).repeat(16).double()
        assert GridLoss()(target + grid, target).item() == pytest.approx(0.1)
        assert GridLoss()(target + grid.view(-1, 1), target).item() == pytest.approx(0.1)

    def test_another_light_and_texture_hardly_count(self):
        target = random(1, 3, 64, 64)
        assert GridLoss()(target + 0.3, target).item() == pytest.approx(0, abs=1e-12)
        noise = 0.1 * random(1, 3, 64, 64, seed=1)
        assert GridLoss()(target + noise, target) < 0.02  # 0.1 over the root of 64 squares

    def test_its_gradient_takes_the_grid_away(self):
        target = random(1, 1, 32, 32)
        offset = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        GridLoss(2.0)(target + offset * torch.tensor([1.0, -1.0]).repeat(16).double(), target).backward()
        assert offset.grad.item() == pytest.approx(2)
