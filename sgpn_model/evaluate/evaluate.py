"""What ``sgpn test`` runs: restorers, and folders of restored pictures, scored on a fixed set of degraded faces."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sgpn_arch.errors import OptionError
from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_data.alignment import resize, scale_points, template_points
from sgpn_data.photos import READ_SUFFIXES, ImageError, read_photo, write_picture
from sgpn_data.tensors import to_images, to_tensor
from sgpn_model.config.checking import checked_options
from sgpn_model.config.device import choose_device
from sgpn_model.config.registries import build_metric
from sgpn_model.config.sections import RestorerOptions, TestingFile
from sgpn_model.evaluate.metrics import MetricUnavailable, psnr, rendering_error
from sgpn_model.evaluate.report import (
    INPUT,
    LANDMARK_ERROR,
    PRIOR_LANDMARK_ERROR,
    PRIOR_RENDERING_ERROR,
    TRUTH,
    FacePictures,
    RowPictures,
    Scores,
    chosen_faces,
    markdown,
    write_report,
)
from sgpn_model.restore.restorer import FaceRestorer, RestoredFace
from sgpn_model.train.batches import asked_for, build_dataset, evaluation_batches
from sgpn_model.train.losses import landmark_error
from sgpn_model.weights.pretrained import find_weights, load_networks

LOGGER = logging.getLogger("sgpn")
# What GFPGAN and others append to the name of an aligned picture's restoration: the number of the face in it.
FIRST_FACE = "_00"
# How many missing pictures are named.
NAMED = 5


# ---------------------------------------------------------------------------------------------------------------------
# The command


def run(
    options_path: str,
    overrides: Iterable[str] = (),
    device: str | None = None,
    output: str | None = None,
    restorers: Iterable[str] = (),
    save_inputs: str | None = None,
    data: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Scores what an option file describes, writes the report folder, and returns row -> metric -> mean.

    Args:
        options_path, overrides, device, save_inputs, data: as :func:`evaluate` has them.
        output: the report's folder (default: experiments/NAME). restorers: more of them, ``NAME=PLACE`` or ``PLACE``.
    """
    scores = evaluate(options_path, overrides, device, parse_restorers(restorers), save_inputs, data)
    folder = Path(output or Path("experiments") / scores.options["name"])
    write_report(folder, scores)
    print(markdown(scores.table(), scores.labels()))
    LOGGER.info("%d faces; report in %s", len(scores.faces), folder)
    return scores.table()


def evaluate(
    options_path: str,
    overrides: Iterable[str] = (),
    device: str | None = None,
    restorers: Mapping[str, Any] | None = None,
    save_inputs: str | None = None,
    data: Sequence[str] = (),
) -> Scores:
    """Scores the degraded input and every restorer of an option file face by face, and writes nothing but the inputs.

    ``restorers`` of the file maps a row's name to weights (a shipped name or a checkpoint file, or ``{weights: ...,
    fidelity: 0..1 or auto, points: ...}``) or to a folder of pictures that were restored elsewhere, see
    :class:`FolderRestorer`; one that is not there is left out with a warning. Weights restore through ``FaceRestorer``,
    as ``sgpn restore --aligned`` does; ``points`` says which five points of a face it gets: those that it detects (the
    default), the true ones or the template's.
    ``metrics`` lists registered metrics; ``landmark_error``, which a regressor measures, is always given, and the error
    of a restorer's own shape prior where it has one. ``judge`` names the weights whose regressor looks for the
    landmarks (default: the shipped ones).

    Args:
        options_path: the option file. overrides: ``a.b=c`` assignments. device: overrides the file's ``device``.
        restorers: more of them; a name that the file has too takes its place.
        save_inputs: a folder for the degraded pictures, NAME.png, so that others can restore them.
        data: folders of faces, of which those held back for validation are taken, where the file names none.

    Raises:
        OptionError, CheckpointError, CatalogueError: before any picture is scored.
    """
    opt, origins = checked_options(options_path, overrides, "test", data=data)
    with origins.named():
        opt["restorers"] = {**(opt.get("restorers") or {}), **(restorers or {})}
        file = TestingFile.read(opt)
        place = choose_device(device or file.device)
        dataset = build_dataset(opt["datasets"]["test"], "test")
    if file.num_threads:
        torch.set_num_threads(file.num_threads)
    scores = Scores(options=opt, device=str(place))
    metrics = _build_metrics(file.metrics, place, scores)
    rows = _load_restorers(file.restorers, file.points, place, scores)
    judge = load_networks(file.judge)[1].eval().to(place)
    if save_inputs:
        _check_inputs_folder(Path(save_inputs), dataset)
    scorer = _Scorer(scores, rows, metrics, judge, chosen_faces(len(dataset)), save_inputs)
    for batch in tqdm(evaluation_batches(dataset, file.datasets.test), desc="testing", unit="batch"):
        scorer.add(_to(batch, place))
    scorer.finish()
    return scores


