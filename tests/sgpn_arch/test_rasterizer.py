"""The rasteriser against a brute-force one, finite differences and plain pinhole geometry."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from oracles import rasterizer as oracle
from sgpn_arch.face3d.raster import rasterizer
from sgpn_arch.face3d.raster.rasterizer import clip_positions, interpolate, rasterize

SIZE = (11, 14)
TRIANGLE = torch.tensor([[0, 1, 2]])


def random_mesh(seed, vertices=20, faces=15, batch=1, margin=4.0, dtype=torch.float64):
    """Random triangles that overlap each other and the image's border."""
    rng = np.random.default_rng(seed)
    span = np.array([SIZE[1], SIZE[0]]) + 2 * margin
    points = rng.uniform(0, 1, (batch, vertices, 2)) * span - margin
    depth = rng.uniform(2, 9, (batch, vertices))
    triangles = np.stack([rng.permutation(vertices)[:3] for _ in range(faces)])
    return torch.tensor(points, dtype=dtype), torch.tensor(depth, dtype=dtype), torch.tensor(triangles)


def grid_mesh(rows, columns, step):
    """A plane of squares cut along a diagonal, its first vertex at (0.5, 0.5)."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    points = torch.stack([x, y], -1).reshape(1, -1, 2) * step + 0.5
    corner = (torch.arange(rows - 1)[:, None] * columns + torch.arange(columns - 1)).reshape(-1, 1)
    lower = corner + torch.tensor([0, 1, columns])
    upper = corner + torch.tensor([1, columns + 1, columns])
    return points.float(), torch.cat([lower, upper])


def draw_one(points, depth, triangles=TRIANGLE, size=SIZE):
    return rasterize(torch.tensor([points]).float(), torch.tensor([depth]).float(), triangles, size)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_brute_force(seed, dtype, backend):
    points, depth, triangles = random_mesh(seed, dtype=dtype)
    seen = rasterize(points, depth, triangles, SIZE, backend)
    ids, barycentrics, pixel_depth = oracle.rasterize(points[0].numpy(), depth[0].numpy(), triangles.numpy(), SIZE)
    assert seen.triangle_ids.dtype == torch.int64 and seen.depth.dtype == dtype
    np.testing.assert_array_equal(seen.triangle_ids[0], ids)
    np.testing.assert_allclose(seen.barycentrics[0], barycentrics, atol=1e-5 if dtype == torch.float32 else 1e-11)
    np.testing.assert_allclose(seen.depth[0], pixel_depth, rtol=1e-5 if dtype == torch.float32 else 1e-11)
    assert (ids >= 0).mean() > 0.3


# Half of the lines through these points run through pixel centres.
coordinate = st.integers(-6, 34).map(lambda n: n / 2)
depths = st.sampled_from([1.0, 2.0, 3.0, 5.0])
odd_coordinate = st.sampled_from([2.0**24, -(2.0**24), float("nan"), float("inf")])
odd_depth = st.sampled_from([0.0, -1.0, -4.0, float("nan"), float("inf")])
VERTICES = {
    "plain": st.tuples(coordinate, coordinate, depths),
    "odd points": st.tuples(*[st.one_of(*[coordinate] * 5, odd_coordinate)] * 2, depths),
    "odd depths": st.tuples(coordinate, coordinate, st.one_of(depths, depths, odd_depth)),
}


@pytest.mark.parametrize("kind", VERTICES)
@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_edges_ties_and_what_cannot_be_drawn_are_decided_exactly(kind, data, dtype):
    """Vertices on half pixels: centres on edges and corners, equal depths, both windings, no area, huge, not finite."""
    vertices = data.draw(st.lists(VERTICES[kind], min_size=5, max_size=7))
    index = st.integers(0, len(vertices) - 1)
    check_exactly(vertices, data.draw(st.lists(st.tuples(index, index, index), min_size=3, max_size=8)), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearly_equal_depths_are_a_tie(dtype):
    """So large that one corner of another depth moves the depth here by 2e-15 of it: less than is told apart."""
    far = 2.0**24
    vertices = [(1.0, 0.0, 2.0), (0.0, 0.0, 1.0), (far, 0.0, 1.0), (0.0, far, 1.0), (-far, far, 1.0)]
    check_exactly(vertices, [(0, 0, 0), (0, 3, 4), (0, 2, 4)], dtype)
    check_exactly(vertices, [(0, 2, 4), (0, 3, 4)], dtype)


def check_exactly(vertices, triangles, dtype, size=(8, 9)):
    points, depth = [v[:2] for v in vertices], [v[2] for v in vertices]
    tensors = torch.tensor(points, dtype=dtype)[None], torch.tensor(depth, dtype=dtype)[None], torch.tensor(triangles)
    ids, barycentrics, pixel_depth = oracle.rasterize_exactly(points, depth, triangles, size)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for backend in ("cpu", "torch"):
        seen = rasterize(*tensors, size, backend)
        np.testing.assert_array_equal(seen.triangle_ids[0], ids)
        np.testing.assert_allclose(seen.barycentrics[0], barycentrics, atol=tolerance)
        np.testing.assert_allclose(seen.depth[0], pixel_depth, rtol=tolerance)


@pytest.mark.parametrize("seed", range(4))
def test_triangulation_covers_every_pixel_exactly_once(seed):
    """No centre lies on an edge here, so drawing the triangles one by one must count each pixel once."""
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.uniform(-2, 16, (40, 2)), [[-9, -9], [30, -9], [-9, 30], [30, 30]]]).astype(np.float32)
    triangles = torch.tensor(Delaunay(points.astype(np.float64)).simplices).long()
    count = sum(
        rasterize(torch.tensor(points)[None], torch.ones(1, len(points)), triangle[None], SIZE).triangle_ids[0] >= 0
        for triangle in triangles
    )
    assert (count == 1).all()
    together = rasterize(torch.tensor(points)[None], torch.ones(1, len(points)), triangles, SIZE).triangle_ids[0]
    x, y = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5)
    np.testing.assert_array_equal(together, Delaunay(points.astype(np.float64)).find_simplex(np.stack([x, y], -1)))


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0, 1 / 3, 1.7])
def test_mesh_has_no_cracks(step):
    count = int(9 / step) + 1
    points, triangles = grid_mesh(count, count, step)
    depth = torch.full(points.shape[:2], 3.0)
    seen = rasterize(points, depth, triangles, (9, 9))
    assert (seen.triangle_ids >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_fan_of_triangles_has_no_cracks(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
    rim = 20 * np.stack([np.cos(angles), np.sin(angles)], 1) + 5
    centre = np.array([[5.5, 5.5]]) + (seed > 0) * rng.normal(0, 1e-6, (1, 2))
    points = torch.tensor(np.concatenate([centre, rim])[None], dtype=torch.float32)
    spokes = torch.arange(40)
    triangles = torch.stack([0 * spokes, spokes + 1, (spokes + 1) % 40 + 1], 1)
    seen = rasterize(points, torch.ones(1, 41), triangles, (10, 10))
    assert (seen.triangle_ids >= 0).all()


def test_lowest_index_wins_on_a_shared_slanted_edge():
    """Both triangles have the edge's depth, but for rounding: which one wins must not depend on that."""
    points, triangles = grid_mesh(2, 2, 32.0)
    points[0, 0] = torch.tensor([3.7, 5.1])  # triangles of two sizes, so that they round differently
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        depth = torch.rand(1, 4, generator=generator) * 5 + 2
        for order in (triangles, triangles.flip(0)):
            ids = rasterize(points, depth, order, (33, 33)).triangle_ids[0]
            assert (ids.flip(1).diagonal() == 0).all()


