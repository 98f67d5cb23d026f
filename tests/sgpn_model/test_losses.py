"""The losses against their formulas, written out in float64 NumPy with plain loops, and where their gradients go."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sgpn_arch.face3d.shape_prior import Mesh
from sgpn_arch.registry import LOSS_REGISTRY
from sgpn_model.losses import (
    MobileNetPerceptualLoss,
    coefficient_prior,
    landmark_loss_2d,
    landmark_loss_3d,
    mesh_loss,
    nonsaturating_loss,
    photometric_loss,
    r1_penalty,
)
from sgpn_model.shape_model import LANDMARK_WEIGHTS, face_region


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def distances(a, b):
    """Euclidean distances along the last axis, as a flat list of Python floats."""
    pairs = zip(a.double().reshape(-1, a.shape[-1]).tolist(), b.double().reshape(-1, a.shape[-1]).tolist(), strict=True)
    return [math.dist(p, q) for p, q in pairs]


# -- Adversarial ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_nonsaturating_loss_is_the_logistic_cross_entropy(logits):
    tensor = torch.tensor(logits).view(-1, 1)
    real = sum(-math.log(1 / (1 + math.exp(-x))) if x > -700 else -x for x in logits) / len(logits)
    fake = sum(math.log1p(math.exp(x)) for x in logits) / len(logits)
    assert nonsaturating_loss(tensor, real=True).item() == pytest.approx(real, rel=1e-5, abs=1e-6)
    assert nonsaturating_loss(tensor, real=False).item() == pytest.approx(fake, rel=1e-5, abs=1e-6)


def test_nonsaturating_loss_stays_finite_and_keeps_its_gradient_where_the_discriminator_is_sure():
    logits = torch.tensor([[-1e4]], requires_grad=True)
    loss = nonsaturating_loss(logits, real=True)
    loss.backward()
    assert loss.item() == pytest.approx(1e4) and logits.grad.item() == pytest.approx(-1)


class TestR1:
    def test_of_a_linear_discriminator_is_its_squared_norm(self):
        direction = random(3, 4, 5)
        images = random(2, 3, 4, 5, seed=1).requires_grad_(True)
        penalty = r1_penalty((images * direction).sum(dim=(1, 2, 3)).view(-1, 1), images)
        assert penalty.item() == pytest.approx(sum(x * x for x in direction.flatten().tolist()), rel=1e-5)

    def test_trains_the_discriminator(self):
        """D(x) = a |x|^2 / 2 has the gradient a x, so R1 = a^2 E|x|^2 and dR1/da = 2 a E|x|^2."""
        scale = torch.tensor(1.5, requires_grad=True)
        images = random(4, 3, 2, 2).requires_grad_(True)
        energy = images.detach().double().square().sum().item() / 4
        penalty = r1_penalty((scale * images.square() / 2).sum(dim=(1, 2, 3)), images)
        penalty.backward()
        assert penalty.item() == pytest.approx(1.5**2 * energy, rel=1e-5)
        assert scale.grad.item() == pytest.approx(2 * 1.5 * energy, rel=1e-5)

    def test_second_order_gradients_reach_every_layer(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, 1))
        images = random(2, 3, 4, 4).requires_grad_(True)
        r1_penalty(net(images), images).backward()
        assert all(net[i].weight.grad.abs().sum() > 0 for i in (0, 3))


# -- Shape ------------------------------------------------------------------------------------------------------------


def mesh(seed):
    shape, colors = random(2, 7, 3, seed=seed), random(2, 7, 3, seed=seed + 100)
    nothing = torch.full((2, 7, 3), torch.nan)
    return Mesh(shape, nothing, nothing, colors, nothing[..., :2], nothing[..., 0])


def test_mesh_loss_compares_unposed_shapes_and_lit_colours():
    a, b = mesh(0), mesh(1)
    wanted = np.mean(distances(a.shape, b.shape)) + np.mean(distances(a.colors, b.colors))
    assert mesh_loss(a, b).item() == pytest.approx(wanted, rel=1e-5)
    assert mesh_loss(a, a).item() == 0


def test_mesh_loss_of_equal_meshes_has_a_finite_gradient():
    a = mesh(0)
    a.shape.requires_grad_(True)
    mesh_loss(a, mesh(0)).backward()
    assert torch.isfinite(a.shape.grad).all()


def test_landmark_loss_3d():
    a, b = random(2, 68, 3), random(2, 68, 3, seed=1)
    wanted = np.mean([distance**2 for distance in distances(a, b)])
    assert landmark_loss_3d(a, b).item() == pytest.approx(wanted, rel=1e-5)
    assert landmark_loss_3d(a, a).item() == 0


class TestLandmarkLoss2D:
    def test_weights_points_and_leaves_unknown_faces_out(self):
        points, target = random(3, 68, 2), random(3, 68, 2, seed=1)
        target[1] = torch.nan
        weights = LANDMARK_WEIGHTS.tolist()
        total = 0.0
        for face in (0, 2):
            total += sum(w * d for w, d in zip(weights, distances(points[face], target[face]), strict=True))
        loss = landmark_loss_2d(points, target, LANDMARK_WEIGHTS)
        assert loss.item() == pytest.approx(total / (2 * sum(weights)), rel=1e-5)

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
    def test_against_a_loop_over_the_mask(self):
        render, image = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
        mask = (random(2, 1, 4, 5, seed=2) > 0).float()
        total = sum(
            math.dist(render[n, :, y, x].tolist(), image[n, :, y, x].tolist()) for n, _, y, x in mask.nonzero().tolist()
        )
        assert photometric_loss(render, image, mask).item() == pytest.approx(total / mask.sum().item(), rel=1e-4)

    def test_nothing_outside_the_mask_counts(self):
        render, image = random(1, 3, 6, 6).requires_grad_(True), random(1, 3, 6, 6, seed=1)
        mask = torch.zeros(1, 1, 6, 6)
        mask[..., :3] = 1
        loss = photometric_loss(render, image, mask)
        loss.backward()
        assert (render.grad[..., 3:] == 0).all() and (render.grad[..., :3] != 0).any()
        other = torch.where(mask > 0, image, torch.full_like(image, 9))
        assert photometric_loss(render, other, mask).item() == loss.item()

    def test_an_empty_mask_gives_zero(self):
        render = random(1, 3, 200, 200).requires_grad_(True)
        loss = photometric_loss(render, random(1, 3, 200, 200, seed=1), torch.zeros(1, 1, 200, 200))
        loss.backward()
        assert loss.item() == 0 and (render.grad == 0).all()

    def test_equal_pictures_have_a_finite_gradient(self):
        render = random(1, 3, 4, 4).requires_grad_(True)
        photometric_loss(render, render.detach().clone(), torch.ones(1, 1, 4, 4)).backward()
        assert torch.isfinite(render.grad).all()


def test_coefficient_prior():
    identity, expression, texture, lighting = (random(3, n, seed=n) for n in (8, 6, 4, 27))
    gaussian = 0.0
    for weight, part in ((1.0, identity), (0.8, expression), (0.017, texture)):
        gaussian += weight * np.mean([sum(x * x for x in row) for row in part.double().tolist()])
    colours = lighting.double().numpy().reshape(3, 3, 9)
    white = np.mean([(colours[n, c, b] - colours[n, :, b].mean()) ** 2 for n, c, b in np.ndindex(3, 3, 9)])
    wanted = 3e-4 * gaussian + white
    assert coefficient_prior(identity, expression, texture, lighting).item() == pytest.approx(wanted, rel=1e-5)


def test_white_light_and_the_mean_face_cost_nothing():
    lighting = random(2, 9).repeat(1, 3)
    zeros = [torch.zeros(2, n) for n in (8, 6, 4)]
    assert coefficient_prior(*zeros, lighting).item() == pytest.approx(0, abs=1e-12)


# -- Perceptual -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loss():
    return MobileNetPerceptualLoss(loss_weight=2.0, size=64)


@pytest.fixture(scope="module")
def photo(astronaut):
    face = np.ascontiguousarray(astronaut[30:190, 140:300, ::-1])
    return torch.from_numpy(cv2.resize(face, (64, 64), interpolation=cv2.INTER_AREA)).permute(2, 0, 1)[None] / 127.5 - 1


class TestPerceptual:
    def test_is_registered(self):
        assert LOSS_REGISTRY.get("MobileNetPerceptualLoss") is MobileNetPerceptualLoss

    def test_zero_on_equal_pictures_and_positive_otherwise(self, loss, photo):
        assert loss(photo, photo).item() == pytest.approx(0, abs=1e-5)
        assert loss(photo.flip(3), photo).item() > 0.01

    def test_is_the_mean_of_the_stages_l1(self, loss, photo):
        pairs = zip(loss.features(photo.flip(3)), loss.features(photo), strict=True)
        wanted = 2.0 * np.mean([np.abs(a.double().numpy() - b.double().numpy()).mean() for a, b in pairs])
        assert loss(photo.flip(3), photo).item() == pytest.approx(wanted, rel=1e-5)

    def test_the_output_learns_and_the_features_do_not(self, loss, photo):
        output, truth = photo.flip(3).requires_grad_(True), photo.clone().requires_grad_(True)
        loss(output, truth).backward()
        assert torch.isfinite(output.grad).all() and (output.grad != 0).any()
        assert truth.grad is None
        assert not any(parameter.requires_grad for parameter in loss.parameters())

    def test_larger_pictures_are_averaged_down(self, loss, photo):
        twice = photo.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        assert loss(twice.flip(3), twice).item() == pytest.approx(loss(photo.flip(3), photo).item(), rel=1e-4)


# -- The region of the face -------------------------------------------------------------------------------------------


def drawn_face(size=100):
    """68 points: the jaw on a half ellipse, everything else on rows inside it."""
    points = np.zeros((68, 2))
    angle = np.linspace(np.pi, 0, 17)
    points[:17] = np.stack([50 + 30 * np.cos(angle), 50 + 35 * np.sin(angle)], axis=1)
    points[17:27] = np.stack([np.linspace(28, 72, 10), np.full(10, 40)], axis=1)
    points[27:36] = np.stack([np.full(9, 50), np.linspace(45, 65, 9)], axis=1)
    points[36:48] = np.stack([np.linspace(32, 68, 12), np.full(12, 47)], axis=1)
    points[48:] = np.stack([np.linspace(40, 60, 20), np.full(20, 74)], axis=1)
    return torch.from_numpy(points * size / 100).float()


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
