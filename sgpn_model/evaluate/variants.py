"""What ``sgpn ablate`` runs: variants of a model trained and tested alike over several seeds, and compared in one report."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import yaml

from sgpn_arch.errors import OptionError
from sgpn_data.photos import write_picture
from sgpn_model.config.checking import checked_options
from sgpn_model.config.strict_yaml import dump
from sgpn_model.evaluate.evaluate import evaluate
from sgpn_model.evaluate.report import Scores, heading, picture_grid, write_report
from sgpn_model.train import loop as train

LOGGER = logging.getLogger("sgpn")
# The paper's metrics and their offline stand-ins; the report says which could not be had.
METRICS = (
    "psnr",
    "ssim",
    "lpips_vgg",
    "fid",
    "perceptual_mnv2",
    "frechet_mnv2",
    "identity_faceres",
    "landmark_dlib",
    "niqe",
)
# What may differ between two runs of one training without making it another.
INCIDENTAL = ("device", "path.experiments_root", "logger", "val.save_images")


@dataclass(frozen=True)
class Run:
    """One training: a variant with a seed.

    Attributes:
        variant: the option file's ``name``. seed: of initialisation, order and degradation. path: the option file.
        options: merged. folder: where it trains. checkpoint: what it leaves when it is done.
    """

    variant: str
    seed: int
    path: str
    options: dict
    folder: Path
    checkpoint: Path


def run(
    options_paths: Sequence[str],
    output: str = "experiments/ablation",
    seeds: Sequence[int] = (0, 1, 2),
    overrides: Iterable[str] = (),
    device: str | None = None,
    data: Sequence[str] = (),
) -> dict:
    """Trains every option file with every seed, tests all on the validation faces and writes the comparison.

    Trainings that are done are skipped, one that was interrupted goes on. ``output`` gets report.md, report.json,
    curves.png, grid.jpg, and a folder for each seed with the experiments.

    Args:
        options_paths: option files of ``sgpn train``, the model that the others are compared with first. They should
            share data and budget. output: folder. seeds: at least one.
        overrides: ``a.b=c`` assignments for all of them. device: overrides the files' ``device``. data: folders of faces
            for the datasets that name none.

    Returns:
        What report.json holds.

    Raises:
        OptionError: a file cannot be used, two have one name, or an experiment that is there was trained otherwise;
            before any work starts.
    """
    runs = plan(options_paths, Path(output), seeds, list(overrides), data)
    for job in runs:
        _train(job, list(overrides), device, data)
    scores = {seed: _test([job for job in runs if job.seed == seed], Path(output), device) for seed in seeds}
    report = compare(
        {seed: score.table() for seed, score in scores.items()}, [job.variant for job in runs if job.seed == seeds[0]]
    )
    report["left_out"] = list(dict.fromkeys(why for score in scores.values() for why in score.left_out))
    report["settings"] = _settings(runs, seeds)
    _write(Path(output), report, runs, scores[seeds[0]])
    return report


# ---------------------------------------------------------------------------------------------------------------------
# Training and testing


def plan(
    paths: Sequence[str], output: Path, seeds: Sequence[int], overrides: list[str], data: Sequence[str] = ()
) -> list[Run]:
    """All trainings, seed by seed; raises OptionError as :func:`run` does."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise OptionError("--seeds: give different numbers, for instance 0 1")
    runs = []
    for seed in seeds:
        for path in paths:
            options, _ = checked_options(path, [*overrides, *_assignments(output, seed)], "train", data=data)
            folder = output / f"seed_{seed}" / options["name"]
            checkpoint = folder / "models" / f"{options['name']}_{options['train']['total_iter']}.safetensors"
            runs.append(Run(options["name"], seed, str(path), options, folder, checkpoint))
    names = [job.variant for job in runs if job.seed == seeds[0]]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"{', '.join(map(str, paths))}: two of them are called '{name}'; their names must differ")
    for job in runs:
        _check_is_the_same(job)
    return runs


def _assignments(output: Path, seed: int) -> list[str]:
    root = json.dumps(str(output / f"seed_{seed}"))
    return [f"path.experiments_root={root}", f"manual_seed={seed}", f"datasets.train.seed={seed}"]


def _check_is_the_same(job: Run) -> None:
    file = job.folder / "options.yml"
    if not file.is_file():
        return
    before, now = _flat(yaml.safe_load(file.read_text(encoding="utf-8"))), _flat(job.options)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    changed = [key for key in changed if not key.startswith(INCIDENTAL)]
    if changed:
        key = changed[0]
        raise OptionError(
            f"{job.folder}: was trained with other options than {job.path} has now ({key}: {before.get(key)!r} -> "
            f"{now.get(key)!r}); delete that folder, or choose another with -o"
        )


def _flat(options: Mapping, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}; what is None counts as not there."""
    flat = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _train(job: Run, overrides: list[str], device: str | None, data: Sequence[str]) -> None:
    if job.checkpoint.is_file():
        LOGGER.info("%s, seed %d: done before (%s)", job.variant, job.seed, job.checkpoint)
        return
    root = job.folder.parent.parent
    train.run(job.path, [*overrides, *_assignments(root, job.seed)], device, auto_resume=True, data=data)


def _test(runs: Sequence[Run], output: Path, device: str | None) -> Scores:
    """Scores one seed's variants on the validation faces, and writes their report."""
    folder = output / f"seed_{runs[0].seed}" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "name": f"seed_{runs[0].seed}",
        "datasets": {"test": runs[0].options["datasets"]["val"]},
        "restorers": {job.variant: str(job.checkpoint) for job in runs},
        "metrics": list(METRICS),
    }
    path = folder / "options.yml"
    path.write_text(dump(options), encoding="utf-8")
    scores = evaluate(str(path), (), device)
    write_report(folder, scores)
    return scores


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