@pytest.mark.parametrize(
    "bad",
    [
        ([[1.5, 1.5], [5.5, 5.5], [9.5, 9.5]], [1.0, 1.0, 1.0]),  # on a line, through pixel centres
        ([[1.5, 1.5], [1.5, 1.5], [9.5, 2.5]], [1.0, 1.0, 1.0]),  # two equal vertices
        ([[4.5, 4.5]] * 3, [1.0, 1.0, 1.0]),  # a point
        ([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]], [1.0, 0.0, 1.0]),  # at the camera
        ([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]], [1.0, -2.0, 1.0]),  # behind it
        ([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]], [1.0, float("nan"), 1.0]),
        ([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]], [1.0, float("inf"), 1.0]),
        ([[0.0, float("nan")], [20.0, 0.0], [0.0, 20.0]], [1.0, 1.0, 1.0]),
        ([[0.0, 0.0], [float("inf"), 0.0], [0.0, 20.0]], [1.0, 1.0, 1.0]),
        ([[-9.0, 0.0], [-1.0, 0.0], [-3.0, 20.0]], [1.0, 1.0, 1.0]),  # off the screen
        ([[1e30, 1e30], [2e30, 1e30], [1e30, 3e30]], [1.0, 1.0, 1.0]),
    ],
)
def test_triangles_that_cannot_be_seen_are_skipped(bad):
    points, depth = bad
    seen = draw_one(points, depth)
    assert (seen.triangle_ids == -1).all()
    assert not seen.barycentrics.any() and not seen.depth.any()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(-40, 60, width=32)] * 2, st.floats(0.125, 100, width=32)),
        min_size=3,
        max_size=9,
    )
)
def test_barycentrics_are_weights_that_give_the_depth(vertices):
    table = torch.tensor(vertices)[None]
    points, depth = table[..., :2], table[..., 2]
    start = torch.arange(len(vertices) - 2)
    triangles = torch.stack([start, start + 1, start + 2], 1)
    seen = rasterize(points, depth, triangles, SIZE)
    covered = seen.triangle_ids >= 0
    weights = seen.barycentrics[covered]
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    blended = interpolate(depth[..., None], seen, triangles)[..., 0]
    torch.testing.assert_close(blended, seen.depth, rtol=1e-5, atol=0)
    assert not seen.barycentrics[~covered].any()


