"""FaceRestorationDataset: aligned good faces from folders, LMDBs or shards, degraded or cut on the fly, with their landmarks."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cv2
import numpy as np
import torch
from annotated_types import Ge, Le
from pydantic import Field
from torch.utils.data import Dataset

from sgpn_arch.by_name import named
from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.morphable_model import five_points
from sgpn_arch.ranges import Count, FilePath, FolderPath, Processes, Template, Told, Whole
from sgpn_arch.registry import DATASET_REGISTRY
from sgpn_arch.schema import Options

from .alignment import scale_points, template_points
from .degradation import DEGRADATIONS, build_degradation
from .masks import BrushMasks, MaskOptions
from .pasting import FIRST_FILLS
from .sources import LANDMARKS_FILE, Folder, Lmdb, Shards, decode, fault, open_source, open_split, points68
from .tensors import to_tensor

LOGGER = logging.getLogger("sgpn")

# What BasicSR's training loop and loader read of a dataset's section; `sgpn train` has no use for them, and refuses them.
BASICSR_LOADER_KEYS = {
    "use_shuffle", "dataset_enlarge_ratio", "prefetch_mode", "num_prefetch_queue", "pin_memory", "persistent_workers", "scale",
}  # fmt: skip


class LoaderOptions(Options):
    """``datasets.PHASE``: what the training loop and its loader read of every dataset's section."""

    type: str | None = None
    """The dataset: a registered class."""
    name: str | None = None
    """A name for the dataset, for readers only."""
    phase: str = "train"
    """Set by the program: train, val or test."""
    batch_size_per_gpu: Count = 8
    """Pictures per batch and process."""
    num_worker_per_gpu: Processes = 0
    """Loader processes per process; 0 loads pictures in the process itself."""


if TYPE_CHECKING:
    DegradationSection = Any
else:
    DegradationSection = named(DEGRADATIONS, default="Degradation")


class FaceDatasetOptions(LoaderOptions):
    """``datasets.PHASE`` of FaceRestorationDataset."""

    dataroot: (
        Annotated[FolderPath | list[FolderPath], Field(min_length=1), Told("a folder of images or a list of folders")]
        | None
    ) = None
    """Folder or list of folders, searched with their subfolders for images; a folder NAME.lmdb is read as an LMDB
    (scripts/make_lmdb.py), with the same items as the folder that it was made of, and a folder with .tar files as WebDataset's
    shards (sgpn align --shards)."""
    split: Literal["train", "val"] | None = None
    """Only these pictures of each dataroot. One with train/ or val/ inside has them there; of any other, a hash of the names
    holds one picture in ten back for val. ~: all. The commands' ``--data FOLDER`` sets this option and ``dataroot``."""
    size: Annotated[int, Ge(16), Le(4096)] = 512
    """Side of the items, pixels. Larger images shrink by area averaging; smaller ones are enlarged bicubically, with one
    warning in all."""
    min_size: Count = 1
    """Images smaller than this are left out."""
    degradation: DegradationSection | None = {}
    """What makes the degraded picture; ~ leaves it equal to the good one."""
    inpaint: MaskOptions | None = None
    """A hole that is cut into the degraded picture, after the degradation if there is one; points and landmarks stay.
    ~: no hole."""
    use_hflip: bool | None = None
    """Flip half of the draws left to right; by default only in training."""
    seed: Whole = 0
    """With the epoch and the index it seeds all of an item's randomness, so items do not depend on the number of workers or on
    the order of access."""
    fixed: bool | None = None
    """Leave the epoch out of the seed: the same degraded picture in every epoch and on every machine; by default in every
    phase but training."""
    landmarks: Literal["auto"] | FilePath | list[FilePath] | None = "auto"
    """auto: landmarks68.json of each dataroot, if there, or what a shard's samples say; a path, or a list with one path per
    dataroot; ~: unknown. The file maps names relative to the dataroot to 68 [x, y] in the stored image's pixels."""
    cache: Literal["none", "ram"] = "none"
    """ram: decode and resize everything once, when the training starts, and keep it as uint8 (size * size * 3 bytes an image;
    forked loader workers share it)."""
    template: Template = "ffhq"
    """How the images are aligned."""


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
    """The 68 or 5 points (..., K, 2) of faces after their images of ``size`` pixels are flipped left to right."""
    order = MIRROR_68 if points.shape[-2] == 68 else MIRROR_5
    return points[..., order, :] * [-1, 1] + [size - 1, 0]


