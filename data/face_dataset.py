"""FaceRestorationDataset: aligned good faces from folders or LMDBs, degraded or cut on the fly, with their landmarks."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from sgpn_arch.face3d.morphable_model import five_points
from sgpn_arch.registry import DATASET_REGISTRY

from .alignment import TEMPLATES, scale_points, template_points
from .checks import check_choice, check_keys
from .degradation import build_degradation
from .masks import build_masks, fill_hole
from .sources import LANDMARKS_FILE, SPLITS, Folder, Lmdb, decode, fault, open_source, open_split
from .tensors import to_tensor

LOGGER = logging.getLogger("sgpn")

DEFAULTS = {
    "dataroot": None,
    "split": None,
    "size": 512,
    "degradation": {},
    "inpaint": None,
    "use_hflip": None,
    "seed": 0,
    "fixed": None,
    "landmarks": "auto",
    "cache": "none",
    "template": "ffhq",
    "min_size": 1,
}
# Keys of a dataset's section that others read: the registry, the training loop and its loader.
LOADER_KEYS = {"type", "name", "phase", "batch_size_per_gpu", "num_worker_per_gpu"}


# iBUG-68 indices, 0-based. The jaw runs from the image's left to its right; each eye starts at its image-left
# corner and goes over the upper lid first; the lips likewise start at the image-left corner.
def _mirror_order() -> np.ndarray:
    parts = [
        range(16, -1, -1),  # jaw
        range(26, 16, -1),  # brows
        range(27, 31),  # bridge of the nose
        range(35, 30, -1),  # nostrils
        (45, 44, 43, 42, 47, 46),  # eyes: corners, upper lid, lower lid
        (39, 38, 37, 36, 41, 40),
        (54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),  # outer lip: upper, then lower
        (64, 63, 62, 61, 60, 67, 66, 65),  # inner lip
    ]
    return np.concatenate([np.array(list(part)) for part in parts])


MIRROR_68 = _mirror_order()  # point i of a mirrored face is point MIRROR_68[i] of the face
MIRROR_5 = np.array([1, 0, 2, 4, 3])


def mirror_points(points: np.ndarray, size: int) -> np.ndarray:
    """The 68 or 5 points (K, 2) of a face after its image of ``size`` pixels is flipped left to right."""
    order = MIRROR_68 if len(points) == 68 else MIRROR_5
    return points[order] * [-1, 1] + [size - 1, 0]


@DATASET_REGISTRY.register()
class FaceRestorationDataset(Dataset):
    """Pairs of a degraded and a good face, made of aligned square face images.

    An item is a dict: ``lq`` and ``hq`` float32 (3, S, S) RGB in [-1, 1]; ``points5`` float32 (5, 2) and
    ``landmarks68`` float32 (68, 2) in OpenCV pixels of the item; ``path`` str; and with ``inpaint``
    ``mask`` float32 (1, S, S), 1 in the hole, which is white in lq. With known landmarks, points5
    are derived from them (``five_points``); otherwise landmarks68 is NaN and points5 is the template,
    which aligned images follow.

    Options (a dict; keys in LOADER_KEYS are allowed and left to the training loop):
      dataroot      folder or list of folders, searched with their subfolders for images; a folder NAME.lmdb is read
                    as an LMDB (scripts/make_lmdb.py), with the same items as the folder that it was made of
      split         "train" or "val": only these pictures of each dataroot. One with train/ or val/ inside has them there; of
                    any other, a hash of the names holds one picture in ten back for "val". None: all. The commands'
                    ``--data FOLDER`` sets both options
      size          S, pixels (512). Larger images shrink by area averaging; smaller ones are enlarged
                    bicubically, with one warning in all
      min_size      images smaller than this are left out (1: none)
      degradation   dict for ``build_degradation`` ({}: the gfpgan preset); None leaves lq equal to hq
      inpaint       dict of ``BrushMasks`` ({}: its defaults): a hole is cut into lq, after the degradation if there is
                    one, and filled with white, a choice of ours; points and landmarks stay. None: no hole
      use_hflip     flip half of the draws left to right (default: only in phase "train")
      seed          integer; with the epoch and the index it seeds all of an item's randomness, so items do
                    not depend on the number of workers or on the order of access
      fixed         the epoch is left out of the seed: the same lq in every epoch and on every machine
                    (default: in every phase but "train")
      landmarks     "auto": landmarks68.json of each dataroot, if there; a path, or a list with one path per
                    dataroot; None: unknown. The file maps names relative to the dataroot to 68 [x, y] in the
                    stored image's pixels
      cache         "ram": decode and resize everything once, here, and keep it as uint8 (S*S*3 bytes an
                    image; forked loader workers share it); "none"
      template      "ffhq" or "gpen": how the images are aligned

    An unreadable or non-square image is named in a warning and replaced by the next usable one. ``unusable_count`` counts
    them all, also those that loader workers came upon; ``unusable`` says why of those that this process did. Call
    :meth:`set_epoch` before each epoch, or each epoch repeats the last one's draws; an enlarging sampler likewise repeats
    them within an epoch. Raises FileNotFoundError for a missing folder or file, ValueError for an empty folder, an LMDB
    that is not whole or a bad value, KeyError for an unknown option.
    """

    #: What may stand in its section, so that a wrong option is found before the folders are searched.
    OPTIONS = frozenset(DEFAULTS) | LOADER_KEYS

    def __init__(self, opt: Mapping):
        check_keys(opt, DEFAULTS.keys() | LOADER_KEYS, "dataset")
        options = {**DEFAULTS, **opt}
        training = options.get("phase", "train") == "train"
        self.size = _positive(options["size"], "size")
        self.seed = _seed(options["seed"])
        self.flips = training if options["use_hflip"] is None else bool(options["use_hflip"])
        self.fixed = not training if options["fixed"] is None else bool(options["fixed"])
        self.template = check_choice(options["template"], TEMPLATES, "dataset: template")
        self.degradation = None if options["degradation"] is None else build_degradation(options["degradation"])
        self.masks = None if options["inpaint"] is None else build_masks(options["inpaint"])
        self.paths, self.landmarks, self._sources = _scan(options)
        self.unusable: dict[int, str] = {}  # index -> why
        self._warned_small = False
        # Shared, so that workers that outlive an epoch see the new one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        # Likewise: a flag for each image rather than a number, so that two workers at once cannot miscount.
        self._left_out = torch.zeros(len(self.paths), dtype=torch.uint8).share_memory_()
        cache = check_choice(options["cache"], ("none", "ram"), "dataset: cache")
        self._cache = self._fill_cache() if cache == "ram" else None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def unusable_count(self) -> int:
        """How many images were found to be unusable so far, in this process and in loader workers."""
        return int(self._left_out.count_nonzero())

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that seeds the draws; live loader workers see it too."""
        self._epoch.fill_(int(epoch))

    def generator(self, index: int) -> np.random.Generator:
        """The source of all of item ``index``'s randomness in the current epoch."""
        return np.random.default_rng([self.seed, 0 if self.fixed else int(self._epoch), index])

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]  # negative indices, and IndexError past the end
        rng = self.generator(index)
        used, image, landmarks = self._first_usable(index)
        points5 = template_points(self.template, self.size) if landmarks is None else five_points(landmarks)
        landmarks = np.full((68, 2), np.nan) if landmarks is None else landmarks
        if rng.random() < 0.5 and self.flips:
            image = cv2.flip(image, 1)  # contiguous, unlike a view, from which all that follows would be slow
            landmarks, points5 = mirror_points(landmarks, self.size), mirror_points(points5, self.size)
        degraded = image if self.degradation is None else self._degraded(image, rng)
        mask = None if self.masks is None else self.masks(self.size, rng)
        if mask is not None:
            degraded = fill_hole(degraded, mask)
        item = {
            "lq": to_tensor(degraded),
            "hq": to_tensor(image),
            "points5": torch.from_numpy(points5.astype(np.float32)),
            "landmarks68": torch.from_numpy(landmarks.astype(np.float32)),
            "path": str(self.paths[used]),
        }
        if mask is not None:
            item["mask"] = torch.from_numpy((mask > 0).astype(np.float32)[None])
        return item

    def _degraded(self, image, rng):
        return self.degradation(image.astype(np.float32) / np.float32(255), rng)

    def _first_usable(self, index):
        """The first of index, index + 1, ... (cyclic) that can be used: (its index, image, landmarks or None)."""
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            loaded = self._load(candidate)
            if loaded is not None:
                return candidate, *loaded
        raise ValueError(f"dataset: none of the {len(self)} images can be used; the first is {self.paths[0]}")

    def _load(self, index):
        """(uint8 (S, S, 3) BGR, landmarks (68, 2) at S or None) of an image, or None if it is unusable."""
        return self._read(index) if self._cache is None else self._cache[index]

    def _read(self, index):
        if self._left_out[index]:
            return None
        image = decode(self._sources[index].encoded(self.paths[index]))
        why = fault(image)
        if why:
            self._note_unusable(index, why)
            return None
        landmarks = self.landmarks[index]
        if landmarks is not None:
            landmarks = scale_points(landmarks, image.shape[0], self.size)
        return self._resized(image, self.paths[index]), landmarks

    def _note_unusable(self, index, why):
        self.unusable[index] = why
        self._left_out[index] = 1
        count = self.unusable_count
        LOGGER.warning("dataset: %s is left out: %s (%d left out so far)", self.paths[index], why, count)

    def _resized(self, image, path):
        stored = image.shape[0]
        if stored == self.size:
            return image
        if stored < self.size and not self._warned_small:
            self._warned_small = True
            LOGGER.warning(
                "dataset: %s is %d px and is enlarged to %d, as are others; set min_size to leave them out",
                *(path, stored, self.size),
            )
        kernel = cv2.INTER_AREA if stored > self.size else cv2.INTER_CUBIC
        return cv2.resize(image, (self.size, self.size), interpolation=kernel)

    def _fill_cache(self):
        LOGGER.info("dataset: keeping %d images in memory, %.0f MB", len(self), len(self) * self.size**2 * 3 / 1e6)
        return [self._read(index) for index in range(len(self))]


