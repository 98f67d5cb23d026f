"""PriorModel, the stage before all others: the concat-noise StyleGAN2 that SGPN's decoder starts from, trained as a GAN.

Losses and their intervals are StyleGAN2's (Karras et al. 2020), adaptive augmentation is StyleGAN2-ADA's.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sgpn_arch.errors import OptionError
from sgpn_arch.ranges import Amount, Count, Fraction
from sgpn_arch.registry import MODEL_REGISTRY
from sgpn_arch.schema import Options
from sgpn_arch.stylegan2_arch import ConcatStyleGAN2Generator
from sgpn_model.train import distributed
from sgpn_model.train.augment import AdaptiveProbability, Augmentation, AugmentOptions
from sgpn_model.train.losses import nonsaturating_loss, path_lengths, r1_penalty
from sgpn_model.train.optimizers import Optimizer
from sgpn_model.train.training_model import TrainingModel, TrainOptions

SAMPLES = 5  # pictures beside each real one on the validation sheet


class PriorGanOptions(Options):
    """``train.gan`` of PriorModel: lazy R1, a part of the ordinary step, so Adam's rate and betas need no correction."""

    r1_weight: Amount = 10.0
    """Weight of R1."""
    r1_every: Count = 16
    """Steps between evaluations of R1, which then counts as many times."""


class PathLengthOptions(Options):
    """``train.path_length``: StyleGAN2's path-length regularisation, lazily as well."""

    loss_weight: Amount = 2.0
    """Its weight."""
    every: Count = 4
    """Steps between evaluations, each of which counts as many times."""
    batch_shrink: Count = 2
    """Factor by which the batch is made smaller for it."""
    mean_decay: Fraction = 0.01
    """How fast the mean of the lengths follows."""


class PriorOptions(TrainOptions):
    """``train`` of PriorModel."""

    gan: PriorGanOptions = PriorGanOptions()
    """The adversarial loss."""
    path_length: PathLengthOptions | None = None
    """Path-length regularisation; ~: none."""
    augment: AugmentOptions | None = AugmentOptions()
    """Adaptive augmentation; ~: none."""
    optim_g: Optimizer
    """The generator's optimiser."""
    optim_d: Optimizer
    """The discriminator's."""


