"""The report of ``sgpn bench``: rows of measurements as JSON, a Markdown table, a table for the terminal, and growth plots."""

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sgpn_model.cli.bench_measure import quartiles

# No printed table is wider than this.
WIDEST = 100
# What a printed table can do without, the least needed first; the files have all columns.
SPARE = ("GFLOP/s", "GFLOP", "quartiles")
# Inches of a plot of two panels and a legend.
PANELS = (10.0, 3.3)


@dataclass
class Row:
    """One thing that was measured.

    Attributes:
        what: its name. seconds: of each round. faces: restored by one call, or None where there is no such number.
        gflop: of one call, by the plain definition, also where a fast path does with less.
        ceiling: GFLOP/s of one large convolution in the same precision and run.
        floor: seconds that the memory needs at least, at the bandwidth of a copy. peak_mib: memory beyond what was there.
        plain_seconds: of the plain path, where that has no row of its own.
        share: of a whole, 0..1. ratio: how many times faster than the plain path in the same precision.
        versus_fp32: how many times faster than the plain path in fp32.
        difference: from the plain path, in fp32: ``max_abs`` and ``psnr``. exact: whether ``max_abs`` is the one to show.
        at: the place on the axis of a sweep. stages: seconds of its parts, where it has any.
    """

    what: str
    seconds: list[float]
    faces: int | None = None
    gflop: float | None = None
    ceiling: float | None = None
    floor: float | None = None
    peak_mib: float | None = None
    plain_seconds: list[float] | None = None
    share: float | None = None
    ratio: float | None = None
    versus_fp32: float | None = None
    difference: dict[str, float | None] | None = None
    exact: bool = True
    at: float | None = None
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds, the median of the rounds."""
        return quartiles(self.seconds)[1]

    @property
    def gflops(self) -> float | None:
        """GFLOP/s that were achieved."""
        return None if self.gflop is None else self.gflop / self.median

    def as_json(self) -> dict:
        """The fields, and what follows from them."""
        low, median, high = quartiles(self.seconds)
        derived = {
            "median": median,
            "lower_quartile": low,
            "upper_quartile": high,
            "least": min(self.seconds),
            "gflop_per_second": self.gflops,
            "part_of_ceiling": self.gflops / self.ceiling if self.gflop and self.ceiling else None,
            "part_of_bandwidth": self.floor / median if self.floor else None,
            "plain_median": quartiles(self.plain_seconds)[1] if self.plain_seconds else None,
            "faces_per_second": self.faces / median if self.faces else None,
        }
        return asdict(self) | derived


@dataclass
class Table:
    """The rows of one part, what they are about, and what their reader should know."""

    name: str
    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    axis: str | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, none of them after the point where there are enough before it."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text or abs(value) >= 10**digits else text


def percent(value: float | None) -> str:
    """A part of 1 as percent."""
    return "" if value is None else f"{number(100 * value, 2)}%"


def _quartiles(row: Row) -> str:
    low, _, high = quartiles(row.seconds)
    return f"{number(low * 1e3)}-{number(high * 1e3)}"


def _difference(row: Row) -> str:
    if row.difference is None:
        return ""
    if row.exact or row.difference["psnr"] is None:
        return f"{row.difference['max_abs']:.1e}"
    return f"{row.difference['psnr']:.1f} dB"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "": lambda row: row.what,
    "ms": lambda row: number(row.median * 1e3),
    "quartiles": _quartiles,
    "faces/s": lambda row: number(row.faces / row.median) if row.faces and row.faces > 1 else "",
    "GFLOP": lambda row: number(row.gflop),
    "GFLOP/s": lambda row: number(row.gflops),
    "ceiling": lambda row: percent(row.as_json()["part_of_ceiling"]),
    "bandwidth": lambda row: percent(row.as_json()["part_of_bandwidth"]),
    "peak MiB": lambda row: number(row.peak_mib),
    "plain ms": lambda row: number(quartiles(row.plain_seconds)[1] * 1e3) if row.plain_seconds else "",
    "share": lambda row: percent(row.share),
    "x plain": lambda row: number(row.ratio),
    "x fp32": lambda row: number(row.versus_fp32),
    "difference": _difference,
}


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Header and rows as text, without the columns that are empty throughout."""
    columns = {name: [make(row) for row in rows] for name, make in COLUMNS.items()}
    kept = {name: column for name, column in columns.items() if not name or any(column)}
    return [list(kept), *map(list, zip(*kept.values(), strict=True))]


