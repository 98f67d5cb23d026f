"""Which triangle each pixel sees, and vertex attributes interpolated there: a hard z-buffer, differentiable.

Two ways give the same result: compiled loops for tensors on the CPU (`rasterizer_cpu.py`), and PyTorch operations on
any device (`visibility.py` for the visible triangles, `plain_fragments` for the values, which are the definition). A
third, nvdiffrast on CUDA, rounds vertices to a sixteenth of a pixel first. Visibility itself has no gradient and there
is no anti-aliasing, so the gradients say nothing about the silhouette.

Coordinates are continuous pixels: pixel (i, j) covers [i, i+1) x [j, j+1) and is sampled at its centre
(i + 0.5, j + 0.5); x runs right, y down. A triangle is drawn from both sides.
"""

import threading
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sgpn_arch.face3d.raster.visibility import visible_triangles

BACKENDS = ("auto", "cpu", "torch", "nvdiffrast")
# The clip volume of nvdiffrast reaches this fraction beyond the nearest and the farthest vertex.
CLIP_MARGIN = 0.01
# Clip-space positions are homogeneous: scaled, they are the same. nvdiffrast adds 1e-6 to areas in clip space before it
# divides by them in its gradient; enlarged by a power of two, which is exact, areas make that negligible.
CLIP_SCALE = 64.0


@dataclass
class Fragments:
    """What every pixel of N images sees.

    triangle_ids (N, H, W): int64, index of the nearest triangle; -1 on the background.
    barycentrics (N, H, W, 3): weights of the triangle's three vertices, perspective-correct: not negative,
        sum 1; 0 on the background. Differentiable in points and depth.
    depth (N, H, W): distance along the view axis, in the unit of the vertices' depth; 0 on the background.
        Differentiable in points and depth.
    """

    triangle_ids: Tensor
    barycentrics: Tensor
    depth: Tensor


def rasterize(
    points: Tensor, depth: Tensor, triangles: Tensor, size: tuple[int, int], backend: str = "auto"
) -> Fragments:
    """Find the nearest triangle at every pixel centre.

    points (N, V, 2): the projected vertices (x, y) in continuous pixels.
    depth (N, V): their distances along the view axis, > 0 in front of the camera, any unit.
    triangles (F, 3): integer vertex indices, shared by the N meshes.
    size: (height, width) of the images.
    backend: "cpu", compiled loops; "torch", PyTorch operations, on any device; "nvdiffrast" (CUDA only, installed by the
        user). "auto" is nvdiffrast for CUDA tensors where it is installed, else torch for them; and cpu for the others,
        which also serves other devices: then only visibility is computed on the host.

    Triangles with a vertex that is not finite or has depth <= 0, and those of no area, are not drawn. A pixel centre on
    an edge belongs to the triangle, so meshes have no cracks. The nearest triangle wins; of two whose depths differ by
    less than one part in 10^10 the lowest index. "cpu" and "torch" see the same triangles. nvdiffrast rounds vertices
    to a sixteenth of a pixel to find what is visible, so that with triangles of a pixel some per cent of the pixels see
    a neighbour of theirs; it clips at the nearest positive depth, and settles ties, edges and vertices that are not
    finite in its own way. Half precision is computed in float32. First derivatives only by "cpu" and "nvdiffrast".

    Raises ValueError for shapes that do not fit, a vertex index out of range or an unknown backend, and
    ImportError where nvdiffrast is asked for but not installed.
    """
    _check(points, depth, triangles)
    dtype = torch.promote_types(torch.promote_types(points.dtype, depth.dtype), torch.float32)
    points, depth, triangles = points.to(dtype), depth.to(dtype), triangles.long()
    chosen = _choose_backend(backend, points)
    if chosen == "nvdiffrast":
        return _rasterize_nvdiffrast(points, depth, triangles, size)
    if chosen == "torch":
        return plain_fragments(points, depth, triangles, visible_triangles(points, depth, triangles, size))
    drawn = _Draw.apply(points.cpu(), depth.cpu(), triangles.cpu(), size)  # also for mps, which has no float64
    return Fragments(*(values.to(points.device) for values in drawn))


