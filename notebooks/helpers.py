"""What the notebooks share: calls of commands, sheets of images, curves, records and example photos."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib import pyplot as plt
from PIL import Image

from fastcomposer.training.wandb_workspace import PANELS

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
warnings.filterwarnings("ignore", message="IProgress")
plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "font.size": 8})
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b8860b", "#aa4499", "#5d6f7d")
_TERMINAL = ("FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE")  # a kernel sets these


def run(command: str, *overrides: str) -> None:
    """Call a subcommand of ``fastcomposer`` and print its output; raises RuntimeError if it fails."""
    call = [sys.executable, "-m", "fastcomposer", command, *overrides]
    # Without a terminal, progress bars are a line now and then.
    plain = {name: value for name, value in os.environ.items() if name not in _TERMINAL}
    with subprocess.Popen(
        call, env=plain, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        raise RuntimeError(f"{command} ended with status {process.returncode}; see its last lines")


def sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    side: float = 1.5,
) -> None:
    """Plot images in rows; ``None`` leaves a cell empty.

    Args:
        rows: Images of each row.
        columns: Title of each column.
        names: Title of each row.
        side: Side of an image in inches.
    """
    width = max(map(len, rows))
    titles = [textwrap.fill(title, round(13 * side)) for title in columns]
    above = max((title.count("\n") + 1 for title in titles), default=0)
    size = (width * side, len(rows) * side + 0.2 * above)
    _, grid = plt.subplots(len(rows), width, squeeze=False, figsize=size, layout="constrained")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title, fontsize=9)
    for axes, name in zip(grid[:, 0], names, strict=False):
        axes.set_ylabel(name, fontsize=9)
    for line, images in zip(grid, rows, strict=True):
        for axes, image in zip(line, images, strict=False):
            if image is not None:
                backing = Image.new("RGBA", image.size, (238, 238, 238, 255))
                pixels = np.asarray(Image.alpha_composite(backing, image.convert("RGBA")))
                axes.imshow(pixels, interpolation="bicubic" if max(image.size) <= 128 else "antialiased")


def curves(run_dir: str | Path, smooth: int = 5) -> None:
    """Plot the dashboard's panels of a training from its own log.

    Args:
        run_dir: Folder of the training.
        smooth: Rows of the log over which training curves are averaged.
    """
    file = Path(run_dir) / "logs" / "metrics.csv"
    log = pd.read_csv(file).set_index("step")
    panels = {
        panel.title: [key for key in panel.keys if key in log and log[key].count() > 1]
        for panel in PANELS
        if panel.kind == "lines"
    }
    panels = {title: keys for title, keys in panels.items() if keys}
    if not panels:
        raise ValueError(f"{file}: nothing was logged twice, so there are no curves; train longer")
    count = math.ceil(len(panels) / 3)
    _, grid = plt.subplots(count, 3, squeeze=False, figsize=(9, 2.3 * count), layout="constrained")
    for axes, (title, keys) in zip(grid.flat, panels.items(), strict=False):
        for color, key in zip(COLORS, keys, strict=False):
            values = log[key].dropna()
            if key.startswith("train/"):
                values = values.rolling(smooth, min_periods=1).mean()
            label = {"train": "training", "val": "held out"}.get(key.partition("/")[0], key)
            values.plot(
                ax=axes, color=color, label=label, marker="" if len(values) > 20 else "o", markersize=3
            )
        axes.set_title(title, fontsize=9)
        axes.grid(color="#dfe2e5", linewidth=0.6)
        axes.ticklabel_format(style="sci", scilimits=(-3, 4), axis="y")
        if len(keys) > 1:
            axes.legend(frameon=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()


def show_records(root: str | Path, split: str = "all", count: int = 8) -> HTML:
    """Show the first records of a split with their subjects' masks, and captions in the same colours."""
    # What these import warns of missing widgets unless the filter above is set.
    from fastcomposer.data.records import read_ids
    from fastcomposer.preparation.record_images import draw_sample

    figures = []
    for name in read_ids(root, split)[:count]:
        sample = draw_sample(Path(root), name)
        words = "".join(
            f'<b style="color:{piece.color}">{piece.text}</b>' if piece.color else piece.text
            for piece in sample.caption
        )
        figures.append(
            '<figure style="display:inline-block;width:260px;margin:6px;vertical-align:top">'
            f'<img src="{sample.source}" style="width:100%"><figcaption>{words}</figcaption></figure>'
        )
    return HTML("".join(figures))


def svg(figure: str, width: int = 560) -> HTML:
    """Show a figure of ``fastcomposer.evaluation.report.plots`` on white, at most ``width`` pixels wide."""
    return HTML(f'<div style="max-width:{width}px;background:#fefefe">{figure}</div>')


def example_photos(folder: str | Path) -> Path:
    """Write photos from Python packages, with captions that name their people from left to right."""
    import skimage

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    officer = Image.open(hopper).convert("RGB").resize((512, 606)).crop((0, 0, 512, 512))
    packaged = Path(skimage.__file__).parent / "data"
    astronaut, cat = (
        Image.open(packaged / f"{name}.png").convert("RGB").resize((512, 512))
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
