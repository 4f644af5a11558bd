"""What the notebooks are written with: commands, sheets of images, curves, and photos to try things on."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fastcomposer.training.wandb_workspace import PANELS

_DPI = 110
_SPLITS = {"train": "training", "val": "held out"}
_SMALL = 128  # pixels; up to this side images are enlarged
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8860b", "#aa4499", "#5d6f7d")


_COLOUR_VARIABLES = ("FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE")


class Html(str):
    """A piece of a page; a notebook shows it as such."""

    def _repr_html_(self) -> str:
        return str(self)


def quiet() -> None:
    """Leave bars of loading and warnings about missing widgets out of a notebook."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore", message="IProgress")


def run(command: str, *overrides: str) -> None:
    """Call a command of the package as on a terminal, and print what it says.

    Args:
        command: Its name, such as ``train``.
        *overrides: Its arguments.

    Raises:
        RuntimeError: If it fails.
    """
    call = [sys.executable, "-m", f"fastcomposer.cli.{command}", *overrides]
    # A kernel tells what it starts that there is a terminal; bars would come out as hundreds of lines.
    plain = {name: value for name, value in os.environ.items() if name not in _COLOUR_VARIABLES}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(call, env=plain, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise RuntimeError(f"{command} ended with status {process.returncode}; its last lines say why")


def sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    side: float = 1.5,
) -> Image.Image:
    """Put images into rows, with titles.

    Args:
        rows: Images of each row; ``None`` leaves a place empty.
        columns: Title of each column.
        names: Title of each row.
        side: Side of an image in inches.
    """
    width = max(map(len, rows))
    titles = [textwrap.fill(title, round(13 * side)) for title in columns]
    above = max((title.count("\n") + 1 for title in titles), default=0)
    figure = Figure(figsize=(width * side, len(rows) * side + 0.2 * above), layout="constrained")
    grid = figure.subplots(len(rows), width, squeeze=False)
    for y, line in enumerate(grid):
        for x, axes in enumerate(line):
            image = rows[y][x] if x < len(rows[y]) else None
            _show(axes, image)
            if y == 0 and x < len(titles):
                axes.set_title(titles[x], fontsize=9)
        if y < len(names):
            line[0].set_ylabel(names[y], fontsize=9)
    return _drawn(figure)


def curves(run_dir: str | Path, smooth: int = 5) -> Image.Image:
    """Draw the promised panels of a training from its own log, without any dashboard.

    Args:
        run_dir: Folder of the training.
        smooth: Rows of the log over which each line is averaged.

    Raises:
        FileNotFoundError: If there is no log.
        ValueError: If nothing was logged twice.
    """
    log = Path(run_dir) / "logs" / "metrics.csv"
    with log.open() as file:
        rows = list(csv.DictReader(file))
    found = []
    for panel in PANELS:
        lines = {key: _points(rows, key) for key in panel.keys if panel.kind == "lines"}
        if any(len(points) > 1 for points in lines.values()):  # a point alone says nothing
            found.append((panel.title, lines))
    if not found:
        raise ValueError(f"{log}: nothing was logged twice, so there are no curves; train longer")
    count = -(-len(found) // 3)
    figure = Figure(figsize=(9, 2.3 * count), layout="constrained")
    grid = figure.subplots(count, 3, squeeze=False).flat
    for axes, (title, lines) in zip(grid, found, strict=False):
        axes.set_title(title, fontsize=9)
        for colour, (key, points) in zip(_COLOURS, lines.items(), strict=False):
            steps, values = _averaged(points, smooth if key.startswith("train/") else 1)
            mark = "" if len(steps) > 20 else "o"
            axes.plot(
                steps,
                values,
                color=colour,
                label=_SPLITS.get(key.partition("/")[0], key),
                marker=mark,
                markersize=3,
            )
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
        axes.ticklabel_format(style="sci", scilimits=(-3, 4), axis="y")
        axes.set_xlabel("step", fontsize=8)
        axes.yaxis.get_offset_text().set_fontsize(7)
        _plain(axes)
    for axes in grid:
        axes.set_axis_off()
    return _drawn(figure)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str,
    level: tuple[str, float] | None = None,
) -> Image.Image:
    """Draw lines through points.

    Args:
        series: Points of each line by its name.
        x: Title of the horizontal axis.
        y: Title of the vertical one.
        level: Name and height of a dashed line to compare with.
    """
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for colour, (name, points) in zip(_COLOURS, series.items(), strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=name)
    if level is not None:
        axes.axhline(level[1], color="#5d6f7d", linestyle="--", linewidth=1, label=level[0])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    return _drawn(figure)