def interpolate(attributes: Tensor, fragments: Fragments, triangles: Tensor) -> Tensor:
    """Blend vertex attributes with the barycentric coordinates of each pixel.

    attributes (N, V, C), or (V, C) where the meshes share them; triangles (F, 3) as given to `rasterize`.
    Returns (N, H, W, C), 0 on the background; differentiable in the attributes and the barycentrics.
    """
    _check_attributes(attributes, fragments, triangles)
    dtype = torch.promote_types(attributes.dtype, fragments.barycentrics.dtype)
    attributes, barycentrics = attributes.to(dtype), fragments.barycentrics.to(dtype)
    if attributes.device.type == "cpu":
        return _Blend.apply(attributes, barycentrics, fragments.triangle_ids, triangles.long())
    return plain_interpolate(attributes, barycentrics, fragments.triangle_ids, triangles)


def _check(points: Tensor, depth: Tensor, triangles: Tensor) -> None:
    if points.ndim != 3 or points.shape[2] != 2:
        raise ValueError(f"points must have shape (N, V, 2), not {tuple(points.shape)}")
    if depth.shape != points.shape[:2]:
        raise ValueError(f"depth must have shape {tuple(points.shape[:2])} as the points, not {tuple(depth.shape)}")
    if triangles.ndim != 2 or triangles.shape[1] != 3 or triangles.is_floating_point():
        raise ValueError(f"triangles must be integers (F, 3), not {triangles.dtype} {tuple(triangles.shape)}")
    _check_range(triangles, points.shape[1])


def _check_attributes(attributes: Tensor, fragments: Fragments, triangles: Tensor) -> None:
    shape, batch = tuple(attributes.shape), len(fragments.triangle_ids)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != batch):
        raise ValueError(f"attributes must have shape ({batch}, V, C) or (V, C), not {shape}")
    if fragments.triangle_ids.numel() and fragments.triangle_ids.max() >= len(triangles):
        raise ValueError(f"fragments show more than the {len(triangles)} triangles given: they belong to another mesh")
    _check_range(triangles, shape[-2])


def _check_range(triangles: Tensor, vertices: int) -> None:
    if len(triangles) and not (triangles.min() >= 0 and triangles.max() < vertices):
        raise ValueError(f"triangles name vertices outside 0..{vertices - 1}: they belong to another mesh")


def _choose_backend(backend: str, points: Tensor) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"rasterizer backend {backend!r} is unknown: use {', '.join(BACKENDS)}")
    if backend == "auto":
        if not points.is_cuda:
            return "cpu"
        return "torch" if find_spec("nvdiffrast") is None else "nvdiffrast"
    if backend != "nvdiffrast":
        return backend
    if find_spec("nvdiffrast") is None:
        raise ImportError(
            "rasterizer backend 'nvdiffrast' is not installed: install it with "
            "'pip install git+https://github.com/NVlabs/nvdiffrast', or use backend='auto' or 'cpu'"
        )
    if not points.is_cuda:
        device = points.device
        raise ValueError(f"rasterizer backend 'nvdiffrast' needs CUDA tensors, not {device}: use 'auto' or 'cpu'")
    return backend


# ---- the plain definition: values at the covered pixels


