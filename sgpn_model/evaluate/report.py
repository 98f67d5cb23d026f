"""The report of ``sgpn test``: what was measured, as JSON, a Markdown table, plots, and grids of pictures and masks."""

import importlib.metadata
import json
import logging
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from sgpn_arch.registry import METRIC_REGISTRY
from sgpn_data.photos import write_picture
from sgpn_data.sheet import labelled_grid
from sgpn_model.config.sections import INPUT, TRUTH
from sgpn_model.config.strict_yaml import dump
from sgpn_model.train.batches import mean_of_known

LOGGER = logging.getLogger("sgpn")
LANDMARK_ERROR = "landmark_error"
PRIOR_LANDMARK_ERROR, PRIOR_RENDERING_ERROR = "prior_landmark_error", "prior_rendering_error"
# What is measured without being asked for: its unit. Lower is better.
ALWAYS = {
    LANDMARK_ERROR: "% of eye distance",
    PRIOR_LANDMARK_ERROR: "% of eye distance",
    PRIOR_RENDERING_ERROR: "grey levels",
}
EXPLAINED = {
    LANDMARK_ERROR: "where the judge's regressor sees 68 landmarks on the picture, against where they are; its own error "
    "on good pictures is the last row",
    PRIOR_LANDMARK_ERROR: "where the restorer's own shape prior sees them on the degraded input",
    PRIOR_RENDERING_ERROR: "mean absolute difference of that prior's rendering from the true face, where the mesh is",
}
PACKAGES = ("sgpn", "torch", "torchvision", "numpy", "opencv-python", "scikit-image", "basicsr", "facexlib", "lpips",
            "torch-fidelity")  # fmt: skip

GRID_ROWS = 8  # faces that the grid shows

# Plots: colours of the rows, inches of a panel, and into how many groups of input quality the faces are divided.
LIGHT, DARK = "0.7", "0.4"
PANEL = (4.2, 3.4)
GROUPS = 5


@dataclass
class RowPictures:
    """One face in one row, uint8 BGR: the picture (None if missing), the rendering and the grey mask (white: photo)."""

    image: np.ndarray | None
    render: np.ndarray | None = None
    mask: np.ndarray | None = None


@dataclass
class FacePictures:
    """One face in every row."""

    name: str
    rows: dict[str, RowPictures]