@MODEL_REGISTRY.register()
class PriorModel(TrainingModel):
    """Non-saturating logistic GAN loss with lazy R1, on the good faces of any dataset; degraded ones are not looked at.

    The discriminator's step sees the pictures that the generator was trained on in the same step (StyleGAN2 makes new
    ones: a choice of ours that spares a third of the generator's work). There is no style mixing, since SGPN has one w.
    """

    NETWORKS = ("network_g", "network_d")
    OPTIONS = PriorOptions

    def build(self) -> None:
        """Generator with its average, discriminator, augmentation."""
        path, train = self.file.path, self.train_opt
        parts = ("network_g", path.pretrain_network_g, "optim_g"), ("network_d", path.pretrain_network_d, "optim_d")
        for name, pretrained, optimizer in parts:
            self.networks[name] = self.network(name, pretrained)
            self.optimizer(optimizer, self.networks[name].parameters(), getattr(train, optimizer))
        if not hasattr(self.networks["network_g"], "draw_noise"):
            raise OptionError(
                f"network_g.type: {self.opt['network_g']['type']} makes no pictures of latents and noise; "
                "the one that does is ConcatStyleGAN2Generator"
            )
        self.networks["network_d"].requires_grad_(False)  # but in its own step
        self.average("network_g")
        self.gan, self.path_length = train.gan, train.path_length
        self.mean_path_length = 0.0
        self.augmentation = None if train.augment is None else Augmentation(train.augment.kinds)
        self.adaptive = AdaptiveProbability(train.augment or AugmentOptions(target=None))
        self.random = torch.Generator(self.device)

    def describe(self) -> dict:
        """How the faces were aligned, their size, and how hard the augmentation had become."""
        return {
            "stage": "prior",
            "template": getattr(self.file.datasets.train, "template", "ffhq"),
            "size": self.networks["network_g"].size,
            "augment_p": self.adaptive.p,
        }

    def state_extra(self) -> dict:
        """What goes on in a resumed run beside networks and optimisers."""
        return {"adaptive": self.adaptive.state_dict(), "mean_path_length": self.mean_path_length}

    def load_state_extra(self, state: dict) -> None:
        """Takes what :meth:`state_extra` gave."""
        self.adaptive.load_state_dict(state["adaptive"])
        self.mean_path_length = state["mean_path_length"]

    # -- training -----------------------------------------------------------------------------------------------------

    def optimize_parameters(self, step: int) -> None:
        """One step of the generator, then one of the discriminator; p follows the discriminator."""
        self.log = {}
        self._seed(step)
        fake = self._generator_step(step)
        real_logits = self._discriminator_step(fake.detach(), step)
        self.adaptive.update(*self._over_processes(real_logits.sign().sum(), real_logits.numel()))
        self.log.update({"r_t": self.adaptive.overfitting, "augment_p": self.adaptive.p})
        self.update_average(step)

    def _seed(self, step: int) -> None:
        """All randomness comes from the seed, the step, its batch and the process: other latents in each, none to store."""
        entropy = [self.file.manual_seed, step, self._part, distributed.rank()]
        self.random.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))

    def _generator_step(self, step: int) -> Tensor:
        generator = self.networks["network_g"]
        z = self._latents(len(self.batch["hq"]))
        with self.autocast():
            fake = generator(z, generator.draw_noise(z, self.random))
        fake = fake.float()
        loss = nonsaturating_loss(self._judge(fake), real=True)
        self.log["l_g"] = loss.item()
        if self.path_length and step % self.path_length.every == 0:
            loss = loss + self._path_length_penalty(generator)
        self.step_optimizer("optim_g", loss)
        return fake

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, self.networks["network_g"].style_dim, generator=self.random, device=self.device)

    def _judge(self, images: Tensor) -> Tensor:
        """Logits of augmented pictures: during training the discriminator never sees any other."""
        augmented = self._augment(images)
        with self.autocast():
            return self.networks["network_d"](augmented).float()

    def _augment(self, images: Tensor) -> Tensor:
        return images if self.augmentation is None else self.augmentation(images, self.adaptive.p, self.random)

    def _path_length_penalty(self, generator: ConcatStyleGAN2Generator) -> Tensor:
        """In full precision: the squared distance of the path lengths from their running mean, times the interval."""
        options = self.path_length
        count = max(1, len(self.batch["hq"]) // options.batch_shrink)
        w = generator.mapping(self._latents(count))
        images = generator.synthesise(w, generator.draw_noise(w, self.random))
        directions = torch.randn(images.shape, generator=self.random, device=self.device)
        lengths = path_lengths(images, w, directions)
        total, number = self._over_processes(lengths.detach().sum(), count)
        self.mean_path_length += options.mean_decay * (total / number - self.mean_path_length)
        penalty = (lengths - self.mean_path_length).square().mean()
        self.log.update({"l_path": penalty.item(), "path_length": self.mean_path_length})
        return options.loss_weight * options.every * penalty

    def _discriminator_step(self, fake: Tensor, step: int) -> Tensor:
        """Returns the logits (N, 1) of the real pictures."""
        discriminator, real = self.networks["network_d"], self.batch["hq"]
        discriminator.requires_grad_(True)
        real_logits, fake_logits = self._judge(real), self._judge(fake)
        loss = nonsaturating_loss(real_logits, real=True) + nonsaturating_loss(fake_logits, real=False)
        logits = {"logit_real": real_logits.mean().item(), "logit_fake": fake_logits.mean().item()}
        self.log.update({"l_d": loss.item(), **logits})
        if self.gan.r1_weight and step % self.gan.r1_every == 0:
            loss = loss + self._r1(discriminator, real)
        self.step_optimizer("optim_d", loss)
        discriminator.requires_grad_(False)
        return real_logits.detach()

    def _r1(self, discriminator: nn.Module, real: Tensor) -> Tensor:
        """Lazy R1 in full precision, through the augmentation, times the interval."""
        images = real.detach().requires_grad_(True)
        with self.uncompiled(discriminator):
            penalty = r1_penalty(discriminator(self._augment(images)), images)
        self.log["l_r1"] = penalty.item()
        return self.gan.r1_weight / 2 * self.gan.r1_every * penalty

    def _over_processes(self, total: Tensor, count: int) -> tuple[float, float]:
        """A sum and a count, added up over all processes, so that all of them draw the same conclusion."""
        if distributed.world_size() == 1:
            return total.item(), count
        values = torch.tensor([total.item(), count], dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(values)
        return values[0].item(), values[1].item()

    # -- validation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate_batch(self) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
        """What the discriminator thinks of plain pictures, how much they differ, and a row of samples for each.

        The averaged generator makes them of latents and noise that depend on the item's name alone, hence are the same at
        each validation. ``logit_real``: of faces that it was not trained on; far below the training log's it says that the
        discriminator knows its training set by heart. ``spread_*``: root-mean-square distance of a picture from the
        batch's mean; a generator that makes the same picture again and again has a spread near 0.
        """
        real = self.batch["hq"]
        rows = torch.stack([self._samples(name) for name in self.batch["path"]])
        fake, judge = rows[:, 0], self.networks["network_d"]
        values = {
            "logit_real": judge(real).flatten().tolist(),
            "logit_fake": judge(fake).flatten().tolist(),
            "spread_real": _spread(real),
            "spread_fake": _spread(fake),
        }
        samples = enumerate(rows.clamp(-1, 1).unbind(1), start=1)
        return values, {"real": real, **{f"sample {number}": sample for number, sample in samples}}

    def _samples(self, name: str) -> Tensor:
        generator = self.ema["network_g"]
        source = torch.Generator().manual_seed(zlib.crc32(Path(name).name.encode()))
        z = torch.randn(SAMPLES, generator.style_dim, generator=source).to(self.device)
        return generator(z, generator.draw_noise(z, source)).float()


def _spread(images: Tensor) -> list[float]:
    return (images - images.mean(dim=0)).square().mean(dim=(1, 2, 3)).sqrt().tolist()