def plain_fragments(points: Tensor, depth: Tensor, triangles: Tensor, triangle_ids: Tensor) -> Fragments:
    """Barycentrics and depth of known visible triangles; arguments as in `rasterize`, triangle_ids (N, H, W).

    With e_i the area between the pixel centre and the edge opposite vertex i, 1/z is linear on the screen, so
    the weights are b_i = (e_i / z_i) / sum_j (e_j / z_j) and the depth is sum_j e_j / sum_j (e_j / z_j).
    Computed in float64 whatever the input, as narrow triangles leave little of float32.
    """
    covered = _covered(triangle_ids)
    height, width = triangle_ids.shape[1:]
    corners = _corners(triangle_ids, covered, triangles, points.shape[1])
    x, y, z = torch.cat([points, depth[..., None]], 2).double().reshape(-1, 3)[corners].unbind(2)
    x = x - (covered % width + 0.5)[:, None]
    y = y - (covered // width % height + 0.5)[:, None]
    areas = x.roll(-1, 1) * y.roll(-2, 1) - y.roll(-1, 1) * x.roll(-2, 1)
    weights = areas / z
    total = weights.sum(1, keepdim=True)
    barycentrics = _scatter((weights / total).to(points.dtype), covered, triangle_ids.shape)
    pixel_depth = _scatter((areas.sum(1, keepdim=True) / total).to(points.dtype), covered, triangle_ids.shape)
    return Fragments(triangle_ids, barycentrics, pixel_depth[..., 0])


def plain_interpolate(attributes: Tensor, barycentrics: Tensor, triangle_ids: Tensor, triangles: Tensor) -> Tensor:
    """As `interpolate`, given the parts of the fragments, in PyTorch operations."""
    covered = _covered(triangle_ids)
    corners = _corners(triangle_ids, covered, triangles, attributes.shape[1] if attributes.ndim == 3 else 0)
    weights = barycentrics.reshape(-1, 3)[covered]
    values = (attributes.reshape(-1, attributes.shape[-1])[corners] * weights[..., None]).sum(1)
    return _scatter(values, covered, triangle_ids.shape)


def _covered(triangle_ids: Tensor) -> Tensor:
    """Indices (P,) of the pixels that see a triangle, counted over N x H x W."""
    return (triangle_ids.reshape(-1) >= 0).nonzero()[:, 0]


def _corners(triangle_ids: Tensor, covered: Tensor, triangles: Tensor, stride: int) -> Tensor:
    """Vertex indices (P, 3) at the covered pixels, counted over meshes with `stride` vertices each."""
    image = covered // (triangle_ids.shape[1] * triangle_ids.shape[2])
    return triangles.long()[triangle_ids.reshape(-1)[covered]] + (image * stride)[:, None]


def _scatter(values: Tensor, covered: Tensor, shape: torch.Size) -> Tensor:
    """Put values (P, C) of the covered pixels into images (N, H, W, C) that are 0 elsewhere."""
    images = values.new_zeros(shape.numel(), values.shape[1])
    return images.index_put((covered,), values).reshape(*shape, values.shape[1])


# ---- backend "cpu": the same by compiled loops


class _Draw(Function):
    @staticmethod
    def forward(ctx, points: Tensor, depth: Tensor, triangles: Tensor, size: tuple[int, int]):
        from sgpn_arch.face3d.numba_loops import for_each
        from sgpn_arch.face3d.raster import rasterizer_cpu

        points, depth, triangles = points.contiguous(), depth.contiguous(), triangles.contiguous()
        shape = (len(points), *size)
        triangle_ids = torch.empty(shape, dtype=torch.int64)
        barycentrics = points.new_empty(*shape, 3)
        pixel_depth = points.new_empty(shape)
        tables = (points, depth, triangles, triangle_ids, barycentrics, pixel_depth)
        for_each(rasterizer_cpu.draw, _each_mesh(*tables, shared=(2,)))
        ctx.save_for_backward(points, depth, triangles, triangle_ids)
        ctx.mark_non_differentiable(triangle_ids)
        return triangle_ids, barycentrics, pixel_depth

    @staticmethod
    @once_differentiable
    def backward(ctx, _, grad_barycentrics: Tensor, grad_depth: Tensor):
        from sgpn_arch.face3d.numba_loops import for_each
        from sgpn_arch.face3d.raster import rasterizer_cpu

        points, depth, triangles, triangle_ids = ctx.saved_tensors
        given = grad_barycentrics.contiguous(), grad_depth.contiguous()
        found = torch.zeros_like(points), torch.zeros_like(depth)
        tables = (points, depth, triangles, triangle_ids, *given, *found)
        for_each(rasterizer_cpu.draw_backward, _each_mesh(*tables, shared=(2,)))
        return *found, None, None


class _Blend(Function):
    @staticmethod
    def forward(ctx, attributes: Tensor, barycentrics: Tensor, triangle_ids: Tensor, triangles: Tensor):
        from sgpn_arch.face3d.numba_loops import for_each
        from sgpn_arch.face3d.raster import rasterizer_cpu

        tensors = [t.contiguous() for t in (attributes, triangles, triangle_ids, barycentrics)]
        images = barycentrics.new_empty(*triangle_ids.shape, attributes.shape[-1])
        ctx.shared = (0, 1) if attributes.ndim == 2 else (1,)
        for_each(rasterizer_cpu.blend, _each_mesh(*tensors, images, shared=ctx.shared))
        ctx.save_for_backward(*tensors)
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_images: Tensor):
        from sgpn_arch.face3d.numba_loops import for_each
        from sgpn_arch.face3d.raster import rasterizer_cpu

        attributes, triangles, triangle_ids, barycentrics = ctx.saved_tensors
        # Attributes that the meshes share get one gradient from each, added up in the meshes' order.
        batch = len(grad_images)
        found = attributes.new_zeros(batch, *attributes.shape[-2:]), torch.zeros_like(barycentrics)
        tables = (attributes, triangles, triangle_ids, barycentrics, grad_images.contiguous(), *found)
        for_each(rasterizer_cpu.blend_backward, _each_mesh(*tables, shared=ctx.shared))
        return found[0].sum(0) if attributes.ndim == 2 else found[0], found[1], None, None


