"""Many processes that train as one: joining torchrun's group, averaging gradients, and doing things once for all."""

import atexit
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sgpn_arch.errors import OptionError

T = TypeVar("T")

# What one process does while the others wait (loading a data set into memory, writing a state) may take this long.
TIMEOUT = timedelta(hours=1)


def rank() -> int:
    """This process's number; 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together; 1 if this one is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def place(device: torch.device) -> torch.device:
    """The device of this process: under torchrun the process of local rank k takes the k-th CUDA device.

    Raises:
        OptionError: there are more processes than CUDA devices.
    """
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise OptionError(
            f"torchrun started process {local + 1} on this machine, but PyTorch sees {torch.cuda.device_count()} CUDA "
            "device(s); give torchrun --nproc_per_node as many as there are"
        )
    return torch.device("cuda", local)


def join(device: torch.device) -> None:
    """Joins the processes that torchrun started: gloo for what is on the CPU, nccl for what is on CUDA devices.

    Does nothing where this process is alone, or has joined already: a second group over torchrun's store would find the
    addresses of the first. The group lasts as long as the process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)


def everyones(value: T) -> list[T]:
    """``value`` of every process, by rank. All of them must call it."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def once(work: Callable[[], T]) -> T:
    """Runs ``work`` in the first process and gives its result to all; what it raises is raised in all.

    Without that, the others would wait for a process that has given up.
    """
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except Exception as error:  # handed on, below
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@torch.no_grad()
def share_weights(modules: Iterable[nn.Module]) -> None:
    """Gives every process the parameters and buffers of the first."""
    if world_size() == 1:
        return
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            values = tensor.contiguous()  # a channels-last tensor is not
            dist.broadcast(values, src=0)
            tensor.copy_(values)


@torch.no_grad()
def average_statistics(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Averages the running statistics of batch normalisation, which each process takes from its own samples."""
    if world_size() == 1:
        return
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norms = [part for module in modules for part in module.modules() if isinstance(part, kinds) and part.training]
    buffers = [buffer for norm in norms for buffer in norm.buffers() if buffer.is_floating_point()]
    if buffers:
        _copy_back(_summed(buffers, device) / world_size(), buffers)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Averages the gradients over the processes, in one message, and says which flags any process has set.

    All gradients travel flattened in a single all_reduce per optimiser step, as in StyleGAN2-ADA. DistributedDataParallel
    expects one forward and one backward pass per step; here a stage may call a network several times in a step, and
    differentiates twice for R1.

    A parameter that got a gradient in no process is left without: an optimiser then skips it, as it does in one process.
    """
    if world_size() == 1:
        return [bool(flag) for flag in flags]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    marks = torch.tensor([p.grad is not None for p in parameters] + list(flags), dtype=torch.float32, device=device)
    flat = _summed([*gradients, marks], device)
    counts = flat[-len(marks) :].tolist()
    flat /= world_size()
    for parameter, gradient, count in zip(parameters, gradients, counts[: len(parameters)], strict=True):
        parameter.grad = gradient if count else None
    _copy_back(flat, gradients)
    return [count > 0 for count in counts[len(parameters) :]]


def _summed(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    flat = torch.cat([tensor.to(device, torch.float32).reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    return flat


def _copy_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
