"""What ``sgpn test`` runs: restorers scored on a fixed set of degraded faces, written as a table, JSON and pictures."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from sgpn_arch.face3d.shape_prior import ShapePrior
from sgpn_arch.registry import METRIC_REGISTRY
from sgpn_data.tensors import to_images
from sgpn_model.metrics import landmark_error
from sgpn_model.options import OptionError, build, check_keys, load_options
from sgpn_model.pipeline.common import build_dataset, evaluation_batches, fill_registries, mean_of_known
from sgpn_model.restorer import choose_device, find_weights, load_networks

LOGGER = logging.getLogger("sgpn")
REQUIRED = ("name", "datasets", "restorers", "metrics")
SHEET_ROWS = 8
LANDMARK_ERROR = "landmark_error"
INPUT, TRUTH = "degraded input", "ground truth"


class CropRestorer:
    """Restores batches of aligned crops with the networks of one checkpoint, at whatever size the crops have."""

    def __init__(self, weights: str, device: torch.device):
        network, prior, _ = load_networks(weights)
        self.network = network.eval().to(device, memory_format=torch.channels_last)
        self.prior = prior.eval().to(device)

    @torch.inference_mode()
    def __call__(self, lq: Tensor, points5: Tensor) -> Tensor:
        """Crops (N, 3, S, S) in [-1, 1] and five points (N, 5, 2) -> restored crops, clamped."""
        size, own = lq.shape[-1], self.network.size
        scale = own / size
        crops, points = _resize(lq, own), (points5 + 0.5) * scale - 0.5
        shape = self.prior(crops, points)
        return _resize(self.network(crops, shape.render, shape.coeffs), size).clamp(-1, 1)


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True, align_corners=False)


def run(
    options_path: str, overrides: Iterable[str] = (), device: str | None = None, output: str | None = None
) -> dict[str, dict[str, float]]:
    """Scores the degraded input and every restorer of an option file; returns row -> metric -> mean.

    ``restorers`` maps a row's name to weights (a shipped name or a file; a row whose file is missing is left out with a
    warning). ``metrics`` lists registered metrics; ``landmark_error``, which a regressor measures, is always given.
    ``judge`` names the weights whose regressor looks for the landmarks (default: the shipped ones).

    Args:
        options_path: the option file. overrides: ``a.b=c`` assignments. device: overrides the file's ``device``.
        output: folder of report.json, report.md and sheet.jpg (default: experiments/NAME).
    """
    opt = load_options(options_path, overrides)
    fill_registries()
    _check(opt, options_path)
    place = choose_device(device or opt.get("device", "auto"))
    dataset = build_dataset(opt["datasets"]["test"], "test")
    metrics = {name: build({"type": name}, METRIC_REGISTRY, "metrics").to(place) for name in opt["metrics"]}
    restorers = _load_restorers(opt["restorers"], place)
    judge = load_networks(opt.get("judge", "default"))[1].eval().to(place)

    values, sheet = _score(dataset, opt["datasets"]["test"], restorers, metrics, judge, place)
    table = {row: _means(columns) for row, columns in values.items()}
    folder = Path(output or Path("experiments") / opt["name"])
    _write_report(folder, opt, table, len(dataset), sheet)
    print(markdown(table))
    LOGGER.info("%d faces; report in %s", len(dataset), folder)
    return table


def _check(opt: dict, path: str) -> None:
    for key in REQUIRED:
        if not opt.get(key):
            raise OptionError(f"{path}: {key}: this option is missing")
    check_keys(opt["datasets"], {"test"}, f"{path}: datasets")
    if "test" not in opt["datasets"]:
        raise OptionError(f"{path}: datasets.test: this section is missing")
    # BasicSR's metrics are functions with a signature of their own.
    known = {name for name, metric in METRIC_REGISTRY if isinstance(metric, type)}
    check_keys(dict.fromkeys(opt["metrics"]), known, f"{path}: metrics")
    for name in (INPUT, TRUTH):
        if name in opt["restorers"]:
            raise OptionError(f"{path}: restorers.{name}: the table has a row of this name already; choose another")


def _means(columns: dict[str, list[float]]) -> dict[str, float]:
    """Metric -> mean over the faces; a metric that no face has is left out."""
    means = {name: mean_of_known(values) for name, values in columns.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def _load_restorers(opt: dict[str, str], device: torch.device) -> dict[str, CropRestorer]:
    restorers = {}
    for name, weights in opt.items():
        try:
            find_weights(weights)
        except ValueError as error:
            LOGGER.warning("the row '%s' is left out: %s", name, error)
            continue
        restorers[name] = CropRestorer(weights, device)
    return restorers


def _score(dataset, opt: dict, restorers: dict, metrics: dict, judge: ShapePrior, device: torch.device):
    """Row -> metric -> a value per face, and a sheet of the first faces: input, each restorer, truth."""
    values: dict[str, dict[str, list[float]]] = {}
    sheet: list[np.ndarray] = []
    for batch in tqdm(evaluation_batches(dataset, opt), desc="testing", unit="batch"):
        lq, hq, points = (batch[key].to(device) for key in ("lq", "hq", "points5"))
        pictures = {INPUT: lq}
        pictures.update({name: restore(lq, points) for name, restore in restorers.items()})
        pictures[TRUTH] = hq
        for row, images in pictures.items():
            scores = values.setdefault(row, {})
            if row != TRUTH:
                for name, metric in metrics.items():
                    scores.setdefault(name, []).extend(metric(images, hq))
            landmarks = _landmarks(judge, images, points)
            scores.setdefault(LANDMARK_ERROR, []).extend(
                landmark_error(landmarks, batch["landmarks68"].to(device)).tolist()
            )
        columns = [to_images(images) for images in pictures.values()]
        sheet += [np.concatenate(row, axis=1) for row in zip(*columns, strict=True)][: SHEET_ROWS - len(sheet)]
    return values, np.concatenate(sheet)


@torch.inference_mode()
def _landmarks(judge: ShapePrior, images: Tensor, points: Tensor) -> Tensor:
    return judge(images, points).landmarks


def markdown(table: dict[str, dict[str, float]]) -> str:
    """The table as Markdown, a row per restorer; what a row lacks is a dash."""
    names = list(dict.fromkeys(metric for columns in table.values() for metric in columns))
    lines = ["| | " + " | ".join(_heading(name) for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for row, columns in table.items():
        cells = [f"{columns[name]:.3f}" if name in columns else "–" for name in names]
        lines.append("| " + row.replace("|", r"\|") + " | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _heading(name: str) -> str:
    if name == LANDMARK_ERROR:
        return "landmark error, % of eye distance ↓"
    return f"{name} {'↑' if METRIC_REGISTRY.get(name).higher_is_better else '↓'}"


def _write_report(folder: Path, opt: dict, table: dict, faces: int, sheet: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    report = {"options": opt, "faces": faces, "table": table}
    (folder / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (folder / "report.md").write_text(f"# {opt['name']}\n\n{faces} faces\n\n{markdown(table)}\n", encoding="utf-8")
    cv2.imwrite(str(folder / "sheet.jpg"), sheet, [cv2.IMWRITE_JPEG_QUALITY, 92])
