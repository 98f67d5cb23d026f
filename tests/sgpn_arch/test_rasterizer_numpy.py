"""The rasteriser in NumPy sees what the compiled loops see, which have tests of their own."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpn_arch.face3d.raster.rasterizer import interpolate, rasterize
from sgpn_arch.face3d.raster.rasterizer_numpy import draw


def by_loops(points, depth, colors, triangles, size):
    given = [torch.from_numpy(each) for each in (points, depth, triangles)]
    fragments = rasterize(given[0][None], given[1][None], given[2], size, "cpu")
    image = interpolate(torch.from_numpy(colors)[None], fragments, given[2]).clamp(0, 1)
    return torch.cat([image[0].permute(2, 0, 1), (fragments.triangle_ids >= 0).float()]).numpy()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(9, 14), (16, 16), (40, 23)]), st.booleans())
def test_it_draws_what_the_loops_draw(seed, size, whole):
    """Triangles of all sizes, across the border and behind each other; with ``whole``, on whole pixels, where ties are."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-5, 45, (30, 2)).astype(np.float32)
    depth = rng.uniform(1, 3, 30).astype(np.float32)
    if whole:
        points, depth = np.round(points), np.round(depth)
    triangles = rng.integers(0, 30, (50, 3))
    mesh = points, depth, rng.uniform(-0.2, 1.2, (30, 3)).astype(np.float32), triangles
    np.testing.assert_allclose(draw(*mesh, size), by_loops(*mesh, size), atol=2e-6)


def test_vertices_that_are_not_finite_or_behind_the_camera_are_not_drawn():
    points = np.array([[0, 0], [8, 0], [0, 8], [np.nan, 8]], np.float32)
    colors, triangles = np.ones((4, 3), np.float32), np.array([[0, 1, 2], [0, 1, 3]])
    seen = draw(points, np.ones(4, np.float32), colors, triangles, (8, 8))
    assert np.array_equal(seen, by_loops(points, np.ones(4, np.float32), colors, triangles, (8, 8))) and seen[3].any()
    for wrong in (0, -1, np.nan, np.inf):
        assert not draw(points, np.array([1, wrong, 1, 1], np.float32), colors, triangles, (8, 8)).any()


def test_nothing_is_drawn_of_no_triangles():
    nothing = np.zeros((3, 2), np.float32), np.ones(3, np.float32), np.ones((3, 3), np.float32)
    assert not draw(*nothing, np.zeros((0, 3), np.int64), (5, 5)).any()
