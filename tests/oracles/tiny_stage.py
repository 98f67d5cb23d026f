"""A training stage that steps in milliseconds, with a discriminator, R1, and random numbers from every generator.

Run as a module (``python -m oracles.tiny_stage train OPTIONS``), it is the command line with this stage in the registry.
"""

import random
import sys

import numpy as np
import torch
from torch import Tensor, nn

import oracles.tiny_regressor  # noqa: F401  (registers it)
from sgpn_arch.ranges import Amount, Count
from sgpn_arch.registry import ARCH_REGISTRY, MODEL_REGISTRY
from sgpn_arch.schema import Options
from sgpn_model.train import distributed
from sgpn_model.train.losses import nonsaturating_loss, r1_penalty
from sgpn_model.train.optimizers import Optimizer
from sgpn_model.train.training_model import TrainingModel, TrainOptions


@ARCH_REGISTRY.register()
class TinyNet(nn.Module):
    """Two convolutions; 3 channels out, or one number per picture."""

    def __init__(self, channels: int = 4, judge: bool = False, norm: bool = False):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.last = nn.Conv2d(channels, 1 if judge else 3, 3, padding=1)
        self.judge = judge

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> the same shape, or (N, 1)."""
        x = self.last(nn.functional.softplus(self.norm(self.first(x))))
        return x.mean(dim=(2, 3)) if self.judge else x


class TinyGanOptions(Options):
    r1_every: Count


class TinyOptions(TrainOptions):
    optim_g: Optimizer
    optim_d: Optimizer
    noise: Amount = 0.0
    gan: TinyGanOptions | None = None
    poison: int | None = None


@MODEL_REGISTRY.register()
class TinyModel(TrainingModel):
    """Restores the degraded picture with noise on it (``train.noise``: its deviation); ``train.gan`` adds a discriminator.

    ``train.poison`` is a step in which a loss becomes NaN, in the last process.
    """

    NETWORKS = ("network_g", "network_d")
    OPTIONS = TinyOptions

    def build(self) -> None:
        for name, optimizer in (("network_g", "optim_g"), ("network_d", "optim_d")):
            self.networks[name] = self.network(name)
            self.optimizer(optimizer, self.networks[name].parameters(), getattr(self.train_opt, optimizer))
        self.networks["network_d"].requires_grad_(False)
        self.average("network_g")
        self.seen = 0

    def state_extra(self) -> dict:
        return {"seen": self.seen}

    def load_state_extra(self, extra: dict) -> None:
        self.seen = extra["seen"]

    def release(self) -> dict[str, nn.Module]:
        return {"network_g": self.ema["network_g"]}

    def optimize_parameters(self, step: int) -> None:
        lq, hq = self.batch["lq"], self.batch["hq"]
        self.log, self.seen = {}, self.seen + len(lq)
        noise = torch.randn_like(lq) * random.random() + float(np.random.normal())
        output = self.networks["network_g"](lq + self.train_opt.noise * noise)
        loss = (output - hq).abs().mean()
        self.log.update({"l_pixel": loss.item(), "seen": self.seen})
        if step == self.train_opt.poison and distributed.rank() == distributed.world_size() - 1:
            loss = loss * torch.nan
            self.log["l_poisoned"] = loss.item()
        gan = self.train_opt.gan
        if gan is not None:
            adversarial = 0.1 * nonsaturating_loss(self.networks["network_d"](output), real=True)
            self.log["l_adv"] = adversarial.item()
            loss = loss + adversarial
        self.step_optimizer("optim_g", loss)
        if gan is not None:
            self._judge_step(output.detach(), step, gan)
        self.update_average(step)

    def _judge_step(self, fake: Tensor, step: int, gan: TinyGanOptions) -> None:
        judge, real = self.networks["network_d"], self.batch["hq"].detach().requires_grad_(True)
        judge.requires_grad_(True)
        loss = nonsaturating_loss(judge(real), real=True) + nonsaturating_loss(judge(fake), real=False)
        self.log["l_d"] = loss.item()
        if step % gan.r1_every == 0:
            with self.uncompiled(judge):
                penalty = r1_penalty(judge(real), real)
            self.log["l_r1"] = penalty.item()
            loss = loss + penalty
        self.step_optimizer("optim_d", loss)
        judge.requires_grad_(False)

    @torch.no_grad()
    def validate_batch(self) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
        output = self.ema["network_g"](self.batch["lq"])
        error = (output - self.batch["hq"]).square().mean(dim=(1, 2, 3))
        return {"mse_output": error.tolist(), "psnr_output": (-error.log()).tolist()}, {"restored": output}


if __name__ == "__main__":
    from sgpn_model.cli import main

    sys.exit(main())