def compare(scores: Mapping[int, Mapping[str, Mapping[str, float]]], variants: Sequence[str]) -> dict:
    """Means over the seeds, their spread, and what each variant differs from the first by.

    Args:
        scores: seed -> row -> metric -> mean over the faces; rows are the variants, and the degraded input and the truth.
        variants: names, the one that the others are compared with first.

    Returns:
        ``table``: row -> metric -> {mean, low, high} over the seeds; ``difference``: variant -> metric -> the same of
        its value less the first variant's with the same seed; ``seeds``: the scores as they came.
    """
    rows = {row: None for columns in scores.values() for row in columns}
    table = {row: _over_seeds([columns[row] for columns in scores.values() if row in columns]) for row in rows}
    first, difference = variants[0], {}
    for variant in variants[1:]:
        pairs = [(columns[variant], columns[first]) for columns in scores.values()]
        difference[variant] = _over_seeds([{key: own[key] - other[key] for key in own} for own, other in pairs])
    return {"table": table, "difference": difference, "seeds": {str(seed): dict(rows) for seed, rows in scores.items()}}


def _over_seeds(values: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    summary = {}
    for metric in values[0]:
        numbers = [row[metric] for row in values if metric in row]
        summary[metric] = {"mean": mean(numbers), "low": min(numbers), "high": max(numbers)}
    return summary


def _settings(runs: Sequence[Run], seeds: Sequence[int]) -> dict:
    """The first variant's options, and what each of the others changes in them."""
    own = {job.variant: _flat(job.options) for job in runs if job.seed == seeds[0]}
    first = next(iter(own.values()))
    changes = {
        variant: {
            key: flat.get(key) for key in sorted({*flat, *first}) if flat.get(key) != first.get(key) and key != "name"
        }
        for variant, flat in own.items()
    }
    return {"options": first, "changes": changes, "files": {job.variant: job.path for job in runs}}


# ---------------------------------------------------------------------------------------------------------------------
# The report


def _write(output: Path, report: dict, runs: Sequence[Run], scores: Scores) -> None:
    (output / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    text = markdown(report, len(report["seeds"]))
    (output / "report.md").write_text(text, encoding="utf-8")
    draw_curves(runs, output / "curves.png")
    write_picture(output / "grid.jpg", picture_grid(scores.pictures))
    print(text)
    LOGGER.info("report, curves and pictures in %s", output)


def markdown(report: Mapping, seeds: int) -> str:
    """The report as Markdown: the table, the differences from the first variant, and the settings."""
    settings = report["settings"]
    lines = [
        f"# Ablation over {seeds} seeds" if seeds > 1 else "# Ablation with one seed",
        "",
        "Mean over the seeds, and in brackets the lowest and the highest."
        if seeds > 1
        else "One seed says nothing of the spread.",
        "",
    ]
    lines += _table(report["table"], "{mean:.3f}" + (" ({low:.3f} to {high:.3f})" if seeds > 1 else ""))
    first = next(iter(settings["changes"]))
    if report["difference"]:
        lines += ["", f"Less {first} with the same seed:", ""]
        lines += _table(report["difference"], "{mean:+.3f}" + (" ({low:+.3f} to {high:+.3f})" if seeds > 1 else ""))
    if report["left_out"]:
        lines += ["", "Left out:", "", *(f"- {why}" for why in report["left_out"])]
    lines += ["", "| variant | option file | what it changes |", "|---|---|---|"]
    for variant, changes in settings["changes"].items():
        told = ", ".join(f"{key}: {value}" for key, value in changes.items()) or "–"
        lines.append(f"| {variant} | {settings['files'][variant]} | {told} |")
    lines += [
        "",
        f"Options of {first}:",
        "",
        "```",
        yaml.safe_dump(settings["options"], sort_keys=True).strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _table(rows: Mapping, cell: str) -> list[str]:
    metrics = list(dict.fromkeys(metric for columns in rows.values() for metric in columns))
    lines = ["| | " + " | ".join(heading(metric) for metric in metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for row, columns in rows.items():
        cells = [cell.format(**columns[metric]) if metric in columns else "–" for metric in metrics]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


def draw_curves(runs: Sequence[Run], path: Path) -> None:
    """One panel for each loss: a line for each variant, the mean over its seeds, and thin lines for the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logs = {(job.variant, job.seed): _losses(job) for job in runs}
    names = sorted({name for log in logs.values() for name in log})
    figure, axes = pyplot.subplots(1, max(1, len(names)), figsize=(4.5 * max(1, len(names)), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=False):
        for number, variant in enumerate(dict.fromkeys(job.variant for job in runs)):
            lines = [log[name] for (of, _), log in logs.items() if of == variant and name in log]
            for steps, values in lines:
                axis.plot(steps, values, color=f"C{number}", linewidth=0.6, alpha=0.45)
            if lines:
                length = min(len(steps) for steps, _ in lines)
                middle = np.mean([values[:length] for _, values in lines], axis=0)
                axis.plot(lines[0][0][:length], middle, color=f"C{number}", label=variant)
        axis.set(title=name, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _losses(job: Run) -> dict[str, tuple[list[int], list[float]]]:
    """Loss -> steps and values, from the run's log."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    log = job.folder / "log" / "train.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        entry = json.loads(line)
        for name, value in entry.items() if entry["phase"] == "train" else ():
            if name.startswith("l_") and value > 0:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(entry["step"])
                values.append(value)
    return curves
