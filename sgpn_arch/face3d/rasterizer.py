"""Which triangle each pixel sees, and vertex attributes interpolated there: a hard z-buffer, differentiable.

Three ways give the same result: compiled loops for tensors on the CPU (`rasterizer_cpu.py`), nvdiffrast on
CUDA, and plain PyTorch for the values once the visible triangles are known, on any device. Visibility itself
has no gradient and there is no anti-aliasing, so the gradients say nothing about the silhouette.

Coordinates are continuous pixels: pixel (i, j) covers [i, i+1) x [j, j+1) and is sampled at its centre
(i + 0.5, j + 0.5); x runs right, y down. A triangle is drawn from both sides.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# The clip volume of nvdiffrast reaches this fraction beyond the nearest and the farthest vertex.
CLIP_MARGIN = 0.01


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
    backend: "cpu"; "nvdiffrast" (tensors on a CUDA device); "auto": nvdiffrast for CUDA tensors where it is
        installed, else cpu. The cpu backend also serves tensors on other devices: then only visibility is
        computed on the host.

    Triangles with a vertex that is not finite or has depth <= 0, and those of no area, are not drawn
    (nvdiffrast clips at the nearest positive depth instead). A pixel centre on an edge belongs to the
    triangle, so meshes have no cracks. The nearest triangle wins; equally near, the lowest index (nvdiffrast
    settles ties and edges in its own way). Half precision is computed in float32. First derivatives only on
    the CPU.

    Raises ValueError for shapes that do not fit, a vertex index out of range or an unknown backend, and
    ImportError where nvdiffrast is asked for but not installed.
    """
    _check(points, depth, triangles)
    dtype = torch.promote_types(torch.promote_types(points.dtype, depth.dtype), torch.float32)
    points, depth, triangles = points.to(dtype), depth.to(dtype), triangles.long()
    if _choose_backend(backend, points) == "nvdiffrast":
        return _rasterize_nvdiffrast(points, depth, triangles, size)
    if points.device.type == "cpu":
        return Fragments(*_Draw.apply(points, depth, triangles, size))
    with torch.no_grad():
        triangle_ids, _, _ = _Draw.apply(points.cpu(), depth.cpu(), triangles.cpu(), size)
    return plain_fragments(points, depth, triangles, triangle_ids.to(points.device))


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
    if backend not in ("auto", "cpu", "nvdiffrast"):
        raise ValueError(f"rasterizer backend {backend!r} is unknown: use 'auto', 'cpu' or 'nvdiffrast'")
    if backend == "cpu" or (backend == "auto" and not points.is_cuda):
        return "cpu"
    installed = find_spec("nvdiffrast") is not None
    if backend == "auto":
        return "nvdiffrast" if installed else "cpu"
    if not installed:
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
        from sgpn_arch.face3d import rasterizer_cpu

        points, depth, triangles = points.contiguous(), depth.contiguous(), triangles.contiguous()
        shape = (len(points), *size)
        triangle_ids = torch.full(shape, -1)
        barycentrics = points.new_zeros(*shape, 3)
        pixel_depth = points.new_zeros(shape)
        for n in range(len(points)):
            arrays = (points[n], depth[n], triangles, triangle_ids[n], barycentrics[n], pixel_depth[n])
            rasterizer_cpu.draw(*map(_numpy, arrays))
        ctx.save_for_backward(points, depth, triangles, triangle_ids)
        ctx.mark_non_differentiable(triangle_ids)
        return triangle_ids, barycentrics, pixel_depth

    @staticmethod
    @once_differentiable
    def backward(ctx, _, grad_barycentrics: Tensor, grad_depth: Tensor):
        from sgpn_arch.face3d import rasterizer_cpu

        points, depth, triangles, triangle_ids = ctx.saved_tensors
        given = grad_barycentrics.contiguous(), grad_depth.contiguous()
        found = torch.zeros_like(points), torch.zeros_like(depth)
        for n in range(len(points)):
            inputs = (points[n], depth[n], triangles, triangle_ids[n])
            grads = (gradient[n] for gradient in (*given, *found))
            rasterizer_cpu.draw_backward(*map(_numpy, inputs), *map(_numpy, grads))
        return *found, None, None