def svg(figure: str, width: int = 560) -> Html:
    """Show a figure of :mod:`fastcomposer.evaluation.report.plots`, in pixels of width."""
    return Html(f'<div style="max-width:{width}px;background:#fefefe">{figure}</div>')


def records(root: str | Path, split: str = "all", count: int = 8) -> Html:
    """Show records with their subjects' masks, and captions in their colours.

    Args:
        root: Data folder.
        split: Which list of records.
        count: At most how many.
    """
    # Only now: what is imported with these warns of widgets unless it is told not to.
    from fastcomposer.data.records import read_ids
    from fastcomposer.preparation.record_images import draw_sample

    found = []
    for name in read_ids(root, split)[:count]:
        sample = draw_sample(Path(root), name)
        words = "".join(
            f'<b style="color:{piece.color}">{piece.text}</b>' if piece.color else piece.text
            for piece in sample.caption
        )
        found.append(
            '<figure style="display:inline-block;width:260px;margin:6px;vertical-align:top">'
            f'<img src="{sample.source}" style="width:100%"><figcaption>{words}</figcaption></figure>'
        )
    return Html("".join(found))


def example_photos(folder: str | Path) -> Path:
    """Write a few photos that packages ship, each with a caption that names its people from left to right.

    Args:
        folder: Where to.
    """
    import skimage

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    officer = Image.open(hopper).convert("RGB").resize((512, 606)).crop((0, 0, 512, 512))
    shipped = Path(skimage.__file__).parent / "data"
    astronaut, cat = (
        Image.open(shipped / f"{name}.png").convert("RGB").resize((512, 512))
        for name in ("astronaut", "chelsea")
    )
    pair = Image.new("RGB", (1024, 512))
    pair.paste(astronaut, (0, 0))
    pair.paste(officer, (512, 0))
    captions = {
        "astronaut": (astronaut, "a smiling woman in an orange space suit"),
        "officer": (officer, "a woman in a dark uniform with a hat"),
        "pair": (pair, "a woman in an orange space suit beside a woman in a dark uniform"),
        "cat": (cat, "a ginger cat looks up"),
    }
    for name, (image, caption) in captions.items():
        image.save(folder / f"{name}.jpg", quality=95)
        (folder / f"{name}.txt").write_text(caption + "\n")
    return folder


def _show(axes: Axes, image: Image.Image | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if image is not None:
        backing = Image.new("RGBA", image.size, (238, 238, 238, 255))
        small = max(image.size) <= _SMALL
        whole = Image.alpha_composite(backing, image.convert("RGBA"))
        axes.imshow(np.asarray(whole), interpolation="bicubic" if small else "antialiased")


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(row["step"]), float(row[key])) for row in rows if row.get(key)]


def _averaged(points: Sequence[tuple[float, float]], count: int) -> tuple[list[float], list[float]]:
    values = [value for _, value in points]
    means = [float(np.mean(values[max(0, i - count + 1) : i + 1])) for i in range(len(values))]
    return [step for step, _ in points], means


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dfe2e5", linewidth=0.6)
    axes.tick_params(labelsize=8)


def _drawn(figure: Figure) -> Image.Image:
    data = BytesIO()
    figure.savefig(data, format="png", dpi=_DPI, bbox_inches="tight")  # no title is cut off
    return Image.open(data)
