"""Compiled vertex normals against their plain definition: values, first and second gradients, odd meshes."""

import pytest
import torch

from oracles.synthetic_model import synthetic_model
from sgpn_arch.face3d.normals import plain_normals, vertex_normals

TOLERANCE = {torch.float32: dict(rtol=1e-4, atol=2e-5), torch.float64: dict(rtol=1e-9, atol=1e-9)}


@pytest.fixture(scope="module")
def mesh():
    model = synthetic_model(1000, dims=(2, 2, 2))
    return model.shape(torch.randn(3, 2), torch.randn(3, 2)), model.triangles


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_and_gradients_are_those_of_the_definition(mesh, dtype, unit):
    vertices = mesh[0].to(dtype).requires_grad_()
    weights = torch.randn(vertices.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    results = [function(vertices, mesh[1], unit) for function in (vertex_normals, plain_normals)]
    torch.testing.assert_close(*results, **TOLERANCE[dtype])
    assert results[0].dtype == dtype
    ours, plain = (torch.autograd.grad((result * weights).sum(), vertices)[0] for result in results)
    scale = plain.abs().max()
    torch.testing.assert_close(ours / scale, plain / scale, **TOLERANCE[dtype])


@pytest.mark.parametrize("unit", [False, True])
def test_degenerate_triangles_and_loose_vertices(unit):
    """Points, needles and a lone vertex: where the definition is finite, so are the loops, and they agree."""
    generator = torch.Generator().manual_seed(1)
    vertices = torch.randn(1, 6, 3, generator=generator, dtype=torch.float64)
    triangles = torch.tensor([[0, 1, 2], [0, 0, 1], [2, 2, 2], [0, 2, 3], [3, 1, 0]])  # vertices 4 and 5 are loose
    vertices.requires_grad_()
    results = [function(vertices, triangles, unit) for function in (vertex_normals, plain_normals)]
    torch.testing.assert_close(*results)
    assert not results[0][0, 4:].any()
    ours, plain = (torch.autograd.grad((result**3).sum(), vertices)[0] for result in results)
    torch.testing.assert_close(ours, plain)


def test_second_gradients_go_through_the_definition(mesh):
    vertices = mesh[0][:1].double().requires_grad_()
    found = []
    for function in (vertex_normals, plain_normals):
        (grad,) = torch.autograd.grad((function(vertices, mesh[1]) ** 3).sum(), vertices, create_graph=True)
        found.append(torch.autograd.grad((grad**2).sum(), vertices)[0])
    torch.testing.assert_close(*found)


def test_other_layouts_and_precisions(mesh):
    vertices, triangles = mesh
    expected = plain_normals(vertices, triangles)
    strided = vertices.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    torch.testing.assert_close(vertex_normals(strided, triangles), expected, rtol=1e-4, atol=2e-5)
    assert vertex_normals(vertices.bfloat16(), triangles).dtype == torch.bfloat16
    assert vertex_normals(vertices[:0], triangles).shape == (0, *vertices.shape[1:])
