"""The rasteriser's other ways: PyTorch operations, threads, compiled code between runs, and the calls to nvdiffrast."""

import multiprocessing
import subprocess
import sys
import types

import pytest
import torch

from oracles.synthetic_model import synthetic_model
from sgpn_arch.face3d import numba_loops
from sgpn_arch.face3d.raster import rasterizer, rasterizer_cpu
from sgpn_arch.face3d.raster.rasterizer import interpolate, rasterize
from sgpn_arch.face3d.raster.visibility import visible_triangles

SIZE = (60, 76)


@pytest.fixture(scope="module")
def model():
    return synthetic_model(3000, dims=(4, 3, 2))


def project(model, batch, dtype=torch.float32, seed=0):
    """Turned meshes, which hide parts of themselves, on an image of SIZE: points, depth, colours."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -0.1, 0.9], [0.1, 0, 0.3], [-0.9, -0.3, 0]]).double())
    shape = model.shape(torch.randn(batch, 4, generator=generator), torch.randn(batch, 3, generator=generator))
    vertices = shape.double() @ turn
    depth = 10 - vertices[..., 2]
    points = vertices[..., :2] * torch.tensor([1.0, -1.0]) / depth[..., None] * 260 + torch.tensor([38.0, 30.0])
    return points.to(dtype), depth.to(dtype), torch.rand(batch, len(model.shape_mean), 3, generator=generator).to(dtype)


def picture_and_gradients(inputs, triangles, size=SIZE, backend="auto"):
    points, depth, colors = (value.clone().requires_grad_() for value in inputs)
    seen = rasterize(points, depth, triangles, size, backend)
    image = interpolate(colors, seen, triangles)
    weights = torch.rand(image.shape, generator=torch.Generator().manual_seed(9), dtype=image.dtype).to(image.device)
    loss = (image * weights).sum() + (seen.depth * weights[..., 0]).sum()
    return [
        seen.triangle_ids,
        seen.barycentrics,
        seen.depth,
        image,
        *torch.autograd.grad(loss, (points, depth, colors)),
    ]


# ---- PyTorch operations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pytorch_operations_see_what_the_loops_see(model, dtype):
    inputs = project(model, 3, dtype)
    loops, operations = (picture_and_gradients(inputs, model.triangles, backend=b) for b in ("cpu", "torch"))
    assert torch.equal(loops[0], operations[0]) and (loops[0] >= 0).float().mean() > 0.2
    for ours, theirs in zip(operations[1:], loops[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 50, 3000])
def test_memory_limit_does_not_change_what_is_seen(model, rows):
    triangles = model.triangles[:: 1 if rows > 1 else 40]
    points, depth, _ = project(model, 2)
    whole = visible_triangles(points, depth, triangles, SIZE)
    assert torch.equal(visible_triangles(points, depth, triangles, SIZE, rows), whole)


def test_ties_between_portions_go_to_the_lowest_index():
    """One triangle many times over, so that each portion brings the same depth again."""
    points, depth = torch.tensor([[[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]]), torch.tensor([[2.0, 3.0, 4.0]])
    triangles = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1]]).repeat(4, 1)
    assert set(visible_triangles(points, depth, triangles, (9, 9), rows=100).unique().tolist()) == {-1, 0}


# ---- threads


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_change_no_bit(model, set_threads):
    inputs = project(model, 5)
    shared = (*inputs[:2], inputs[2][0])  # colours that the meshes share
    vertices = model.shape(torch.randn(5, 4), torch.randn(5, 3))

    def results():
        leaf = vertices.clone().requires_grad_()
        normals = model.normals(leaf)
        (grad,) = torch.autograd.grad((normals**3).sum(), leaf)
        return [*picture_and_gradients(inputs, model.triangles), *picture_and_gradients(shared, model.triangles), grad]

    set_threads(1)
    alone = results()
    for threads in (2, 3, 8):
        set_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(results(), alone, strict=True))


def test_jobs_run_at_the_same_time_and_their_errors_arrive(set_threads):
    import threading

    set_threads(2)
    meeting = threading.Barrier(2, timeout=20)
    numba_loops.for_each(lambda number: meeting.wait(), [(0,), (1,)])  # alone, each would wait for the other
    with pytest.raises(ZeroDivisionError):
        numba_loops.for_each(lambda number: 1 // number, [(1,), (0,)])


def _in_child(queue):
    done = []
    numba_loops.for_each(done.append, [(0,), (1,), (2,)])
    queue.put(sorted(done))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_forked_processes_start_threads_of_their_own(set_threads):
    set_threads(2)
    numba_loops.for_each(len, [("a",), ("b",)])
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue,), daemon=True)
    child.start()
    child.join(20)
    alive = child.is_alive()
    child.kill()
    assert not alive and queue.get() == [0, 1, 2]


# ---- compiled code


def test_sizes_and_batches_compile_nothing_new(model):
    loops = [rasterizer_cpu.draw, rasterizer_cpu.draw_backward, rasterizer_cpu.blend, rasterizer_cpu.blend_backward]
    loops += [numba_loops.vertex_normals, numba_loops.vertex_normals_backward]
    model.normals(torch.randn(1, 3000, 3, requires_grad=True)).sum().backward()
    picture_and_gradients(project(model, 1), model.triangles)
    before = [len(loop.signatures) for loop in loops]
    for batch, size in ((1, (7, 9)), (2, (64, 32)), (3, (1, 1))):
        inputs = project(model, batch)
        picture_and_gradients(inputs, model.triangles[: 100 * batch], size)
        picture_and_gradients((*inputs[:2], inputs[2][0]), model.triangles, size)
        model.normals(torch.randn(batch, 3000, 3, requires_grad=True)).sum().backward()
    assert [len(loop.signatures) for loop in loops] == before
    assert all(count <= 2 for count in before)  # float32, and float64 from other tests


UNWRITABLE = """
import numba.core.caching as caching
def refuse(self):
    raise OSError("read-only file system")
