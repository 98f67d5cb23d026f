"""SGPNModel, the joint stage: generator, discriminator and regressor trained together on degraded faces."""

import copy
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sgpn_arch.by_name import build
from sgpn_arch.errors import OptionError, Problem
from sgpn_arch.face3d.shape_prior import Mesh, ShapePrior, ShapeResult
from sgpn_arch.fusion_arch import mask_pictures
from sgpn_arch.ranges import Amount, Count, Told, Whole
from sgpn_arch.registry import LOSS_REGISTRY, MODEL_REGISTRY
from sgpn_arch.schema import SWITCHABLE, Options
from sgpn_data.pasting import render_into_hole
from sgpn_model.config.registries import build_metric
from sgpn_model.config.sections import Loss
from sgpn_model.train.batches import asked_for
from sgpn_model.train.initialise import grow, initialise_from_prior, start_from_input
from sgpn_model.train.losses import (
    landmark_error,
    landmark_loss_3d,
    mesh_loss,
    nonsaturating_loss,
    pose_loss,
    r1_penalty,
)
from sgpn_model.train.optimizers import Optimizer
from sgpn_model.train.training_model import LOGGER, TrainingModel, TrainOptions
from sgpn_model.weights.checkpoint import CheckpointError


class GanOptions(Options):
    """``train.gan``: the adversarial loss, non-saturating, with lazy R1."""

    loss_weight: Amount = 1.0
    """Weight of L_adv."""
    r1_weight: Amount = 10.0
    """Weight of R1."""
    r1_every: Count = 16
    """Steps between evaluations of R1, which then counts as many times."""
    start_iter: Whole = 0
    """Steps that train without L_adv first, which spares half of a short run's time (a choice of ours)."""


class JointOptions(TrainOptions):
    """``train`` of SGPNModel."""

    losses: Annotated[
        dict[str, Loss], SWITCHABLE, Field(min_length=1), Told("a mapping such as {pixel: {type: L1Loss}}")
    ]
    """Name -> the image losses that make up L_rec; each takes (output, truth), and by keyword what its ``inputs`` name."""
    gan: GanOptions | None = GanOptions()
    """The adversarial loss; ~ leaves it out."""
    landmark_weight: Amount = 100.0
    """Weight of L_3dlm: the frozen regressor compares the output's 68 3D landmarks with the truth's."""
    landmark_frame: Literal["shape", "posed"] = "shape"
    """Landmarks as identity and expression place them, before the head's pose, or after it. The paper does not say; at its
    weight, the posed ones' gradient, most of it from the barely visible distance of the head, is some fifty times the
    perceptual loss's and wrecks the picture."""
    landmark_start_iter: Whole = 0
    """Steps before L_3dlm counts: landmarks of an output that is not a face yet mean little."""
    landmark_every: Count = 1
    """Steps between evaluations of L_3dlm, which then counts as many times, as lazy R1 does."""
    mesh_weight: Amount = 100.0
    """Weight of L_mesh: the regressor on the degraded photo against the frozen one on the good photo."""
    pose_weight: Amount = 100.0
    """Weight of the mean absolute difference of these two in angles, lighting and translation (a choice of ours): L_mesh looks at
    the shape before the head's pose, and the place of the rendering depends on it."""
    train_shape: bool = True
    """Whether the regressor learns; otherwise it stays frozen, and L_mesh and the pose's loss are left out."""
    start_from_input: bool = False
    """The fresh generator's output is its input; see initialise.py."""
    optim_g: Optimizer
    """The generator's optimiser."""
    optim_d: Optimizer | None = None
    """The discriminator's."""
    optim_shape: Optimizer | None = None
    """The regressor's."""

    @model_validator(mode="after")
    def _whoever_learns_has_an_optimiser(self) -> "JointOptions":
        wanted = {"optim_d": self.gan is not None, "optim_shape": self.train_shape}
        missing = [name for name, learns in wanted.items() if learns and getattr(self, name) is None]
        if missing:
            text = "this section is missing; write for instance {type: Adam, lr: 2.0e-3}"
            raise OptionError(*(Problem(name, text) for name in missing))
        return self