def test_perspective_is_that_of_a_pinhole_camera():
    """The point in space at the blended vertices must project to the pixel's centre."""
    generator = torch.Generator().manual_seed(0)
    vertices = torch.rand(1, 30, 3, generator=generator, dtype=torch.float64) * 4 - 2
    depth = vertices[..., 2] + 5
    points = vertices[..., :2] / depth[..., None] * 12 + 6
    triangles = torch.arange(30).view(10, 3)
    seen = rasterize(points, depth, triangles, SIZE)
    space = interpolate(vertices, seen, triangles)
    projected = space[..., :2] / (space[..., 2:] + 5) * 12 + 6
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    covered = seen.triangle_ids >= 0
    centres = (torch.stack([columns, rows], -1) + 0.5)[None].double()
    assert covered.any()
    torch.testing.assert_close(projected[covered], centres[covered])


def test_batch_equals_singles():
    points, depth, triangles = random_mesh(7, batch=3)
    colors = torch.rand(3, 20, 5, dtype=torch.float64)
    seen = rasterize(points, depth, triangles, SIZE)
    image = interpolate(colors, seen, triangles)
    for n in range(3):
        one = rasterize(points[n : n + 1], depth[n : n + 1], triangles, SIZE)
        assert torch.equal(one.triangle_ids[0], seen.triangle_ids[n])
        assert torch.equal(one.depth[0], seen.depth[n])
        assert torch.equal(interpolate(colors[n : n + 1], one, triangles)[0], image[n])