def parse_restorers(arguments: Iterable[str]) -> dict[str, str]:
    """``NAME=PLACE`` or ``PLACE``, whose last part is the name then -> name -> place.

    Raises:
        OptionError: a name or a place is empty, or a name comes twice.
    """
    restorers: dict[str, str] = {}
    for argument in arguments:
        name, separator, place = argument.partition("=")
        if not separator:
            name, place = Path(argument).stem, argument
        if not name.strip() or not place.strip():
            raise OptionError(f"--restorer {argument}: write NAME=FOLDER or NAME=WEIGHTS")
        if name in restorers:
            raise OptionError(f"--restorer {argument}: there is another of the name '{name}'; choose one yourself")
        restorers[name] = place
    return restorers


def _to(batch: dict, device: torch.device) -> dict:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _check_inputs_folder(folder: Path, dataset) -> None:
    if folder.resolve() in {Path(path).parent.resolve() for path in getattr(dataset, "paths", ())}:
        raise OptionError(f"--save-inputs {folder}: holds the test's own pictures; choose another folder")


def _build_metrics(names: Iterable[str], device: torch.device, scores: Scores) -> dict[str, Callable]:
    metrics = {}
    for name in names:
        try:
            metric = build_metric(name)
        except MetricUnavailable as error:
            scores.leave_out(str(error))
            continue
        metrics[name] = metric.to(device) if isinstance(metric, nn.Module) else metric
    return metrics


def _load_restorers(
    restorers: Mapping[str, RestorerOptions], default_points: str, device: torch.device, scores: Scores
) -> dict[str, Callable]:
    rows: dict[str, Callable] = {}
    for name, options in restorers.items():
        place = options.weights
        if Path(place).is_dir():
            rows[name] = FolderRestorer(place)
            continue
        try:
            find_weights(place)
        except ValueError as error:
            scores.leave_out(f"the row '{name}': {error}; nor is it a folder")
            continue
        points = options.points or default_points
        rows[name] = WeightsRestorer(place, str(device), options.fidelity, points)
        scores.points[name] = points
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Restorers


@dataclass
class Restored:
    """What a restorer made of a batch of N faces of S pixels.

    Attributes:
        images: (N, 3, S, S) RGB in [-1, 1]. known: which of them there are.
        faces: what the predictor says of each, or None for pictures that something else made.
        errors: of its shape prior, one value per face.
    """

    images: Tensor
    known: list[bool]
    faces: list[RestoredFace] | None = None
    errors: dict[str, list[float]] = field(default_factory=dict)


class WeightsRestorer:
    """Restores aligned crops of any size as ``sgpn restore --aligned`` does, and says how far its shape prior is off.

    Args:
        weights, device, fidelity: of ``FaceRestorer``.
        points: the five points of a face: "detected", as the predictor finds them; "true", the test's; or "template".
    """

    def __init__(self, weights: str, device: str, fidelity: float | str = "auto", points: str = "detected"):
        self.restorer = FaceRestorer.from_pretrained(weights, device, fidelity=fidelity)
        self.points = points

    def __call__(self, batch: Mapping, names: Sequence[str]) -> Restored:
        """A batch of the test's dataset -> restored crops, and what the predictor says of each."""
        restorer, size = self.restorer, batch["lq"].shape[-1]
        template = template_points(restorer.template, size)
        photos = []
        for number, lq in enumerate(to_images(batch["lq"])):
            given = {"detected": None, "template": template, "true": batch["points5"][number].cpu().numpy()}
            hole = (batch["mask"][number, 0].cpu().numpy() * 255).astype(np.uint8) if "mask" in batch else None
            photos.append(restorer.prepare(lq, aligned=True, mask=hole, points5=given[self.points]))
        faces = [face for photo in photos for face in photo.faces]
        restorer.run(faces)
        images = [resize(restorer.finish(photo).image, (size, size)) for photo in photos]
        truth = [resize(picture, (restorer.size, restorer.size)) for picture in to_images(batch["hq"])]
        landmarks = scale_points(batch["landmarks68"].cpu().numpy(), size, restorer.size)
        found = np.stack([face.landmarks for face in faces])
        errors = {
            PRIOR_LANDMARK_ERROR: landmark_error(torch.from_numpy(found), torch.from_numpy(landmarks)).tolist(),
            PRIOR_RENDERING_ERROR: [
                rendering_error(f.render, f.render_mask, t) for f, t in zip(faces, truth, strict=True)
            ],
        }
        tensor = torch.stack([to_tensor(image) for image in images]).to(batch["lq"].device)
        return Restored(tensor, [not face.failed for face in faces], faces, errors)

    def notes(self) -> list[str]:
        """Nothing that a reader should know."""
        return []


