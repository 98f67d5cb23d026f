"""The page docs/options.md, made from the models and signatures that check the options, and from the commands' parsers."""

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from sgpn_arch.by_name import options_of, signature_options
from sgpn_arch.fusion_arch import Fusion
from sgpn_arch.ranges import told
from sgpn_arch.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from sgpn_arch.schema import Options
from sgpn_data.degradation import DEGRADATIONS, RangeOptions
from sgpn_data.face_dataset import FaceDatasetOptions, LoaderOptions
from sgpn_model.cli import build_parser
from sgpn_model.config.registries import fill_registries
from sgpn_model.config.sections import TestingFile, TrainingFile
from sgpn_model.config.strict_yaml import dump
from sgpn_model.train.optimizers import OPTIMIZERS, OptimizerOptions
from sgpn_model.train.training_model import TrainOptions

HEAD = """# Options

Every option of the option files and of the commands: what it may be, and what it is where it is left out. `sgpn options docs`
makes this page from the models that check the options, so it says what the program does. `~` is YAML's word for nothing.
[training.md](training.md) shows how option files are used, [plugins.md](plugins.md) how parts of your own are named.
"""
OURS = ("sgpn_arch", "sgpn_model")


def page() -> str:
    """The whole page as Markdown."""
    fill_registries()
    return "\n".join([HEAD, *_training(), *_parts(), *_testing(), *_commands()])


def _training() -> Iterator[str]:
    yield "## Files for `sgpn train`\n"
    yield from _table(TrainingFile.model_fields)
    yield from _sections(TrainingFile, "")
    yield "## `train`: the training stages\n\nEvery stage has these:\n"
    yield from _table(TrainOptions.model_fields)
    for name, stage in sorted(_ours(MODEL_REGISTRY)):
        model = stage.OPTIONS
        yield f"### `train` of {name}\n\n{_first_sentence(stage)}\n"
        yield from _table(
            {key: field for key, field in model.model_fields.items() if key not in TrainOptions.model_fields}
        )
        yield from _sections(model, "train.", f" of {name}")
    yield "### `train.optim_*`\n"
    for name, (_, model) in OPTIMIZERS.items():
        yield f"`type: {name}`\n"
        yield from _table(model.model_fields, leave_out={"type"})


def _parts() -> Iterator[str]:
    yield "## Datasets\n\n### `datasets.PHASE` of FaceRestorationDataset\n"
    yield from _table(FaceDatasetOptions.model_fields, leave_out={"phase"})
    yield from _sections(FaceDatasetOptions, "datasets.PHASE.")
    yield "### `datasets.PHASE.degradation`\n"
    for name, degradation in DEGRADATIONS.items():
        yield f"`type: {name}`\n"
        model = options_of(degradation)
        assert model is not None  # it is ours
        yield from _table(model.model_fields, leave_out=RangeOptions.model_fields)
    yield "Both types have these. A range is [lo, hi] or one number, drawn uniformly; `~` switches the step off.\n"
    yield from _table(RangeOptions.model_fields)
    yield from _sections(RangeOptions, "datasets.PHASE.degradation.")
    yield "## Networks: `network_*`\n"
    fusions = [name for name, arch in sorted(_ours(ARCH_REGISTRY)) if issubclass(arch, Fusion)]
    yield f"Fusions for `fusion`: {', '.join(fusions)}.\n"
    for name, arch in sorted(_ours(ARCH_REGISTRY)):
        if name not in fusions:
            yield from _of_signature(name, arch)
    yield "## Losses: `train.losses.NAME`\n\nBasicSR's losses can be named too; L1Loss is one.\n"
    for name, loss in sorted({**dict(_ours(LOSS_REGISTRY)), "L1Loss": LOSS_REGISTRY.get("L1Loss")}.items()):
        yield from _of_signature(name, loss)


