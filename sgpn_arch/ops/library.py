"""The operators ``torch.ops.sgpn.*``: how they are declared to PyTorch, and where their CUDA kernels come from.

An operator is declared here with its schema, its plain definition, the shape of its result and its gradient, so that
autograd, torch.compile, autocast and CUDA graphs know it. Its kernel registers itself when the library built of ``csrc``
is loaded: one built at install (``SGPN_BUILD_CUDA=1``), else one built on first use where there is a CUDA compiler.
Without a library, or with ``SGPN_KERNELS=0``, everything is computed by PyTorch's own operations.

Schemas are declared from Python and kernels from C++ (``TORCH_LIBRARY_IMPL``), and not with ``torch.library.custom_op``,
because a call without gradients then goes through C++ alone; ``custom_op`` around the same kernel took 4 us longer.
"""

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sgpn_arch.files import cache_folder

LOGGER = logging.getLogger("sgpn")
FOLDER = Path(__file__).parent
SOURCES = ("kernels.cu", "binding.cpp")
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LOCK_SECONDS = 900
LARGE = 2**17  # values of a map; with fewer, starting a loop takes longer than it saves

_LIBRARY = torch.library.Library("sgpn", "DEF")
_wanted = True


def declare(
    schema: str,
    plain: Callable,
    like: Callable,
    setup_context: Callable,
    backward: Callable,
    loops: Callable | None = None,
) -> None:
    """Declares ``torch.ops.sgpn.NAME``.

    Args:
        schema: name, arguments and results, in PyTorch's schema language. A bias, weight or kernel is in the wide type,
            :func:`wide` of the activations'.
        plain: computes it with PyTorch's operations; used where there is no kernel.
        like: the arguments -> empty tensors like the results, for torch.compile.
        setup_context, backward: as :func:`torch.library.register_autograd` takes them; ``backward`` is made of
            differentiable operations, so that second gradients work.
        loops: computes it on a CPU, results in channels_last; used where :func:`has_loops` of the last map.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def compute(*args):
        if args[0].is_cuda:
            load_kernels()  # for the next call: a compiled program may be the first to come here
        if loops is not None and has_loops([x for x in args if isinstance(x, torch.Tensor) and x.ndim == 4][-1:]):
            return loops(*args)
        results, forms = plain(*args), like(*args)
        if isinstance(results, torch.Tensor):
            return _as(results, forms)
        return tuple(_as(result, form) for result, form in zip(results, forms, strict=True))

    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sgpn::{name}", like, lib=_LIBRARY)
    torch.library.register_autograd(f"sgpn::{name}", backward, setup_context=setup_context, lib=_LIBRARY)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that kernels compute in: float64 for float64, float32 for the others."""
    return torch.promote_types(dtype, torch.float32)


