"""Normals of a mesh's vertices, differentiable: the plain definition, and compiled loops for the CPU."""

import torch
from torch import Tensor, nn
from torch.autograd import Function


def vertex_normals(vertices: Tensor, triangles: Tensor, unit: bool = False) -> Tensor:
    """Unit vertex normals: the normalised sum of the normals of the triangles around each vertex.

    Float32 and float64 on the CPU run through compiled loops, which agree with :func:`plain_normals` but for rounding;
    second derivatives and everything else go through it.

    Args:
        vertices: (N, V, 3). triangles: (F, 3) int64, counter-clockwise seen from outside.
        unit: triangles add up equally, not weighted by their areas.

    Returns:
        (N, V, 3), 0 where a vertex has no triangles.
    """
    # What is compiled or exported cannot hold loops of numba.
    compiling = torch.compiler.is_compiling()
    if compiling or vertices.device.type != "cpu" or vertices.dtype not in (torch.float32, torch.float64):
        return plain_normals(vertices, triangles, unit)
    return _VertexNormals.apply(vertices, triangles, unit)


def plain_normals(vertices: Tensor, triangles: Tensor, unit: bool = False) -> Tensor:
    """The definition of :func:`vertex_normals` in PyTorch operations, for any device."""
    corner = vertices[:, triangles]
    # The cross product is as long as twice the triangle's area.
    face_normals = torch.linalg.cross(corner[:, :, 1] - corner[:, :, 0], corner[:, :, 2] - corner[:, :, 0])
    if unit:
        face_normals = nn.functional.normalize(face_normals, dim=2, eps=1e-12)
    summed = torch.zeros_like(vertices)
    for k in range(3):
        summed = summed.index_add(1, triangles[:, k], face_normals)
    return nn.functional.normalize(summed, dim=2, eps=1e-12)


class _VertexNormals(Function):
    @staticmethod
    def forward(ctx, vertices: Tensor, triangles: Tensor, unit: bool) -> Tensor:
        from sgpn_arch.face3d import numba_loops

        ctx.save_for_backward(vertices, triangles)
        ctx.unit = unit
        normals = torch.empty(vertices.shape, dtype=vertices.dtype)
        given, faces = vertices.detach().contiguous().numpy(), triangles.contiguous().numpy()
        jobs = [(mesh, faces, unit, out) for mesh, out in zip(given, normals.numpy(), strict=True)]
        numba_loops.for_each(numba_loops.vertex_normals, jobs)
        return normals

    @staticmethod
    def backward(ctx, grad: Tensor):
        vertices, triangles = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            normals = plain_normals(vertices, triangles, ctx.unit)
            return *torch.autograd.grad(normals, vertices, grad, create_graph=True), None, None
        from sgpn_arch.face3d import numba_loops

        found = torch.empty(vertices.shape, dtype=vertices.dtype)
        given, faces = vertices.detach().contiguous().numpy(), triangles.contiguous().numpy()
        meshes = zip(given, grad.contiguous().numpy(), found.numpy(), strict=True)
        jobs = [(mesh, faces, ctx.unit, upstream, out) for mesh, upstream, out in meshes]
        numba_loops.for_each(numba_loops.vertex_normals_backward, jobs)
        return found, None, None
