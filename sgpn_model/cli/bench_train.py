"""``sgpn bench train``: one optimisation step of the joint stage on random pictures, and where its time goes."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch

from sgpn_arch.ops import plain_operations
from sgpn_data.alignment import template_points
from sgpn_model.cli import bench_network
from sgpn_model.cli.bench_measure import Settings, clock, gflop_of_run, measure, ratio, wait_for
from sgpn_model.cli.bench_report import Row, Table
from sgpn_model.config.reading import OptionError
from sgpn_model.config.registries import fill_registries
from sgpn_model.train.joint_model import SGPNModel

# Any step that is not one of R1, and one that is.
ORDINARY, LAZY = 1, 0
STEP, PLAIN_STEP, R1_STEP = "step", "step, plain operations", "step with R1"
PHASES = ("forward and losses", "backward", "optimisers")


def run(settings: Settings) -> Table:
    """Measures ordinary steps, split by phase, and a step with R1; with ``compare`` on CUDA the same on plain operations."""
    if settings.weights:
        raise OptionError("bench train: trains random networks; leave --weights out")
    precision = "fp32" if settings.precision is None else settings.precisions()[0]
    if precision == "fp16":
        raise OptionError("bench train: trains in fp32 or bf16; give --precision one of them")
    batch = settings.batch or 1
    fill_registries()
    torch.manual_seed(settings.seed)
    model = SGPNModel(options(settings, precision), settings.device)
    step = partial(model.train_step, [random_batch(batch, settings)])
    calls = {STEP: lambda: step(ORDINARY), R1_STEP: lambda: step(LAZY)}
    if settings.compare and settings.device.type == "cuda":
        calls[PLAIN_STEP] = _in_plain(calls[STEP])
    found = measure(calls, settings)
    rows = {name: Row(name, own.seconds, batch, peak_mib=own.peak_mib) for name, own in found.items()}
    rows[STEP].gflop = gflop_of_run(calls[STEP])
    if PLAIN_STEP in rows:
        rows[STEP].ratio = ratio(found[PLAIN_STEP].seconds, found[STEP].seconds)
    phases = [watch(model, calls[STEP], settings) for _ in found[STEP].seconds]
    total = sum(sum(phase.values()) for phase in phases)
    parts = [
        Row(name, [phase[name] for phase in phases], share=sum(phase[name] for phase in phases) / total)
        for name in PHASES
    ]
    title = (
        f"Training step, SGPN-{settings.size}, width {settings.width:g}, {settings.fusion}, batch {batch}, {precision}"
    )
    return Table("train", title, [*rows.values(), *parts], _notes(settings))


def _notes(settings: Settings) -> list[str]:
    found = [
        f"Random pictures and weights (seed {settings.seed}): generator, discriminator and regressor ({bench_network.BACKBONE}) "
        "learn; L1 and perceptual loss, L_adv, L_3dlm and L_mesh; Adam. peak MiB: of the first step, with Adam's state.",
        "The phases are those of separate rounds, of steps without R1; every 16th step has it.",
    ]
    if settings.compare:
        found.append(
            "x plain: the step on PyTorch's own operations over the step with our kernels, in turns."
            if settings.device.type == "cuda"
            else "There is nothing to compare: training on a CPU takes PyTorch's own operations."
        )
    return found


def options(settings: Settings, precision: str) -> dict:
    """An option file of the joint stage, as ``sgpn train`` would read it."""
    shape = {"type": "D3DFR", "id_dim": 80, "exp_dim": 52, "tex_dim": 40, "backbone": bench_network.BACKBONE}
    network = {"size": settings.size, "width": settings.width}
    adam = {"type": "Adam", "lr": 1e-5}  # so small that a thousand steps change little
    return {
        "name": "bench",
        "model_type": "SGPNModel",
        "precision": precision,
        "network_g": {"type": "SGPN", "fusion": settings.fusion, "coeff_dim": 205, **network},
        "network_d": {"type": "SGPNDiscriminator", **network},
        "network_shape": shape,
        "train": {
            "total_iter": 1000,
            "losses": {"pixel": {"type": "L1Loss"}, "perceptual": {"type": "MobileNetPerceptualLoss"}},
            "optim_g": adam,
            "optim_d": adam,
            "optim_shape": adam,
        },
    }


def random_batch(batch: int, settings: Settings) -> dict:
    """A batch as the data set gives it: pictures of noise, and points where an aligned face has them."""
    size = settings.size
    generator = torch.Generator().manual_seed(settings.seed)
    lq, hq = (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1 for _ in range(2))
    points = torch.tensor(template_points("ffhq", size), dtype=torch.float32).repeat(batch, 1, 1)
    landmarks = torch.full((batch, 68, 2), torch.nan)
    return {"lq": lq, "hq": hq, "points5": points, "landmarks68": landmarks, "path": [""] * batch}


def _in_plain(call: Callable) -> Callable:
    def plain():
        with plain_operations():
            return call()

    return plain


# ---------------------------------------------------------------------------------------------------------------------
# Phases


def watch(model: SGPNModel, step: Callable, settings: Settings) -> dict[str, float]:
    """Phase -> seconds of one step."""
    seconds = dict.fromkeys(PHASES, 0.0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_backward_timed(seconds, settings))
        for optimizer in model.optimizers.values():
            stack.enter_context(_step_timed(optimizer, seconds, settings))
        start = clock()
        step()
        wait_for(settings.device)
        whole = clock() - start
    seconds[PHASES[0]] = whole - seconds[PHASES[1]] - seconds[PHASES[2]]
    return seconds


def _timed(function: Callable, phase: str, seconds: dict[str, float], settings: Settings) -> Callable:
    def call(*args, **kwargs):
        wait_for(settings.device)
        start = clock()
        result = function(*args, **kwargs)
        wait_for(settings.device)
        seconds[phase] += clock() - start
        return result

    return call


@contextlib.contextmanager
def _backward_timed(seconds: dict[str, float], settings: Settings) -> Iterator[None]:
    original = torch.Tensor.backward
    torch.Tensor.backward = _timed(original, PHASES[1], seconds, settings)
    try:
        yield
    finally:
        torch.Tensor.backward = original


@contextlib.contextmanager
def _step_timed(optimizer: torch.optim.Optimizer, seconds: dict[str, float], settings: Settings) -> Iterator[None]:
    optimizer.step = _timed(optimizer.step, PHASES[2], seconds, settings)
    try:
        yield
    finally:
        del optimizer.step