# ------------------------------------------------------------------------------------------------------------
# Reading


def _scan(options):
    """(paths, landmarks or None, sources) of all the images of the dataroots that are large enough, root by root."""
    roots = _open(_as_roots(options["dataroot"]), check_choice(options["split"], (None, *SPLITS), "dataset: split"))
    files = _landmark_files(options["landmarks"], [source.root for source in roots])
    images = [image for source, file in zip(roots, files, strict=True) for image in _images(source, file)]
    min_size = _positive(options["min_size"], "min_size")
    large = [image for image in images if min_size == 1 or image[2].stored_size(image[0]) >= min_size]
    if not large:
        raise ValueError(f"dataset: none of the {len(images)} images reaches min_size {min_size}; lower it")
    return tuple(list(column) for column in zip(*large, strict=True))


def _open(roots: list[Path], split: str | None) -> list[Folder | Lmdb]:
    if split is None:
        return [open_source(root) for root in roots]
    sources = [source for root in roots for source in open_split(root, split)]
    if not sources:
        raise ValueError(
            f"dataset: no picture of {', '.join(map(str, roots))} is for split '{split}'; add pictures (of a folder, a hash of "
            f"the names takes one in ten for 'val'), or sort them into {roots[0] / 'train'} and {roots[0] / 'val'}"
        )
    return sources