def _each_mesh(*tables: Tensor, shared: tuple[int, ...]) -> list[tuple]:
    """The arguments of the loops for each mesh, as numpy arrays; `shared` are the places of what is the same for all."""
    arrays = [table.detach().numpy() for table in tables]
    batch = len(next(array for place, array in enumerate(arrays) if place not in shared))
    return [tuple(a if place in shared else a[n] for place, a in enumerate(arrays)) for n in range(batch)]


# ---- backend "nvdiffrast"


def clip_positions(points: Tensor, depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Homogeneous clip-space positions (N, V, 4) of projected vertices, as OpenGL and nvdiffrast define them.

    points (N, V, 2) continuous pixels, depth (N, V), size (height, width). w is the depth times CLIP_SCALE; x/w and y/w run
    from -1 at the left and the top border to 1 (row 0 of nvdiffrast's image has y/w = -1, so y needs no
    flip); z/w runs from -1 just before the nearest to 1 just behind the farthest vertex in front of the
    camera. Differentiable.
    """
    height, width = size
    x = (2 * points[..., 0] / width - 1) * depth
    y = (2 * points[..., 1] / height - 1) * depth
    front = torch.where(depth.isfinite() & (depth > 0), depth, torch.nan).detach()
    near = front.nan_to_num(torch.inf).amin(1, keepdim=True) * (1 - CLIP_MARGIN)
    far = front.nan_to_num(0).amax(1, keepdim=True) * (1 + CLIP_MARGIN)
    z = ((far + near) * depth - 2 * far * near) / (far - near)
    return torch.stack([x, y, z, depth], 2) * CLIP_SCALE


def _rasterize_nvdiffrast(points: Tensor, depth: Tensor, triangles: Tensor, size: tuple[int, int]) -> Fragments:
    """All meshes in one call (nvdiffrast's instanced mode), in float32; the values are differentiable as elsewhere."""
    if not len(triangles) or not points.numel():  # which nvdiffrast refuses
        nothing = torch.full((len(points), *size), -1, device=points.device)
        return plain_fragments(points, depth, triangles, nothing)
    import nvdiffrast.torch as dr

    with torch.autocast("cuda", enabled=False):
        positions = clip_positions(points, depth, size).float().contiguous()
        faces = triangles.int().contiguous()
        seen, _ = dr.rasterize(_nvdiffrast_context(points.device), positions, faces, tuple(size), grad_db=False)
    triangle_ids = seen[..., 3].detach().long() - 1
    # Weights of the first and the second vertex, kept within 0..1 by nvdiffrast.
    u, v = seen[..., 0], seen[..., 1]
    weights = torch.stack([u, v, 1 - u - v], 3) * (triangle_ids >= 0)[..., None]
    barycentrics = weights.to(points.dtype)
    pixel_depth = plain_interpolate(depth[..., None], barycentrics, triangle_ids, triangles)
    return Fragments(triangle_ids, barycentrics, pixel_depth[..., 0])


_CONTEXTS = threading.local()


def _nvdiffrast_context(device: torch.device):
    """One context for each thread and device: making one costs far more than a rendering, and its buffers are its own."""
    import nvdiffrast.torch as dr

    contexts: dict = _CONTEXTS.__dict__
    if device not in contexts:
        contexts[device] = dr.RasterizeCudaContext(device=device)
    return contexts[device]