class _Blend(Function):
    @staticmethod
    def forward(ctx, attributes: Tensor, barycentrics: Tensor, triangle_ids: Tensor, triangles: Tensor):
        from sgpn_arch.face3d import rasterizer_cpu

        tensors = [t.contiguous() for t in (attributes, barycentrics, triangle_ids, triangles)]
        attributes, barycentrics, triangle_ids, triangles = tensors
        images = barycentrics.new_zeros(*triangle_ids.shape, attributes.shape[-1])
        for n, image in enumerate(images):
            arrays = (_mesh(attributes, n), triangles, triangle_ids[n], barycentrics[n], image)
            rasterizer_cpu.blend(*map(_numpy, arrays))
        ctx.save_for_backward(*tensors)
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_images: Tensor):
        from sgpn_arch.face3d import rasterizer_cpu

        attributes, barycentrics, triangle_ids, triangles = ctx.saved_tensors
        found = torch.zeros_like(attributes), torch.zeros_like(barycentrics)
        for n, grad in enumerate(grad_images.contiguous()):
            inputs = (_mesh(attributes, n), triangles, triangle_ids[n], barycentrics[n])
            grads = (grad, _mesh(found[0], n), found[1][n])
            rasterizer_cpu.blend_backward(*map(_numpy, inputs), *map(_numpy, grads))
        return *found, None, None


def _mesh(attributes: Tensor, n: int) -> Tensor:
    """The attributes (V, C) of mesh n, which may be those of all."""
    return attributes[n] if attributes.ndim == 3 else attributes


def _numpy(tensor: Tensor):
    return tensor.detach().numpy()


# ---- backend "nvdiffrast"


def clip_positions(points: Tensor, depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Homogeneous clip-space positions (N, V, 4) of projected vertices, as OpenGL and nvdiffrast define them.

    points (N, V, 2) continuous pixels, depth (N, V), size (height, width). w is the depth; x/w and y/w run
    from -1 at the left and the top border to 1 (row 0 of nvdiffrast's image has y/w = -1, so y needs no
    flip); z/w runs from -1 just before the nearest to 1 just behind the farthest vertex in front of the
    camera. Differentiable.
    """
    height, width = size
    x = (2 * points[..., 0] / width - 1) * depth
    y = (2 * points[..., 1] / height - 1) * depth
    front = depth.detach()
    near = torch.where(front > 0, front, torch.inf).amin(1, keepdim=True) * (1 - CLIP_MARGIN)
    far = front.amax(1, keepdim=True) * (1 + CLIP_MARGIN)
    z = ((far + near) * depth - 2 * far * near) / (far - near)
    return torch.stack([x, y, z, depth], 2)


def _rasterize_nvdiffrast(points: Tensor, depth: Tensor, triangles: Tensor, size: tuple[int, int]) -> Fragments:
    import nvdiffrast.torch as dr

    positions = clip_positions(points, depth, size).float().contiguous()
    context = _nvdiffrast_context(points.device)
    faces = triangles.int().contiguous()
    seen, _ = dr.rasterize(context, positions, faces, resolution=list(size), grad_db=False)
    triangle_ids = seen[..., 3].detach().long() - 1
    u, v = seen[..., 0], seen[..., 1]
    barycentrics = torch.stack([u, v, 1 - u - v], 3) * (triangle_ids >= 0)[..., None]
    pixel_depth = plain_interpolate(depth[..., None], barycentrics, triangle_ids, triangles)
    return Fragments(triangle_ids, barycentrics, pixel_depth[..., 0])


@cache
def _nvdiffrast_context(device: torch.device):
    """One context for each device: making one costs far more than a rendering."""
    import nvdiffrast.torch as dr

    return dr.RasterizeCudaContext(device=device)
