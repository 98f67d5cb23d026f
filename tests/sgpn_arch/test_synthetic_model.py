"""The random morphable model: of the size asked for, a proper mesh, and the same for the same seed."""

import pytest
import torch

from oracles.synthetic_model import BFM_DIMS, BFM_VERTICES, synthetic_model


def test_is_as_large_as_the_basel_model():
    model = synthetic_model()
    assert (len(model.shape_mean), model.dims) == (BFM_VERTICES, BFM_DIMS)
    assert abs(len(model.triangles) - 70789) < 100


@pytest.mark.parametrize("vertices", [1000, 5003])
def test_is_one_proper_surface_that_faces_the_viewer(vertices):
    model = synthetic_model(vertices, dims=(3, 2, 1))
    triangles = model.triangles
    assert len(model.shape_mean) == vertices and torch.equal(triangles.unique(), torch.arange(vertices))
    sides = torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    assert len(sides.unique(dim=0)) == len(sides)  # neighbours run along their common side in opposite directions
    assert (model.normals(model.shape_mean[None])[..., 2] > 0).all()
    eyes, nose = model.reference5[:2], model.reference5[2]
    assert eyes[0, 0] < 0 < eyes[1, 0] and nose[2] > eyes[:, 2].max()


def test_seed_decides():
    one, same, other = (synthetic_model(1000, dims=(3, 2, 1), seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
