"""ShapeAdaptModel, the paper's first stage: a trained regressor learns to see in a degraded photo what it saw in the good one."""

import copy

import torch
from torch import Tensor, nn

from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.ranges import Amount, Fraction
from sgpn_arch.registry import MODEL_REGISTRY
from sgpn_model.train.losses import landmark_error, mesh_loss, pose_loss
from sgpn_model.train.optimizers import Optimizer
from sgpn_model.train.training_model import PRETRAINED, TrainingModel, TrainOptions

MILLIMETRES = 100.0  # in a decimetre


class ShapeAdaptOptions(TrainOptions):
    """``train`` of ShapeAdaptModel."""

    optim_shape: Optimizer
    """The optimiser."""
    mesh_weight: Amount = 100.0
    """Weight of L_mesh."""
    pose_weight: Amount = 100.0
    """Weight of the mean absolute difference of angles, lighting and translation (a choice of ours): L_mesh looks at the shape
    before the head's pose, and nothing else would hold the pose in its place."""
    degraded_fraction: Fraction = 1.0
    """Part of the photos that are degraded; the others are shown clean."""
    point_jitter: Amount = 0.01
    """Deviation of the five points that cut out the face, as a part of its width; both regressors see the same cut-out."""


@MODEL_REGISTRY.register()
class ShapeAdaptModel(TrainingModel):
    """L = 100 L_mesh: shape and colours seen in I_lq against those that the frozen regressor sees in I_hq (SGPN, 3.3).

    The regressor starts from ``path.pretrain_network_shape``. Its batch statistics stay as they are, as in the joint
    stage (a choice of ours).
    """

    prior: ShapePrior
    NETWORKS = ("network_shape",)
    OPTIONS = ShapeAdaptOptions

    def build(self) -> None:
        """The regressor, its frozen copy, its average, and one optimiser."""
        pretrained = self.file.path.pretrain_network_shape
        if not pretrained:
            raise OptionError(
                "path.pretrain_network_shape: this option is missing; the regressor to adapt comes from a stage before, "
                "such as options/train/shape_open.yml, or from sgpn weights convert"
            )
        network = self.network("network_shape", pretrained).eval()
        self.networks["network_shape"] = network
        self.prior = self.shape_prior(network)
        self.average("network_shape")
        self.average_prior = self.with_regressor(self.ema["network_shape"])
        frozen = copy.deepcopy(network)
        self.load_unadapted(frozen, pretrained)  # of a regressor adapted before, the judge stays the first one
        self.frozen_prior = self.with_regressor(frozen)
        self.optimizer("optim_shape", network.parameters(), self.train_opt.optim_shape)

    def release(self) -> dict[str, nn.Module]:
        """The adapted regressor (averaged), and the one that it was adapted from, which judges in the joint stage."""
        return {**super().release(), f"network_shape{PRETRAINED}": self.frozen_prior.regressor}

    def optimize_parameters(self, step: int) -> None:
        """One step on the photos of the batch."""
        hq, lq, points5 = (self.batch[key] for key in ("hq", "lq", "points5"))
        jitter = self.train_opt.point_jitter * hq.shape[-1]
        transform = self.prior.transform(points5 + jitter * torch.randn_like(points5), hq.shape[-1])
        degraded = torch.rand(len(hq), 1, 1, 1, device=self.device) < self.train_opt.degraded_fraction
        with torch.no_grad():
            wanted, wanted_mesh = self.see(self.frozen_prior, hq, transform)
        found, found_mesh = self.see(self.prior, torch.where(degraded, lq, hq), transform)
        parts = {
            "mesh": self.train_opt.mesh_weight * mesh_loss(found_mesh, wanted_mesh),
            "pose": self.train_opt.pose_weight * pose_loss(found, wanted),
        }
        self.log = {f"l_{name}": value.item() for name, value in parts.items()}
        self.step_optimizer("optim_shape", sum(parts.values()))
        self.update_average(step)

    @torch.no_grad()
    def validate_batch(self) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
        """What adapting changed on the degraded faces, and how they look.

        ``shape_error_*`` is the mean distance in mm of the vertices from those that the frozen regressor sees in the good
        photo. It and the landmark error are of the frozen regressor and of the adapted one.
        """
        hq, lq, points5 = (self.batch[key] for key in ("hq", "lq", "points5"))
        target = self.frozen_prior(hq, points5)
        values, pictures = {}, {"degraded photo": lq}
        for name, prior in (("frozen", self.frozen_prior), ("adapted", self.average_prior)):
            result = prior(lq, points5)
            distance = (result.mesh.shape - target.mesh.shape).norm(dim=2).mean(dim=1)
            values[f"shape_error_{name}"] = (distance * MILLIMETRES).tolist()
            values[f"landmark_error_{name}"] = landmark_error(result.landmarks, self.batch["landmarks68"]).tolist()
            pictures[f"its rendering, {name}"] = result.render
        return values, {**pictures, "rendering of the good photo, frozen": target.render, "good photo": hq}