def empty(x: torch.Tensor, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """An empty tensor of ``x``'s type and layout (channels_last or contiguous), and of ``shape`` or its own."""
    # The rule is is_channels_last of csrc/binding.cpp.
    last = x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    shape = x.shape if shape is None else shape
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _as(x: torch.Tensor, form: torch.Tensor) -> torch.Tensor:
    return x if x.stride() == form.stride() else form.copy_(x)


# ---------------------------------------------------------------------------------------------------------------------
# Which path is taken


def are_wanted() -> bool:
    """Whether anything but PyTorch's own way may be taken: not within :func:`plain_operations`."""
    return _wanted


def has_kernel(x: torch.Tensor) -> bool:
    """Whether an operator on ``x`` should be ours; the first call on a GPU may build the kernels, about a minute."""
    # A compiled program calls the operator in any case: what loads kernels is nothing to be traced.
    return x.is_cuda and _wanted and x.dtype in TYPES and (torch.compiler.is_compiling() or load_kernels())


def has_pointwise_kernel(x: torch.Tensor) -> bool:
    """As :func:`has_kernel`, or by loops for the gradients; not under torch.compile, which fuses plain pointwise operations."""
    if torch.compiler.is_compiling():
        return False
    return has_kernel(x) if x.is_cuda else torch.is_grad_enabled() and has_loops([x])


def has_loops(maps: list[torch.Tensor]) -> bool:
    """Whether gradients of pointwise operations on such maps are to be loops: large ones on a CPU, in channels_last."""
    return _wanted and any(
        x.device.type == "cpu"
        and x.ndim == 4
        and x.numel() >= LARGE
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous(memory_format=torch.channels_last)
        for x in maps
    )


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Within it, everything is computed by PyTorch's own operations, in its own way: to compare with, in tests and benchmarks."""
    global _wanted
    before, _wanted = _wanted, False
    try:
        yield
    finally:
        _wanted = before


# ---------------------------------------------------------------------------------------------------------------------
# Finding and building the kernels


@functools.cache
def load_kernels() -> bool:
    """Loads the CUDA kernels, building them if need be; whether they are there. Warns, once, if they cannot be built."""
    if os.environ.get("SGPN_KERNELS") == "0" or torch.version.cuda is None or not torch.cuda.is_available():
        return False
    problem = ""
    for path in FOLDER.glob("_kernels.*"):
        try:
            torch.ops.load_library(str(path))
            return True
        except OSError as error:
            problem = f"{path.name}, built at install, does not fit this PyTorch ({_reason(error)}); "
    try:
        torch.ops.load_library(str(build_kernels()))
        return True
    except Exception as error:  # whatever a compiler, a file system or a loader may raise: there is another way
        warnings.warn(
            f"sgpn: {problem}the CUDA kernels could not be built: {_reason(error)}. PyTorch's own operations are used, "
            "which are slower. Install a CUDA toolkit (nvcc) of PyTorch's version "
            f"{torch.version.cuda} and ninja, or set SGPN_KERNELS=0 to do without and without this warning.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False


def build_kernels() -> Path:
    """Compiles ``csrc`` into the cache, unless that was done before; returns the library's path.

    The cache is SGPN_HOME, or this platform's folder for caches. Processes that need the same library wait for the first.

    Raises:
        Exception: whatever went wrong: no compiler, a compiler's error, no place to write to.
    """
    from filelock import FileLock
    from torch.utils import cpp_extension

    folder = cache_folder() / "kernels" / _build_key()
    library = folder / "sgpn_kernels.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "building", timeout=LOCK_SECONDS):
        if not library.exists():
            LOGGER.info("building the CUDA kernels in %s, about a minute, once", folder)
            # PyTorch's own lock outlives a process that was killed; ours does not, and is held here.
            (folder / "lock").unlink(missing_ok=True)
            nvcc = os.environ.get("PYTORCH_NVCC") or os.path.join(cpp_extension.CUDA_HOME or "", "bin", "nvcc")
            if shutil.which(nvcc) is None:
                raise FileNotFoundError(f"no CUDA compiler was found at {nvcc}")
            cpp_extension.load(
                name=library.stem,
                sources=[str(FOLDER / "csrc" / source) for source in SOURCES],
                extra_cflags=["-O2"],
                extra_cuda_cflags=["-O3"],
                build_directory=str(folder),
                is_python_module=False,
            )
    return library


def _build_key() -> str:
    """A name for what a library depends on: PyTorch, CUDA, the GPUs' kinds and our sources."""
    digest = hashlib.sha256()
    for path in sorted((FOLDER / "csrc").iterdir()):
        digest.update(path.read_bytes())
    chips = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    digest.update(os.environ.get("TORCH_CUDA_ARCH_LIST", repr(sorted(chips))).encode())
    return f"torch{torch.__version__}-cuda{torch.version.cuda}-{digest.hexdigest()[:16]}"


def _reason(error: Exception) -> str:
    """The line of a message that says why: a compiler's first error, else the first line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if "error:" in line or "fatal" in line), lines[0]).strip().rstrip(".:")