@DATASET_REGISTRY.register()
class FaceRestorationDataset(Dataset):
    """Pairs of a degraded and a good face, made of aligned square face images.

    An item is a dict: ``lq`` and ``hq`` float32 (3, S, S) RGB in [-1, 1]; ``points5`` float32 (5, 2) and
    ``landmarks68`` float32 (68, 2) in OpenCV pixels of the item; ``path`` str; ``stored_size`` int, pixels of the photo as
    it is stored, which is enlarged where that is less than S; and with ``inpaint``
    ``mask`` float32 (1, S, S), 1 in the hole, which lq shows as ``fill`` says. With known landmarks, points5
    are derived from them (``five_points``); otherwise landmarks68 is NaN and points5 is the template,
    which aligned images follow.

    :class:`FaceDatasetOptions` has all options, which come as one dict.

    An unreadable or non-square image is named in a warning and replaced by the next usable one. ``unusable_count`` counts
    them all, also those that loader workers came upon; ``unusable`` says why of those that this process did. Call
    :meth:`set_epoch` before each epoch, or each epoch repeats the last one's draws; an enlarging sampler likewise repeats
    them within an epoch. Raises FileNotFoundError for a missing folder or file, ValueError for an empty folder or an LMDB
    that is not whole, OptionError, a ValueError, for an unknown option or a bad value.
    """

    OPTIONS = FaceDatasetOptions

    def __init__(self, opt: Mapping):
        options = FaceDatasetOptions.read({key: opt[key] for key in opt if key not in BASICSR_LOADER_KEYS}, "dataset")
        training = options.phase == "train"
        self.size = options.size
        self.seed = options.seed
        self.flips = training if options.use_hflip is None else options.use_hflip
        self.fixed = not training if options.fixed is None else options.fixed
        self.template = options.template
        self.degradation = None if options.degradation is None else build_degradation(options.degradation)
        self.masks = None if options.inpaint is None else BrushMasks(**dict(options.inpaint))
        self.paths, self.landmarks, self._sources = _scan(options)
        self._asks_sources = options.landmarks == "auto"
        self.unusable: dict[int, str] = {}  # index -> why
        self._warned_small = False
        # Shared, so that workers that outlive an epoch see the new one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        # Likewise: a flag for each image rather than a number, so that two workers at once cannot miscount.
        self._left_out = torch.zeros(len(self.paths), dtype=torch.uint8).share_memory_()
        self._cache = self._fill_cache() if options.cache == "ram" else None
        self._first_usable(0)  # now rather than in a worker in mid-training

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
        used, image, landmarks, stored = self._first_usable(index)
        points5 = template_points(self.template, self.size) if landmarks is None else five_points(landmarks)
        landmarks = np.full((68, 2), np.nan) if landmarks is None else landmarks
        if rng.random() < 0.5 and self.flips:
            image = cv2.flip(image, 1)  # contiguous, unlike a view, from which all that follows would be slow
            landmarks, points5 = mirror_points(landmarks, self.size), mirror_points(points5, self.size)
        degraded = image if self.degradation is None else self._degraded(image, rng)
        mask = None
        if self.masks is not None:
            mask = self._hole(rng)
            degraded = FIRST_FILLS[self.masks.options.fill](degraded, mask)
        item = {
            "lq": to_tensor(degraded),
            "hq": to_tensor(image),
            "points5": torch.from_numpy(points5.astype(np.float32)),
            "landmarks68": torch.from_numpy(landmarks.astype(np.float32)),
            "path": str(self.paths[used]),
            "stored_size": stored,
        }
        if mask is not None:
            item["mask"] = torch.from_numpy((mask > 0).astype(np.float32)[None])
        return item

    def _hole(self, rng):
        if rng.random() >= self.masks.options.probability:
            return np.zeros((self.size, self.size), np.uint8)
        return self.masks(self.size, rng)

    def _degraded(self, image, rng):
        return self.degradation(image.astype(np.float32) / np.float32(255), rng)

    def _first_usable(self, index):
        """The first of index, index + 1, ... (cyclic) that can be used: (its index, image, landmarks or None, stored size)."""
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            loaded = self._load(candidate)
            if loaded is not None:
                return candidate, *loaded
        raise ValueError(
            f"dataset: none of the {len(self)} images can be used; the first is {self.paths[0]}: {self.unusable.get(0)}"
        )

    def _load(self, index):
        """(uint8 (S, S, 3) BGR, landmarks (68, 2) at S or None, stored size) of an image, or None if it is unusable."""
        return self._read(index) if self._cache is None else self._cache[index]

    def _read(self, index):
        if self._left_out[index]:
            return None
        image = decode(self._sources[index].encoded(self.paths[index]), self.paths[index])
        why = fault(image)
        if why:
            self._note_unusable(index, why)
            return None
        landmarks = self.landmarks[index]
        if landmarks is None and self._asks_sources:
            try:
                landmarks = self._sources[index].landmarks(self.paths[index])
            except ValueError as error:
                self._note_unusable(index, str(error))
                return None
        if landmarks is not None:
            landmarks = scale_points(landmarks, image.shape[0], self.size)
        return self._resized(image, self.paths[index]), landmarks, image.shape[0]

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
        LOGGER.info("dataset: keeping %d images in memory, %.1f MB", len(self), len(self) * self.size**2 * 3 / 1e6)
        return [self._read(index) for index in range(len(self))]