@pytest.mark.parametrize("shared", [False, True])
def test_interpolation_is_the_weighted_sum_of_the_vertices(shared):
    points, depth, triangles = random_mesh(8, batch=2)
    seen = rasterize(points, depth, triangles, SIZE)
    colors = torch.rand(*(() if shared else (2,)), 20, 3, dtype=torch.float64)
    image = interpolate(colors, seen, triangles)
    for n, row, column in np.ndindex(2, *SIZE):
        expected, face = np.zeros(3), seen.triangle_ids[n, row, column]
        if face >= 0:
            corners = (colors if shared else colors[n])[triangles[face]].numpy()
            expected = sum(w * c for w, c in zip(seen.barycentrics[n, row, column].numpy(), corners, strict=True))
        np.testing.assert_allclose(image[n, row, column], expected, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_against_finite_differences(shared):
    points, depth, triangles = random_mesh(5, vertices=9, faces=4, batch=2)
    colors = torch.rand(*(() if shared else (2,)), 9, 3, dtype=torch.float64)

    def draw(points, depth, colors):
        seen = rasterize(points, depth, triangles, (6, 7))
        return interpolate(colors, seen, triangles), seen.barycentrics, seen.depth

    inputs = [t.requires_grad_() for t in (points, depth, colors)]
    assert torch.autograd.gradcheck(draw, inputs, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_loops_agree_with_plain_pytorch(dtype):
    points, depth, triangles = random_mesh(6, batch=2, dtype=dtype)
    colors = torch.rand(2, 20, 4, dtype=dtype)
    inputs = [t.requires_grad_() for t in (points, depth, colors)]
    fast = rasterize(points, depth, triangles, SIZE)
    plain = rasterizer.plain_fragments(points, depth, triangles, fast.triangle_ids)
    fast_image = interpolate(colors, fast, triangles)
    plain_image = rasterizer.plain_interpolate(colors, plain.barycentrics, plain.triangle_ids, triangles)
    results = [(fast_image, fast.depth), (plain_image, plain.depth)]
    upstream = [torch.randn_like(t) for t in results[0]]
    fast_grads, plain_grads = (torch.autograd.grad(r, inputs, upstream) for r in results)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    for fast_value, plain_value in zip((*results[0], *fast_grads), (*results[1], *plain_grads), strict=True):
        torch.testing.assert_close(fast_value, plain_value, **tolerance)


def test_other_layouts_and_types_are_accepted():
    points, depth, triangles = random_mesh(2, batch=2, dtype=torch.float32)
    seen = rasterize(points, depth, triangles, SIZE)
    strided = rasterize(points.permute(2, 1, 0).contiguous().permute(2, 1, 0), depth, triangles.int(), SIZE)
    assert torch.equal(seen.triangle_ids, strided.triangle_ids)
    assert rasterize(points.half(), depth.half(), triangles, SIZE).depth.dtype == torch.float32


def test_nothing_to_draw():
    seen = rasterize(torch.zeros(2, 4, 2), torch.ones(2, 4), torch.zeros(0, 3, dtype=torch.int64), SIZE)
    image = interpolate(torch.ones(4, 3), seen, torch.zeros(0, 3, dtype=torch.int64))
    assert (seen.triangle_ids == -1).all() and image.shape == (2, *SIZE, 3) and not image.any()


def test_mistakes_are_named():
    points, depth, triangles = random_mesh(1)
    with pytest.raises(ValueError, match="another mesh"):
        rasterize(points, depth, triangles + 20, SIZE)
    with pytest.raises(ValueError, match="another mesh"):
        interpolate(torch.zeros(4, 3), rasterize(points, depth, triangles, SIZE), triangles)
    with pytest.raises(ValueError, match="depth must have shape"):
        rasterize(points, depth[:, 1:], triangles, SIZE)
    with pytest.raises(ValueError, match="'opengl' is unknown"):
        rasterize(points, depth, triangles, SIZE, backend="opengl")


def test_missing_nvdiffrast_says_what_to_install(monkeypatch):
    monkeypatch.setattr(rasterizer, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install"):
        rasterize(*random_mesh(1), SIZE, backend="nvdiffrast")


def test_numba_is_imported_at_the_first_drawing_only():
    code = "import sys, sgpn_arch.face3d.raster.rasterizer; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_clip_positions_are_those_of_a_frustum():
    """Pinhole projection by a 4x4 matrix, composed independently from intrinsics, must give the same positions."""
    height, width, focal, centre = 20, 30, 25.0, (13.0, 11.0)
    generator = torch.Generator().manual_seed(0)
    space = torch.rand(1, 50, 3, generator=generator, dtype=torch.float64) * 3 + torch.tensor([-1.0, -1.0, 4.0])
    points = space[..., :2] * focal / space[..., 2:] + torch.tensor(centre)
    clip = clip_positions(points, space[..., 2], (height, width)) / rasterizer.CLIP_SCALE
    matrix = torch.tensor(
        [
            [2 * focal / width, 0, 2 * centre[0] / width - 1],
            [0, 2 * focal / height, 2 * centre[1] / height - 1],
            [0, 0, 1],
        ]
    ).double()
    torch.testing.assert_close(clip[..., [0, 1, 3]], space @ matrix.T)
    normalised = clip[..., 2] / clip[..., 3]
    assert (normalised.abs() < 1).all()
    assert torch.equal(normalised.argsort(), space[..., 2].argsort())


def test_clip_volume_leaves_out_what_is_behind_the_camera():
    clip = clip_positions(torch.zeros(1, 3, 2), torch.tensor([[-3.0, 2.0, 4.0]]), SIZE)
    inside = clip[..., 2].abs() <= clip[..., 3]
    assert inside.tolist() == [[False, True, True]]
    depth = torch.tensor([[float("nan"), float("inf"), 2.0, 4.0]])
    assert (clip_positions(torch.zeros(1, 4, 2), depth, SIZE)[:, 2:, 2].abs() <= clip[:, 1:, 3]).all()