def _images(source, file) -> list[tuple[Path, np.ndarray | None, Folder | Lmdb]]:
    known = {} if file is None else _read_landmarks(file)
    return [(path, known.get(path.relative_to(source.root).as_posix()), source) for path in source.paths]


def _as_roots(dataroot) -> list[Path]:
    if not dataroot:
        raise ValueError("dataset: dataroot is missing; give a folder of images or a list of folders")
    return [Path(root).expanduser() for root in ([dataroot] if isinstance(dataroot, str | Path) else dataroot)]


def _landmark_files(landmarks, roots) -> list[Path | None]:
    if landmarks is None:
        return [None] * len(roots)
    if landmarks == "auto":
        return [root / LANDMARKS_FILE if (root / LANDMARKS_FILE).is_file() else None for root in roots]
    files = [Path(file).expanduser() for file in ([landmarks] if isinstance(landmarks, str | Path) else landmarks)]
    if len(files) != len(roots):
        raise ValueError(f"dataset: {len(files)} landmarks files for {len(roots)} dataroots; give one each, or 'auto'")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"dataset: landmarks file {file} does not exist; check the path, or use 'auto'")
    return files


def _read_landmarks(file: Path) -> dict[str, np.ndarray]:
    try:
        known = json.loads(file.read_text())
        arrays = {name: np.asarray(points, np.float64) for name, points in known.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"dataset: {file} is not JSON of the form {{name: 68 x [x, y]}}: {error}") from error
    for name, points in arrays.items():
        if points.shape != (68, 2):
            raise ValueError(f"dataset: {file}: {name} has points of shape {points.shape}, expected (68, 2)")
    return arrays


def _positive(value, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"dataset: {key}: expected a positive integer, got {value!r}")
    return value


def _seed(value) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"dataset: seed: expected an integer >= 0, got {value!r}")
    return value