caching._CacheLocator.ensure_cache_path = refuse
import torch
from sgpn_arch.face3d.raster.rasterizer import rasterize
points = torch.tensor([[[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]])
seen = rasterize(points, torch.ones(1, 3), torch.tensor([[0, 1, 2]]), (4, 4))
assert (seen.triangle_ids == 0).all()
"""


def test_draws_where_no_folder_can_keep_compiled_code():
    subprocess.run([sys.executable, "-c", UNWRITABLE], env={"PYTHONPATH": ":".join(sys.path)}, check=True)


def test_compiled_code_is_kept_where_numba_is_told_to(tmp_path):
    code = UNWRITABLE[UNWRITABLE.index("import torch") :]
    environment = {"PYTHONPATH": ":".join(sys.path), "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.rglob("*.nbi"))


# ---- nvdiffrast, acted by a module that keeps to its documentation


class ActedContext:
    def __init__(self, device):
        self.device = device


def acted_nvdiffrast(calls):
    """rasterize(context, pos, tri, resolution, ranges, grad_db) -> (u, v, z/w, id + 1) and derivatives, on the CPU."""

    def act(context, pos, tri, resolution, ranges=None, grad_db=True):
        assert isinstance(context, ActedContext) and context.device == pos.device
        assert pos.dtype == torch.float32 and pos.ndim == 3 and pos.shape[2] == 4 and pos.is_contiguous() and len(pos)
        assert tri.dtype == torch.int32 and tri.is_contiguous() and len(tri)
        assert ranges is None and isinstance(resolution, tuple)
        calls.append(len(pos))
        height, width = resolution
        w = pos[..., 3]
        screen = (pos[..., :2] / w[..., None] + 1) / 2 * torch.tensor([width, height])
        seen = rasterizer.rasterize(screen, w, tri, resolution, "torch")
        blend = rasterizer.plain_interpolate
        z = blend(pos[..., 2:3], seen.barycentrics, seen.triangle_ids, tri) / seen.depth[..., None].clamp_min(1e-9)
        ids = (seen.triangle_ids + 1)[..., None].float()
        return torch.cat([seen.barycentrics[..., :2], z, ids], 3), None

    return types.SimpleNamespace(rasterize=act, RasterizeCudaContext=ActedContext)


@pytest.fixture
def nvdiffrast_calls(monkeypatch):
    calls, package = [], types.ModuleType("nvdiffrast")
    package.torch = acted_nvdiffrast(calls)
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", package.torch)
    monkeypatch.setattr(rasterizer, "_CONTEXTS", types.SimpleNamespace())
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nvdiffrast_gets_the_whole_batch_in_one_call(model, nvdiffrast_calls, monkeypatch, dtype):
    inputs = project(model, 3, dtype)
    expected = picture_and_gradients(inputs, model.triangles, backend="torch")
    monkeypatch.setattr(rasterizer, "_choose_backend", lambda backend, points: backend)
    found = picture_and_gradients(inputs, model.triangles, backend="nvdiffrast")
    assert nvdiffrast_calls == [3]
    # The way to clip space and back rounds, so a pixel on an edge may change sides.
    same = (found[0] == expected[0])[..., None]
    assert same.float().mean() > 0.999 and all(value.dtype == dtype for value in found[1:])
    for ours, theirs in zip(found[1:4], expected[1:4], strict=True):
        keep = same if ours.ndim == 4 else same[..., 0]
        torch.testing.assert_close(ours * keep, theirs * keep, rtol=1e-3, atol=2e-3)
    for ours, theirs in zip(found[4:], expected[4:], strict=True):
        assert (ours - theirs).norm() < 2e-2 * theirs.norm()


def test_nvdiffrast_is_not_called_for_nothing(model, nvdiffrast_calls, monkeypatch):
    monkeypatch.setattr(rasterizer, "_choose_backend", lambda backend, points: backend)
    points, depth, _ = project(model, 2)
    seen = rasterize(points, depth, torch.zeros(0, 3, dtype=torch.int64), SIZE, "nvdiffrast")
    assert (seen.triangle_ids == -1).all() and not seen.depth.any()
    assert rasterize(points[:0], depth[:0], model.triangles, SIZE, "nvdiffrast").depth.shape == (0, *SIZE)
    assert nvdiffrast_calls == []


def test_each_thread_has_its_own_nvdiffrast_context(nvdiffrast_calls):
    import threading

    device, found = torch.device("cpu"), []
    mine = rasterizer._nvdiffrast_context(device)
    assert rasterizer._nvdiffrast_context(device) is mine
    monkey = threading.local()
    rasterizer._CONTEXTS = monkey
    threads = [threading.Thread(target=lambda: found.append(rasterizer._nvdiffrast_context(device))) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    assert found[0] is not found[1]