@MODEL_REGISTRY.register()
class SGPNModel(TrainingModel):
    """L = L_rec + L_adv + 100 L_3dlm + 100 L_mesh (SGPN, section 3.3)."""

    prior: ShapePrior
    NETWORKS = ("network_g", "network_d", "network_shape")
    OPTIONS = JointOptions
    SHRINKS_PICTURES = True

    @classmethod
    def needed_networks(cls, train: JointOptions) -> tuple[str, ...]:
        """No discriminator where there is no adversarial loss."""
        return tuple(name for name in cls.NETWORKS if name != "network_d" or train.gan is not None)

    def build(self) -> None:
        """Generator, regressor and its frozen copy, and the discriminator where there is an adversarial loss."""
        path, train = self.file.path, self.train_opt
        shape = self.network("network_shape", path.pretrain_network_shape)
        self.networks["network_shape"] = shape
        self.networks["network_g"] = self.network("network_g", path.pretrain_network_g)
        if path.pretrain_prior:
            initialise_from_prior(self.networks["network_g"], path.pretrain_prior)
        try:
            if train.start_from_input:
                start_from_input(self.networks["network_g"])
            if path.grow_from:
                grow(self.networks["network_g"], path.grow_from)
        except CheckpointError:
            raise
        except ValueError as error:
            raise OptionError(f"{'path.grow_from' if path.grow_from else 'train.start_from_input'}: {error}") from error
        self.size = self.networks["network_g"].size
        self.prior = self.shape_prior(shape)
        self._check_coefficients()
        self.frozen_prior = self.with_regressor(self._frozen_regressor(shape))
        shape.requires_grad_(train.train_shape)
        # Batches of a generator are too small for batch statistics, so the regressor keeps its own.
        shape.eval()
        self.average("network_g")
        self.optimizer("optim_g", self.networks["network_g"].parameters(), train.optim_g)
        if train.train_shape:
            self.optimizer("optim_shape", shape.parameters(), train.optim_shape)
        self.image_losses = {
            name: build(opt, LOSS_REGISTRY, f"train.losses.{name}").to(self.device)
            for name, opt in train.losses.items()
        }
        self.gan = train.gan
        if self.gan is not None:
            self.networks["network_d"] = self.network("network_d", path.pretrain_network_d)
            self.optimizer("optim_d", self.networks["network_d"].parameters(), train.optim_d)
            self.networks["network_d"].requires_grad_(False)  # but in its own step
        self.metrics = {name: self._metric(name) for name in self.file.val.metrics}
        holes = getattr(self.file.datasets.train, "inpaint", None)
        self._draws_into_holes = holes is not None and holes.fill == "rendering"

    def _frozen_regressor(self, shape: nn.Module) -> nn.Module:
        """The regressor of L_3dlm and L_mesh: the paper's is the one from before stage 1, which adapted it to degraded faces."""
        frozen, path = copy.deepcopy(shape), self.file.path
        given = path.pretrain_network_shape
        if path.pretrain_frozen_shape:
            self.load(frozen, path.pretrain_frozen_shape, "network_shape")
        elif given and not self.load_unadapted(frozen, given):
            LOGGER.info(
                "L_3dlm and L_mesh are judged by the regressor of the weights %s as it is, for they hold no earlier one "
                "(path.pretrain_frozen_shape names another)",
                given,
            )
        return frozen

    def _metric(self, name: str) -> Callable:
        metric: Any = build_metric(name)
        smallest = getattr(metric, "min_size", 1)
        if smallest > self.size:
            raise OptionError(
                f"val.metrics: {name} needs pictures of at least {smallest} px, but network_g makes {self.size} px"
            )
        if hasattr(metric, "distance") or bool(getattr(metric, "inputs", ())):
            raise OptionError(f"val.metrics: {name} has no value for two pictures alone, which validation compares")
        return metric.to(self.device) if isinstance(metric, nn.Module) else metric

    def _check_coefficients(self) -> None:
        wanted, given = getattr(self.networks["network_g"], "coeff_dim", None), self.prior.coeff_dim
        if wanted not in (None, given):
            raise OptionError(f"network_g.coeff_dim: is {wanted}, but network_shape gives {given} coefficients")

    def describe(self) -> dict:
        """What restoring needs beside the networks."""
        data = self.file.datasets.train
        holes = getattr(data, "inpaint", None)
        return {
            "task": "restore" if holes is None else "inpaint" if holes.probability == 1 else "restore and inpaint",
            "hole": "white" if holes is None else holes.fill,
            "protocol": self.prior.protocol,
            "template": getattr(data, "template", "ffhq"),
            "size": self.networks["network_g"].size,
        }

    def release(self) -> dict[str, nn.Module]:
        """Generator (averaged) and regressor; the discriminator stays in the training state."""
        return {"network_g": self.ema["network_g"], "network_shape": self.networks["network_shape"]}

    def feed_data(self, batch: dict) -> None:
        """Takes a batch. A network smaller than the pictures gets them box-averaged; the regressor sees them whole.

        So a small network meets the noise and the blocks that the same network, grown to the pictures' size, will meet.
        """
        super().feed_data(batch)
        self.photo = self.batch["lq"]
        self.photo_points5 = self.batch["points5"]
        self._stored = self.batch.get("stored_size", torch.full((len(self.photo),), self.size)).cpu()
        given = self.photo.shape[-1]
        if given == self.size:
            return
        for key in ("lq", "hq"):
            self.batch[key] = F.interpolate(self.batch[key], size=self.size, mode="area")
        for key in ("points5", "landmarks68"):
            self.batch[key] = (self.batch[key] + 0.5) * (self.size / given) - 0.5
        if "mask" in self.batch:
            self.batch["mask"] = F.adaptive_max_pool2d(self.batch["mask"], self.size)

    def optimize_parameters(self, step: int) -> None:
        """One step of generator and regressor, then one of the discriminator."""
        self.log = {}
        adversarial = self.gan is not None and step >= self.gan.start_iter
        output = self._generator_step(adversarial, step)
        if adversarial:
            self._discriminator_step(output.detach(), step)
        self.update_average(step)

    def _generator_step(self, adversarial: bool, step: int) -> Tensor:
        truth = self.batch["hq"]
        with torch.set_grad_enabled(self.train_opt.train_shape):
            shape = self._input_shape()
        output = self._restore(self.networks["network_g"], shape)
        compared = self._as_stored(output), self._as_stored(truth)
        parts = {
            name: loss(*compared, **asked_for(loss, self.batch, f"train.losses.{name}"))
            for name, loss in self.image_losses.items()
        }
        parts.update(self._shape_losses(output, shape, step))
        if adversarial:
            chosen, count = self._examples()
            parts["adv"] = count * self.gan.loss_weight * nonsaturating_loss(self._judge(output[chosen]), real=True)
        self.log.update({f"l_{name}": value.item() for name, value in parts.items()})
        total = sum(parts.values())
        self.step_optimizer(["optim_g", "optim_shape"] if self.train_opt.train_shape else "optim_g", total)
        return output

    def _examples(self) -> tuple[Tensor, float]:
        """Which photos (N,) are examples of what the discriminator should take for real: those that are not enlarged; and what
        they count: 0, in a batch of enlarged ones only, rather than no step, for another process may have better ones.
        """
        sharp = self._stored >= self.size
        return (sharp, 1.0) if sharp.any() else (~sharp, 0.0)

    def _as_stored(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, S, S) without what enlarged photos of this batch lack, so that no loss asks for their blur."""
        rows = []
        for image, stored in zip(images.split(1), self._stored.tolist(), strict=True):
            if stored < self.size:
                small = F.interpolate(image, size=stored, mode="area")
                image = F.interpolate(small, size=self.size, mode="bicubic", align_corners=False)
            rows.append(image)
        return torch.cat(rows)

    def _shape(self, prior: ShapePrior, images: Tensor) -> ShapeResult:
        transform = prior.transform(self.batch["points5"], images.shape[-1])
        with self.autocast():
            coeffs = prior.coefficients(images, transform)
        return prior.draw(coeffs.float(), transform, images.shape[-1])

    def _input_shape(self) -> ShapeResult:
        """The shape seen in the degraded photos, drawn at the network's size."""
        transform = self.prior.transform(self.photo_points5, self.photo.shape[-1])
        with self.autocast():
            coeffs = self.prior.coefficients(self.photo, transform)
        shape = self.prior.draw(coeffs.float(), self.prior.transform(self.batch["points5"], self.size), self.size)
        if self._draws_into_holes and "mask" in self.batch:
            self._draw_into_holes(shape)
        return shape

    def _draw_into_holes(self, shape: ShapeResult) -> None:
        """Puts the rendering into the holes of the degraded photos, once it is known."""
        masks = self.batch["mask"][:, 0].cpu().numpy()
        for number, mask in enumerate(masks):
            if not mask.any():
                continue
            photo, render = (
                (pictures[number].detach().float().cpu().numpy().transpose(1, 2, 0) + 1) / 2
                for pictures in (self.batch["lq"], shape.render)
            )
            covered = shape.mask[number, 0].detach().float().cpu().numpy() > 0.5
            drawn = render_into_hole(photo, mask, render, covered).transpose(2, 0, 1) * 2 - 1
            self.batch["lq"][number] = torch.from_numpy(drawn).to(self.batch["lq"])

    def _restore(self, network: nn.Module, shape: ShapeResult, **options) -> Tensor:
        with self.autocast():
            restored = network(self.batch["lq"], shape.render, shape.coeffs, **options)
        return restored if options else restored.float()

    def _judge(self, images: Tensor) -> Tensor:
        with self.autocast():
            return self.networks["network_d"](images).float()

    def _shape_losses(self, output: Tensor, shape: ShapeResult, step: int) -> dict[str, Tensor]:
        train = self.train_opt
        every = train.landmark_every
        counts = step >= train.landmark_start_iter and step % every == 0
        landmark_weight = train.landmark_weight if counts else 0.0
        mesh_weight, pose_weight = (train.mesh_weight, train.pose_weight) if train.train_shape else (0.0, 0.0)
        if not (landmark_weight or mesh_weight or pose_weight):
            return {}
        with torch.no_grad():
            coeffs, wanted = self.see(self.frozen_prior, self.batch["hq"], shape.transform)
        losses = {}
        if landmark_weight:
            _, found = self.see(self.frozen_prior, output, shape.transform)
            points = self.prior.model.landmarks
            distance = landmark_loss_3d(*(self._framed(mesh)[:, points] for mesh in (found, wanted)))
            losses["landmark3d"] = landmark_weight * every * distance
        if mesh_weight:
            losses["mesh"] = mesh_weight * mesh_loss(shape.mesh, wanted)
        if pose_weight:
            losses["pose"] = pose_weight * pose_loss(shape.coeffs, coeffs)
        return losses

    def _framed(self, mesh: Mesh) -> Tensor:
        return mesh.vertices if self.train_opt.landmark_frame == "posed" else mesh.shape

    def _discriminator_step(self, fake: Tensor, step: int) -> None:
        discriminator = self.networks["network_d"]
        chosen, count = self._examples()
        real = self.batch["hq"][chosen]
        lazy = self.gan.r1_weight and step % self.gan.r1_every == 0
        discriminator.requires_grad_(True)
        logits = self._judge(real), self._judge(fake[chosen])
        loss = count * (nonsaturating_loss(logits[0], real=True) + nonsaturating_loss(logits[1], real=False))
        self.log["l_d"] = loss.item()
        if lazy:
            loss = loss + count * self._r1(discriminator, real)
        self.step_optimizer("optim_d", loss)
        discriminator.requires_grad_(False)

    def _r1(self, discriminator: nn.Module, real: Tensor) -> Tensor:
        """Lazy R1 in full precision, scaled by the interval so that its mean strength does not depend on it."""
        images = real.detach().requires_grad_(True)
        with self.uncompiled(discriminator):
            penalty = r1_penalty(discriminator(images), images)
        self.log["l_r1"] = penalty.item()
        return self.gan.r1_weight / 2 * self.gan.r1_every * penalty

    @torch.no_grad()
    def validate_batch(self) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
        """Metrics of the degraded input and of the restoration; and how they look."""
        shape = self._input_shape()
        output, masks = self._restore(self.ema["network_g"], shape, return_masks=True)
        output = output.float().clamp(-1, 1)
        truth, values = self.batch["hq"], {}
        for name, image in (("input", self.batch["lq"]), ("output", output)):
            for metric, function in self.metrics.items():
                reference = (truth,) if getattr(function, "needs_reference", True) else ()
                values[f"{metric}_{name}"] = function(image, *reference)
            landmarks = self._shape(self.frozen_prior, image).landmarks
            values[f"landmark_error_{name}"] = landmark_error(landmarks, self.batch["landmarks68"]).tolist()
        pictures = {"input": self.batch["lq"], "3D rendering": shape.render}
        found = mask_pictures(masks)
        if found:  # a fusion may have no masks
            pictures["mask (white: photo)"] = (found[max(found)].float() * 2 - 1).expand(-1, 3, -1, -1)
        return values, {**pictures, "restored": output, "truth": truth}
