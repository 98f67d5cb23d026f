"""ShapeModel, the stage that trains the coefficient regressor: on renderings with known coefficients, then on photos."""

import numpy as np
import torch
from torch import Tensor, nn

from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.crop224 import warp_affine
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.ranges import Amount, Fraction, Whole
from sgpn_arch.registry import MODEL_REGISTRY
from sgpn_arch.schema import Options
from sgpn_data.masks import hull_mask
from sgpn_model.train.losses import (
    coefficient_prior,
    landmark_error,
    landmark_loss_2d,
    mesh_loss,
    photometric_loss,
    pose_loss,
)
from sgpn_model.train.optimizers import Optimizer
from sgpn_model.train.training_model import TrainingModel, TrainOptions
from sgpn_model.weights.checkpoint import read_pickle

# The jaw of a turned head is not where the mesh's fixed vertices are, so it counts less; eyes and mouth count more.
LANDMARK_WEIGHTS = torch.cat([torch.full((17,), 0.4), torch.ones(19), torch.full((12,), 1.5), torch.full((20,), 1.3)])


def face_region(landmarks: Tensor, size: int) -> Tensor:
    """The face without hair, ears and neck: hull of 68 landmarks (N, 68, 2), brows raised over part of the forehead.

    Returns (N, 1, size, size) in 0..1; all zero for faces whose landmarks are NaN.
    """
    masks = np.zeros((len(landmarks), 1, size, size), np.float32)
    for mask, points in zip(masks, landmarks.detach().cpu().numpy(), strict=True):
        if not np.isfinite(points).all():
            continue
        rise = 0.6 * (points[17:27].mean(0) - points[27:36].mean(0))
        outline = np.concatenate([points, points[17:27] + rise])
        mask[0] = hull_mask(outline, (size, size))
    return torch.from_numpy(masks).to(landmarks.device)


class ShapeWeights(Options):
    """``train.weights``: of the losses (choices of ours)."""

    landmark: Amount = 0.1
    """Weight of the 68 points in the photo."""
    photometric: Amount = 2.0
    """Weight of the rendering's colours against the photo's."""
    prior: Amount = 1.0
    """Weight of what keeps coefficients plausible."""
    mesh: Amount = 10.0
    """Weight of L_mesh, on renderings with known coefficients."""
    pose: Amount = 10.0
    """Weight of angles, lighting and translation, on renderings."""


class ShapeOptions(TrainOptions):
    """``train`` of ShapeModel."""

    optim_shape: Optimizer
    """The optimiser."""
    weights: ShapeWeights = ShapeWeights()
    """Weights of the losses."""
    synthetic_iter: Whole = 0
    """Steps at the beginning that use only renderings with known coefficients, over photos as background."""
    synthetic_fraction: Fraction = 0.25
    """After that, renderings added to the photos, as a part of the batch; more would run out of backgrounds."""
    degraded_fraction: Fraction = 0.5
    """Part of the photos that are degraded; the others are shown clean."""
    point_jitter: Amount = 0.01
    """Deviation of the five points that cut out the face, as a part of its width."""
    fresh_texture: bool = False
    """Let the texture's coefficients start at zero, for a regressor that continues with another texture basis
    (scripts/learn_texture_basis.py)."""