@dataclass
class Scores:
    """What a test measured.

    Attributes:
        options: of the test. device: where it ran. faces: their names, in order.
        per_face: row -> metric -> a value per face; NaN where there is none, infinite where pictures are equal.
        of_sets: row -> metric -> the value of a whole row. order: of the columns.
        input_psnr: of each face's degraded picture, dB. pictures: the faces that the grids show.
        left_out, notes: what is not in the table and why, and what its reader should know.
        known: row -> how many faces there are pictures of. points: row -> which five points of a face its restorer got.
    """

    options: dict[str, Any]
    device: str
    faces: list[str] = field(default_factory=list)
    per_face: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    of_sets: dict[str, dict[str, float]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    input_psnr: list[float] = field(default_factory=list)
    pictures: list[FacePictures] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    known: dict[str, int] = field(default_factory=dict)
    points: dict[str, str] = field(default_factory=dict)

    def labels(self) -> dict[str, str]:
        """Row -> its name, with the points that it got, and the number of faces that it is about where those are not all."""
        total = len(self.faces)
        few = {row: f"{row} ({known} of {total} faces)" for row, known in self.known.items() if known < total}
        return {**few, **{row: f"{row} ({points} points)" for row, points in self.points.items()}}

    def leave_out(self, why: str) -> None:
        """Notes, and warns, that something is not measured."""
        LOGGER.warning("left out: %s", why)
        self.left_out.append(why)

    def note(self, what: str) -> None:
        """Notes, and logs, what a reader of the table should know."""
        LOGGER.info("note: %s", what)
        self.notes.append(what)

    def table(self) -> dict[str, dict[str, float]]:
        """Row -> metric -> mean over the faces with a finite value, or the value of the set; without what has none."""
        table = {}
        for row, columns in self.per_face.items():
            means = {name: mean_of_known(values) for name, values in columns.items()} | self.of_sets.get(row, {})
            ordered = [(name, means[name]) for name in self._ordered(means)]
            table[row] = {name: mean for name, mean in ordered if mean is not None and math.isfinite(mean)}
        return table

    def standard_errors(self) -> dict[str, dict[str, float]]:
        """Row -> metric -> standard error of the mean over the faces, where there are two or more."""
        errors: dict[str, dict[str, float]] = {}
        for row, columns in self.per_face.items():
            for name in self._ordered(columns):
                known = [value for value in columns[name] if math.isfinite(value)]
                if len(known) > 1:
                    error = float(np.std(known, ddof=1) / math.sqrt(len(known)))
                    errors.setdefault(row, {})[name] = error
        return errors

    def _ordered(self, names: Iterable[str]) -> list[str]:
        places = {name: place for place, name in enumerate(self.order)}
        return sorted(names, key=lambda name: places.get(name, len(places)))


def chosen_faces(count: int) -> set[int]:
    """The numbers of the faces that grids show: evenly spread, and the same whenever there are as many faces."""
    return set(np.linspace(0, count - 1, min(GRID_ROWS, count)).round().astype(int).tolist()) if count else set()


def write_report(folder: Path, scores: Scores) -> None:
    """Writes report.json, report.md, grid.jpg and, with matplotlib, plots."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    if scores.pictures:
        write_picture(folder / "grid.jpg", picture_grid(scores.pictures))
        pictures["faces; in the masks white trusts the photo, black the rendering"] = "grid.jpg"
    pictures.update(_write_plots(folder, scores))
    text = json.dumps(_as_json(scores), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "report.md").write_text(_as_markdown(scores, pictures), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# JSON and Markdown


def _as_json(scores: Scores) -> dict[str, Any]:
    values = {
        row: {name: [_number(value) for value in values] for name, values in columns.items()}
        for row, columns in scores.per_face.items()
    }
    return {
        "name": scores.options["name"],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "device": scores.device,
        "seed": scores.options["datasets"]["test"].get("seed"),
        "faces": len(scores.faces),
        "table": scores.table(),
        "standard_errors": scores.standard_errors(),
        "left_out": scores.left_out,
        "notes": scores.notes,
        "options": scores.options,
        "points": scores.points,
        "names": scores.faces,
        "input_psnr": [_number(value) for value in scores.input_psnr],
        "values": values,
    }


def _number(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def versions() -> dict[str, str]:
    """Package -> version of what the numbers depend on, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _as_markdown(scores: Scores, pictures: Mapping[str, str]) -> str:
    table = scores.table()
    parts = [f"# {scores.options['name']}", f"{len(scores.faces)} faces", markdown(table, scores.labels())]
    shown = {name for columns in table.values() for name in columns}
    parts.append("\n".join(f"- {name}: {text}" for name, text in EXPLAINED.items() if name in shown))
    for title, lines in (("Left out", scores.left_out), ("Notes", scores.notes)):
        if lines:
            parts.append(f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines))
    if pictures:
        parts.append("## Pictures\n\n" + "\n\n".join(f"![{_escape(t)}]({n})\n\n*{t}*" for t, n in pictures.items()))
    made = ", ".join(f"{package} {version}" for package, version in versions().items())
    settings = dump(scores.options)
    parts.append(f"## Settings\n\nOn {scores.device}, with {made}.\n\n```yaml\n{settings}```")
    return "\n\n".join(part for part in parts if part) + "\n"


def _escape(text: str) -> str:
    return text.replace("[", r"\[").replace("]", r"\]")