class FolderRestorer:
    """Pictures that something else restored, found by the name of the face: NAME.png, of any kind of picture, or NAME_00.

    A picture of another size is resized to the test's. One that is missing, unreadable or not square is counted and
    named; its face has no values in this row.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.files = {
            path.stem: path
            for path in sorted(self.folder.iterdir(), reverse=True)
            if path.suffix.lower() in READ_SUFFIXES and path.is_file()
        }
        self.unusable: dict[str, str] = {}
        self.resized: dict[str, int] = {}

    def __call__(self, batch: Mapping, names: Sequence[str]) -> Restored:
        """A batch of the test's dataset and its faces' names -> their pictures; grey where there is none."""
        found = [self._read(name, batch["lq"].shape[-1]) for name in names]
        images = torch.zeros_like(batch["lq"])
        for number, picture in enumerate(found):
            if picture is not None:
                images[number] = to_tensor(picture).to(images.device)
        return Restored(images, [picture is not None for picture in found])

    def _read(self, name: str, size: int) -> np.ndarray | None:
        path = self.files.get(name) or self.files.get(name + FIRST_FACE)
        if path is None:
            self.unusable[name] = "missing"
            return None
        try:
            picture = read_photo(path).bgr
        except ImageError:
            self.unusable[name] = "unreadable"
            return None
        height, width = picture.shape[:2]
        if height != width:
            self.unusable[name] = f"{width}x{height}, not square"
            return None
        if height != size:
            self.resized[name] = height
            picture = resize(picture, (size, size))
        return picture

    def notes(self) -> list[str]:
        """What a reader should know of the pictures that were asked for so far."""
        notes = []
        if self.unusable:
            named = [f"{name} ({why})" for name, why in list(self.unusable.items())[:NAMED]]
            more = f" and {len(self.unusable) - NAMED} more" if len(self.unusable) > NAMED else ""
            notes.append(
                f"{_count(len(self.unusable), 'picture')} of {self.folder} cannot be used, so this row is about fewer "
                f"faces: {', '.join(named)}{more}"
            )
        if self.resized:
            sizes = ", ".join(f"{size}" for size in sorted(set(self.resized.values())))
            pictures = _count(len(self.resized), "picture")
            notes.append(f"{pictures} of {self.folder} resized to the test's size, from {sizes} px")
        return notes


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


# ---------------------------------------------------------------------------------------------------------------------
# Scoring


class _Scorer:
    """Fills in Scores, batch by batch."""

    def __init__(self, scores, restorers, metrics, judge: ShapePrior, chosen: set[int], save_inputs: str | None):
        self.scores, self.restorers, self.judge = scores, restorers, judge
        self.chosen, self.save_inputs = chosen, save_inputs
        self.of_sets = {name: metric for name, metric in metrics.items() if hasattr(metric, "distance")}
        self.of_faces = {name: metric for name, metric in metrics.items() if name not in self.of_sets}
        self.order = list(metrics)
        # Row -> set metric -> features of each batch; and of each row, which faces it has.
        self.features: dict[str, dict[str, list[Tensor]]] = {}
        self.known: dict[str, list[bool]] = {}
        self.seen: set[str] = set()
        self.names: set[str] = set()
        self.repeated = 0

    def add(self, batch: dict) -> None:
        """Scores a batch of the dataset. Faces that stand in for unusable ones were scored already, and are not again."""
        batch = self._without_repeated(batch)
        if not batch["path"]:
            return
        self._drop_metrics_for_larger_pictures(batch["lq"].shape[-1])
        names = [self._name(path) for path in batch["path"]]
        every = [True] * len(names)
        rows = {INPUT: Restored(batch["lq"], every)}
        rows.update({name: restore(batch, names) for name, restore in self.restorers.items()})
        rows[TRUTH] = Restored(batch["hq"], every)
        for row, restored in rows.items():
            self._score(row, restored, batch)
        self._keep_pictures(len(self.scores.faces), names, rows)
        if self.save_inputs:
            for name, picture in zip(names, to_images(batch["lq"]), strict=True):
                write_picture(Path(self.save_inputs) / f"{name}.png", picture)
        self.scores.faces += names
        self.scores.input_psnr += psnr()(batch["lq"], batch["hq"])

    def _without_repeated(self, batch: dict) -> dict:
        keep = []
        for number, path in enumerate(batch["path"]):
            if path not in self.seen:
                keep.append(number)
            self.seen.add(path)
        self.repeated += len(batch["path"]) - len(keep)
        if len(keep) == len(batch["path"]):
            return batch
        return {
            key: value[keep] if isinstance(value, Tensor) else [value[number] for number in keep]
            for key, value in batch.items()
        }

    def _name(self, path: str) -> str:
        """A face's name: its file's stem, or where another has that already, with a number. The same in every run."""
        stem = Path(path).stem
        name, number = stem, 1
        while name in self.names:
            number += 1
            name = f"{stem}_{number}"
        self.names.add(name)
        return name

    def _drop_metrics_for_larger_pictures(self, size: int) -> None:
        for metrics in (self.of_faces, self.of_sets):
            for name, metric in list(metrics.items()):
                smallest = getattr(metric, "min_size", 1)
                if size < smallest:
                    self.scores.leave_out(f"{name} needs pictures of at least {smallest} px, but these have {size}")
                    del metrics[name]

    def _score(self, row: str, restored: Restored, batch: Mapping) -> None:
        known = torch.tensor(restored.known, device=restored.images.device)
        self.known.setdefault(row, []).extend(restored.known)
        values = {}
        if any(restored.known):
            images = restored.images[known]
            part = {key: value[known] for key, value in batch.items() if isinstance(value, Tensor)}
            values = self._values(row, images, part)
            for name, metric in self.of_sets.items():
                self.features.setdefault(row, {}).setdefault(name, []).append(metric.features(images))
        for name in self._columns(row):
            numbers = iter(values.get(name, ()))
            filled = [next(numbers) if there else float("nan") for there in restored.known]
            self.scores.per_face.setdefault(row, {}).setdefault(name, []).extend(filled)
        for name, errors in restored.errors.items():
            self.scores.per_face[row].setdefault(name, []).extend(errors)

    def _columns(self, row: str) -> list[str]:
        """The metrics that have a value per face in this row."""
        free = [name for name, metric in self.of_faces.items() if not getattr(metric, "needs_reference", True)]
        return [*(free if row == TRUTH else self.of_faces), LANDMARK_ERROR]

    def _values(self, row: str, images: Tensor, batch: Mapping) -> dict[str, list[float]]:
        values = {}
        for name in self._columns(row)[:-1]:
            metric = self.of_faces[name]
            reference = (batch["hq"],) if getattr(metric, "needs_reference", True) else ()
            values[name] = metric(images, *reference, **asked_for(metric, batch, f"metrics: {name}"))
        landmarks = _landmarks(self.judge, images, batch["points5"])
        values[LANDMARK_ERROR] = landmark_error(landmarks, batch["landmarks68"]).tolist()
        return values

    def _keep_pictures(self, first: int, names: Sequence[str], rows: Mapping[str, Restored]) -> None:
        for number, name in enumerate(names):
            if first + number in self.chosen:
                self.scores.pictures.append(
                    FacePictures(name, {row: _row_pictures(restored, number) for row, restored in rows.items()})
                )

    def finish(self) -> None:
        """Compares the sets, and notes what a reader should know."""
        scores = self.scores
        for row in [*self.features]:
            if row == TRUTH:
                continue
            known = torch.tensor(self.known[row])
            for name, metric in self.of_sets.items():
                target = torch.cat(self.features[TRUTH][name])[known.to(self.features[TRUTH][name][0].device)]
                value = float(metric.distance(torch.cat(self.features[row][name]), target))
                scores.of_sets.setdefault(row, {})[name] = value
        scores.known = {row: sum(known) for row, known in self.known.items()}
        scores.order = [*self.order, LANDMARK_ERROR, PRIOR_LANDMARK_ERROR, PRIOR_RENDERING_ERROR]
        if self.repeated:
            pictures = _count(self.repeated, "picture")
            scores.note(f"{pictures} of the test set cannot be used, so there are fewer faces than files")
        for metric in (*self.of_faces.values(), *self.of_sets.values()):
            caution = getattr(metric, "caution", lambda faces: None)(len(scores.faces))
            if caution:
                scores.note(caution)
        for row, restorer in self.restorers.items():
            for note in restorer.notes():
                scores.note(f"{row}: {note}")
        self._note_what_has_no_value()

    def _note_what_has_no_value(self) -> None:
        """Metrics that no face of any row has a finite value of."""
        present = {name for columns in self.scores.table().values() for name in columns}
        for name in (*self.of_faces, *self.of_sets, LANDMARK_ERROR):
            if name not in present:
                why = " (the faces' landmarks are not known)" if name == LANDMARK_ERROR else ""
                self.scores.leave_out(f"{name}: no face has a value{why}")


@torch.inference_mode()
def _landmarks(judge: ShapePrior, images: Tensor, points: Tensor) -> Tensor:
    return judge(images, points).landmarks


def _row_pictures(restored: Restored, number: int) -> RowPictures:
    image = to_images(restored.images[number : number + 1])[0] if restored.known[number] else None
    face = None if restored.faces is None else restored.faces[number]
    return RowPictures(image) if face is None else RowPictures(image, face.render, face.mask)