# ------------------------------------------------------------------------------------------------------------
# Reading


def _scan(options):
    """(paths, landmarks or None, sources) of all the images of the dataroots that are large enough, root by root."""
    if not options.dataroot:
        raise OptionError("dataset.dataroot: this option is missing; give a folder of images or a list of folders")
    given = options.dataroot if isinstance(options.dataroot, list) else [options.dataroot]
    roots = _open([Path(root) for root in given], options.split)
    files = _landmark_files(options.landmarks, [source.root for source in roots])
    images = [image for source, file in zip(roots, files, strict=True) for image in _images(source, file)]
    least = options.min_size
    large = [image for image in images if least == 1 or image[2].stored_size(image[0]) >= least]
    if not large:
        raise ValueError(f"dataset: none of the {len(images)} images reaches min_size {least}; lower it")
    return tuple(list(column) for column in zip(*large, strict=True))


def _open(roots: list[Path], split: str | None) -> list[Folder | Lmdb | Shards]:
    if split is None:
        return [open_source(root) for root in roots]
    sources = [source for root in roots for source in open_split(root, split)]
    if not sources:
        raise ValueError(
            f"dataset: no picture of {', '.join(map(str, roots))} is for split '{split}'; add pictures (of a folder, a hash of "
            f"the names takes one in ten for 'val'), or sort them into {roots[0] / 'train'} and {roots[0] / 'val'}"
        )
    return sources


def _images(source, file) -> list[tuple[Path, np.ndarray | None, Folder | Lmdb | Shards]]:
    known = {} if file is None else _read_landmarks(file)
    images = [(path, known.get(path.relative_to(source.root).as_posix()), source) for path in source.paths]
    if known and not any(landmarks is not None for _, landmarks, _ in images):
        LOGGER.warning("dataset: %s names no picture of %s, such as '%s'", file, source.root, next(iter(known)))
    return images


def _landmark_files(landmarks, roots) -> Sequence[Path | None]:
    if landmarks is None:
        return [None] * len(roots)
    if landmarks == "auto":
        return [root / LANDMARKS_FILE if (root / LANDMARKS_FILE).is_file() else None for root in roots]
    files = [Path(file) for file in ([landmarks] if isinstance(landmarks, str | Path) else landmarks)]
    if len(files) != len(roots):
        raise ValueError(f"dataset: {len(files)} landmarks files for {len(roots)} dataroots; give one each, or 'auto'")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"dataset: landmarks file {file} does not exist; check the path, or use 'auto'")
    return files


def _read_landmarks(file: Path) -> dict[str, np.ndarray]:
    try:
        known = json.loads(file.read_text())
        items = known.items()
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"dataset: {file} is not JSON of the form {{name: 68 x [x, y]}}: {error}") from error
    arrays = {}
    for name, points in items:
        try:
            arrays[name] = points68(points)
        except ValueError as error:
            raise ValueError(f"dataset: {file}: {name}: {error}") from error
    return arrays