def markdown(table: Mapping[str, Mapping[str, float]], labels: Mapping[str, str] | None = None) -> str:
    """The table as Markdown, a row per restorer, with units and arrows; what a row lacks is a dash.

    ``labels`` gives rows other names.
    """
    names = list(dict.fromkeys(metric for columns in table.values() for metric in columns))
    # A row that has columns of its own, as a restorer's prior, does not move the common ones behind them.
    names.sort(key=lambda name: list(ALWAYS).index(name) if name in ALWAYS else -1)
    lines = ["| | " + " | ".join(heading(name) for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for row, columns in table.items():
        cells = [_cell(columns[name]) if name in columns else "–" for name in names]
        label = (labels or {}).get(row, row)
        lines.append("| " + label.replace("|", r"\|") + " | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3g}"


def heading(name: str) -> str:
    """A metric's name, its unit, and an arrow to where better is."""
    if name in ALWAYS:
        return f"{name}, {ALWAYS[name]} ↓"
    metric = METRIC_REGISTRY.get(name)
    unit = getattr(metric, "unit", "")
    return f"{name}{', ' + unit if unit else ''} {'↑' if metric.higher_is_better else '↓'}"


# ---------------------------------------------------------------------------------------------------------------------
# Grid of pictures


def picture_grid(faces: Sequence[FacePictures]) -> np.ndarray:
    """A row per face: input, then each restorer (with its rendering and mask before it), truth. uint8 BGR."""
    columns: dict[str, list] = {}
    for face in faces:
        for row, pictures in face.rows.items():
            if pictures.render is not None:
                columns.setdefault(f"{row}:\nrendering", []).append(pictures.render)
            if pictures.mask is not None:
                columns.setdefault(f"{row}:\nmask", []).append(pictures.mask)
            columns.setdefault(row, []).append(pictures.image)
    return labelled_grid(columns, [face.name for face in faces])


# ---------------------------------------------------------------------------------------------------------------------
# Plots


def _write_plots(folder: Path, scores: Scores) -> dict[str, str]:
    """Caption -> file of the plots that could be made."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        scores.note('there are no plots: matplotlib is not installed (pip install "sgpn[metrics]")')
        return {}
    written = {}
    if any(scores.table().values()):
        _save(metric_plot(scores), folder / "metrics.png")
        written["the metrics: a box spans the middle half of the faces, the line is the median, the dot the mean"] = (
            "metrics.png"
        )
    figure = quality_plot(scores)
    if figure is not None:
        _save(figure, folder / "quality.png")
        written[f"the metrics against the quality of the input: faces, and means of {GROUPS} groups"] = "quality.png"
    return written


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=110)


def metric_plot(scores: Scores):
    """A panel per metric: a box per row over the faces, a bar per row for metrics of sets (a matplotlib Figure)."""
    table = scores.table()
    names = [name for name in scores.order if any(name in columns for columns in table.values())]
    figure, panels = _panels(len(names))
    for panel, name in zip(panels, names, strict=True):
        rows = [row for row in table if name in table[row]]
        places = range(len(rows))
        colors = _colors(table)
        if name in scores.per_face[rows[0]]:
            values = [[v for v in scores.per_face[row][name] if math.isfinite(v)] for row in rows]
            boxes = panel.boxplot(values, positions=places, widths=0.6, showmeans=True, patch_artist=True,
                                  medianprops={"color": "black"}, flierprops={"markersize": 3},
                                  meanprops={"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black"})  # fmt: skip
            for box, row in zip(boxes["boxes"], rows, strict=True):
                box.set_facecolor(colors[row])
        else:
            bars = panel.bar(places, [table[row][name] for row in rows], 0.6, color=[colors[row] for row in rows])
            panel.bar_label(bars, fmt="%.3g", fontsize=8)
            panel.margins(y=0.12)
        panel.set_xticks(list(places), [_short(row) for row in rows], rotation=25, ha="right", fontsize=8)
        panel.set_title(_plain(heading(name)), fontsize=9)
        panel.grid(axis="y", alpha=0.3)
    return figure


def quality_plot(scores: Scores):
    """A panel per metric: each face's value, and means over groups of faces, against the PSNR of its input (a Figure).

    None where no input differs from its truth, or no metric has a value per face.
    """
    quality = np.array(scores.input_psnr)
    compared = [row for row in scores.per_face if row != TRUTH]
    names = [
        name
        for name in scores.order
        if any(np.isfinite(quality[: len(v)][np.isfinite(v)]).any() for v in _columns_of(scores, compared, name))
    ]
    if not names:
        return None
    figure, panels = _panels(len(names))
    colors = _colors(scores.per_face)
    for panel, name in zip(panels, names, strict=True):
        for row in compared:
            values = np.array(scores.per_face[row].get(name, []))
            if not len(values):
                continue
            known = np.isfinite(values) & np.isfinite(quality)
            panel.scatter(quality[known], values[known], 8, color=colors[row], alpha=0.35, linewidths=0)
            panel.plot(*_group_means(quality[known], values[known]), "o-", color=colors[row], label=_short(row), ms=4)
        panel.set_xlabel("PSNR of the input, dB", fontsize=8)
        panel.set_title(_plain(heading(name)), fontsize=9)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    return figure


def _columns_of(scores: Scores, rows: Iterable[str], name: str) -> list[np.ndarray]:
    return [np.array(scores.per_face[row][name]) for row in rows if name in scores.per_face[row]]


def _group_means(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """Means of x and y over up to GROUPS groups of equally many faces, from the worst input to the best."""
    groups = [group for group in np.array_split(np.argsort(x, kind="stable"), GROUPS) if len(group)]
    return [float(x[group].mean()) for group in groups], [float(y[group].mean()) for group in groups]


def _panels(count: int):
    from matplotlib.figure import Figure

    across = min(3, count)
    down = math.ceil(count / across)
    figure = Figure(figsize=(PANEL[0] * across, PANEL[1] * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels[:count]


def _colors(rows: Iterable[str]) -> dict[str, Any]:
    fixed = {INPUT: LIGHT, TRUTH: DARK}
    others = [row for row in rows if row not in fixed]
    return fixed | {row: f"C{number % 10}" for number, row in enumerate(others)}


def _short(row: str) -> str:
    text = row if len(row) <= 28 else row[:27] + "…"
    return _plain(text)


def _plain(text: str) -> str:
    """Dollar signs would begin a formula."""
    return text.replace("$", r"\$")