def _testing() -> Iterator[str]:
    yield "## Files for `sgpn test`\n"
    yield from _table(TestingFile.model_fields)
    yield from _sections(TestingFile, "")
    names = sorted(name for name, metric in METRIC_REGISTRY if isinstance(metric, type))
    yield f"Metrics, which [metrics.md](metrics.md) explains: {', '.join(names)}.\n"


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    yield from _command("sgpn", build_parser())


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below, command in action.choices.items():
                yield from _command(f"{name} {below}", command)
        elif action.help and "help" not in action.dest and action.help != argparse.SUPPRESS:
            flags = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.metavar}`"
            value = ", ".join(map(str, action.choices)) if action.choices else action.metavar or ""
            meaning = parser._get_formatter()._get_help_string(action)  # with its default
            rows.append((flags, "" if not action.option_strings or action.nargs == 0 else value, meaning))
    if rows and name != "sgpn":
        yield f"### `{name}`\n"
        yield from _rows(("argument", "value", "meaning"), rows)


def _ours(registry) -> list[tuple[str, Any]]:
    return [(name, part) for name, part in registry if part.__module__.partition(".")[0] in OURS]


def _sections(model: type[Options], where: str, of: str = "") -> Iterator[str]:
    """The tables of the sections inside, and of those inside them."""
    for key, field in model.model_fields.items():
        for section in _models_in(field.rebuild_annotation()):
            if section not in (LoaderOptions, OptimizerOptions):  # whose fields depend on the type that is named
                yield f"### `{where}{key}`{of}\n"
                yield from _table(section.model_fields)
                yield from _sections(section, f"{where}{key}.", of)


def _models_in(kind: Any) -> Iterator[type[Options]]:
    if isinstance(kind, type) and issubclass(kind, Options):
        yield kind
    for part in getattr(kind, "__args__", ()):
        yield from _models_in(part)


def _of_signature(name: str, part: Any) -> Iterator[str]:
    yield f"### {name}\n\n{_first_sentence(part)}\n"
    told_of = _arguments_told(part)
    yield from _table(signature_options(part).model_fields, told_of=told_of)


def _arguments_told(part: Any) -> dict[str, str]:
    """The lines of a docstring's ``Args`` by argument; several may share one."""
    text = re.search(r"Args:\n(.*?)(?:\n\n|\Z)", inspect.getdoc(part) or "", re.DOTALL)
    names = "|".join(signature_options(part).model_fields)
    found = {}
    start = rf"((?:(?:{names}), )*(?:{names})): "
    pieces = re.split(rf"(?:^|(?<=\s)){start}", " ".join(text[1].split())) if text and names else []
    for keys, meaning in zip(pieces[1::2], pieces[2::2], strict=True):
        found.update(dict.fromkeys(keys.split(", "), meaning.strip()))
    return found


def _table(
    fields: dict[str, FieldInfo], leave_out: Iterable[str] = (), told_of: dict[str, str] | None = None
) -> Iterator[str]:
    rows = []
    for key, field in fields.items():
        if key not in leave_out:
            meaning = (told_of or {}).get(key) or field.description or ""
            value = told(field.rebuild_annotation()).replace("~ (nothing)", "`~`")
            rows.append((f"`{key}`", value, _default(field), meaning[:1].upper() + meaning[1:]))
    yield from _rows(("option", "value", "default", "meaning"), rows) if rows else ["It has no options.\n"]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, Options):
        return "its defaults"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if value is None:
        return "`~`"
    return f"`{dump(value, inline=True)}`"


def _rows(head: tuple[str, ...], rows: Sequence[tuple]) -> Iterator[str]:
    for cells in (head, ("---",) * len(head), *rows):
        plain = (re.sub(r":\w+:`(?:\w+\.)*(\w+)`", r"`\1`", cell).replace("``", "`") for cell in cells)
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in plain) + " |"
    yield ""


def _first_sentence(part: Any) -> str:
    return _sentence(inspect.getdoc(part))


def _sentence(text: str | None) -> str:
    return " ".join((text or "").partition("\n\n")[0].split())