@MODEL_REGISTRY.register()
class ShapeModel(TrainingModel):
    """Trains D3DFR for a morphable model.

    The losses always compare with the clean photo and its landmarks, whether it is shown clean or degraded.
    """

    prior: ShapePrior
    NETWORKS = ("network_shape",)
    OPTIONS = ShapeOptions

    def build(self) -> None:
        """One regressor, its prior and one optimiser."""
        path = self.file.path
        self.networks["network_shape"] = self.network("network_shape", path.pretrain_network_shape)
        if path.pretrain_backbone:
            state = read_pickle(path.pretrain_backbone)
            try:
                self.networks["network_shape"].load_backbone(state)
            except ValueError as error:
                raise OptionError(f"path.pretrain_backbone: {error}") from error
        if self.train_opt.fresh_texture:
            texture = self.networks["network_shape"].final_layers[2]
            nn.init.zeros_(texture.weight)
            nn.init.zeros_(texture.bias)
        self.prior = self.shape_prior(self.networks["network_shape"])
        self.average("network_shape")
        self.optimizer("optim_shape", self.networks["network_shape"].parameters(), self.train_opt.optim_shape)
        self.weights = dict(self.train_opt.weights)
        self.landmark_weights = LANDMARK_WEIGHTS.to(self.device)

    def optimize_parameters(self, step: int) -> None:
        """One step on photos, on renderings, or on both."""
        self.networks["network_shape"].train()
        self.log = {}
        synthetic_only = step < self.train_opt.synthetic_iter
        loss = torch.zeros((), device=self.device)
        if not synthetic_only:
            loss = loss + self._photo_loss()
        count = len(self.batch["hq"])
        extra = count if synthetic_only else round(count * self.train_opt.synthetic_fraction)
        if extra:
            loss = loss + self._synthetic_loss(extra)
        self.step_optimizer("optim_shape", loss)
        self.update_average(step)

    def _photo_loss(self) -> Tensor:
        hq, lq = self.batch["hq"], self.batch["lq"]
        count = len(hq)
        points5 = self.batch["points5"]
        jitter = self.train_opt.point_jitter * hq.shape[-1]
        transform = self.prior.transform(points5 + jitter * torch.randn_like(points5), hq.shape[-1])
        degraded = torch.rand(count, 1, 1, 1, device=self.device) < self.train_opt.degraded_fraction
        with self.autocast():
            coeffs = self.prior.coefficients(torch.where(degraded, lq, hq), transform)
        coeffs = coeffs.float()
        mesh = self.prior.mesh(coeffs)
        render, mask = self.prior.render224(mesh)
        size = render.shape[-1]
        photo = warp_affine((hq + 1) / 2, transform, size)
        truth = self.batch["landmarks68"] @ transform[:, :, :2].transpose(1, 2) + transform[:, :, 2].unsqueeze(1)
        identity, expression, texture, _, lighting, _ = self.prior.split(coeffs)
        parts = {
            "landmark": landmark_loss_2d(self.prior.landmarks224(mesh), truth, self.landmark_weights),
            "photometric": photometric_loss(render, photo, mask * face_region(truth, size)),
            "prior": coefficient_prior(identity, expression, texture, lighting),
        }
        return self._total(parts)

    def _synthetic_loss(self, count: int) -> Tensor:
        target_coeffs = self.sample_coefficients(count)
        with torch.no_grad():
            target = self.prior.mesh(target_coeffs)
            render, mask = self.prior.render224(target)
            background = warp_affine(
                (self.batch["hq"][:count] + 1) / 2,
                self.prior.transform(self.batch["points5"][:count], self.batch["hq"].shape[-1]),
                render.shape[-1],
            ).flip(0)
            image = torch.where(mask > 0, render, background)
        with self.autocast():
            coeffs = self.networks["network_shape"](image)
        coeffs = coeffs.float()
        mesh = self.prior.mesh(coeffs)
        return self._total({"mesh": mesh_loss(mesh, target), "pose": pose_loss(coeffs, target_coeffs)})

    def sample_coefficients(self, count: int) -> Tensor:
        """Random plausible coefficients (count, D); the deviations are choices of ours."""
        identity, expression, texture = self.prior.model.dims

        def normal(width: int, deviation: float | list[float]) -> Tensor:
            return torch.randn(count, width, device=self.device) * torch.tensor(deviation, device=self.device)

        # Most faces are calm, some are not.
        expressions = normal(expression, 1.0) * torch.rand(count, 1, device=self.device)
        lighting = normal(27, 0.12)
        lighting[:, ::9] += normal(1, 0.15)
        angles = normal(3, [0.2, 0.35, 0.12])
        translation = normal(3, [0.05, 0.05, 0.3])
        return torch.cat(
            [normal(identity, 1.0), expressions, normal(texture, 1.0), angles, lighting, translation], dim=1
        )

    def _total(self, parts: dict[str, Tensor]) -> Tensor:
        self.log.update({f"l_{name}": value.item() for name, value in parts.items()})
        return sum(self.weights[name] * value for name, value in parts.items())

    @torch.no_grad()
    def validate_batch(self) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
        """Landmark error in % of the inter-ocular distance, on clean and on degraded faces; and how they look."""
        regressor = self.prior.regressor
        self.prior.regressor = self.ema["network_shape"]
        values, pictures = {}, {}
        for name, told in (("hq", "clean"), ("lq", "degraded")):
            result = self.prior(self.batch[name], self.batch["points5"])
            values[f"landmark_error_{name}"] = landmark_error(result.landmarks, self.batch["landmarks68"]).tolist()
            photo = self.batch[name]
            pictures[f"{told} photo"] = photo
            pictures[f"its rendering ({told})"] = result.render
            pictures[f"both ({told})"] = torch.lerp(photo, result.render, 0.6 * result.mask)
        self.prior.regressor = regressor
        return values, pictures