# ---------------------------------------------------------------------------------------------------------------------
# Files and the terminal


def plain_text(table: Table) -> str:
    """The table for a terminal, no line wider than WIDEST; where that is too narrow the columns SPARE are left out."""
    columns = [list(column) for column in zip(*cells(table.rows), strict=True)]
    for name in SPARE:
        if _width(columns) > WIDEST:
            columns = [column for column in columns if column[0] != name]
    widths = [max(map(len, column)) for column in columns]
    # What is too wide still is taken from the first column, the names.
    widths[0] = min(widths[0], WIDEST - _width(columns[1:]) - 2)
    text = textwrap.wrap(table.title, WIDEST)
    for name, *values in zip(*columns, strict=True):
        told = name if len(name) <= widths[0] else name[: widths[0] - 2] + ".."
        text.append("  ".join([told.ljust(widths[0]), *map(str.rjust, values, widths[1:])]).rstrip())
    return "\n".join([*text, *wrapped(table.notes)])


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) for column in columns) + 2 * (len(columns) - 1)


def wrapped(notes: Sequence[str]) -> list[str]:
    """Notes as lines no wider than WIDEST."""
    return [line for note in notes for line in textwrap.wrap(note, WIDEST, initial_indent="- ", subsequent_indent="  ")]


def markdown(table: Table, machine: Mapping) -> str:
    """The table as Markdown, with its notes and the machine."""
    header, *lines = cells(table.rows)
    text = [f"# {table.title}", "", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    text += ["| " + " | ".join(line) + " |" for line in lines]
    text += ["", *(f"- {note}" for note in table.notes), f"- {told(machine)}", ""]
    return "\n".join(text)


def told(machine: Mapping) -> str:
    """One sentence about the machine."""
    cores = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    on = cores if machine["device"] == "cpu" else f"{machine['device']} beside {cores}"
    known = machine["versions"]
    return f"{on}; " + ", ".join(f"{name} {known[name]}" for name in ("python", "torch", "sgpn") if name in known)


def write(folder: Path, table: Table, machine: Mapping, settings: Mapping, date: str) -> list[Path]:
    """Writes NAME.json, NAME.md and, for a sweep where matplotlib is installed, NAME.png; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "name": table.name,
        "title": table.title,
        "date": date,
        "machine": machine,
        "settings": settings,
        "rows": [row.as_json() for row in table.rows],
        "notes": table.notes,
    }
    places = [folder / f"{table.name}.json", folder / f"{table.name}.md"]
    places[0].write_text(json.dumps(report, indent=1), encoding="utf-8")
    places[1].write_text(markdown(table, machine), encoding="utf-8")
    if table.axis and draw_growth(table, folder / f"{table.name}.png"):
        places.append(folder / f"{table.name}.png")
    return places


# ---------------------------------------------------------------------------------------------------------------------
# Growth


def draw_growth(table: Table, path: Path) -> bool:
    """Time (with its quartiles; its parts as areas where there are any) and peak memory over the sweep's axis.

    Both axes begin at zero and are linear. Returns False where matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=PANELS, layout="constrained")
    for number_, (series, rows) in enumerate(_series(table.rows).items()):
        places, colour = [row.at for row in rows], f"C{number_}"
        spread = [[abs(row.median - quartiles(row.seconds)[end]) for row in rows] for end in (0, 2)]
        whole = "black" if rows[0].stages else colour
        left.errorbar(places, [row.median for row in rows], spread, color=whole, marker="o", capsize=3, label=series)
        right.plot(places, [row.peak_mib or 0 for row in rows], color=whole, marker="o", label=series)
        if rows[0].stages:
            names = list(rows[0].stages)
            left.stackplot(places, [[row.stages[name] for row in rows] for name in names], labels=names, alpha=0.6)
    for axis, title in ((left, "seconds"), (right, "peak memory, MiB")):
        axis.set(title=title, xlabel=table.axis, xlim=(0, None), ylim=(0, None))
        axis.locator_params(axis="x", integer=True)
        axis.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return True


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of a sweep by what they are rows of: their names up to the comma."""
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(row.what.partition(",")[0], []).append(row)
    return series
