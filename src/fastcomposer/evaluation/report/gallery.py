"""Images of the report: which ones are shown, and how they become part of the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from fastcomposer.evaluation.load_results import Collected, Run, distinguishing
from fastcomposer.prompt import strip_markers
from fastcomposer.utils.provenance import read_metadata

T = TypeVar("T")
SHOWN = 256
"""Side in pixels that larger images are reduced to."""
_SMALL = 128  # up to this side every pixel is kept, and the browser enlarges without smoothing
_GOLDEN = 0.618  # steps of this share of a list keep far from what was taken before
_BACKING = (238, 238, 238)  # behind transparent references


@dataclass(frozen=True)
class Shown:
    """An image in the page: data URI, alternative text, and whether the browser enlarges it unsmoothed."""

    source: str
    alt: str
    pixelated: bool


@dataclass(frozen=True)
class Strip:
    """A line of images: its label, the images of each column, and whether these are the references."""

    label: str
    cells: tuple[tuple[Shown, ...], ...]
    references: bool = False


@dataclass(frozen=True)
class Gallery:
    """Images in lines and columns: the benchmark's name, the caption of each column, and the lines."""

    benchmark: str
    columns: tuple[str, ...]
    strips: tuple[Strip, ...]


def image_grid(collected: Collected, benchmark: str, per_category: int = 2) -> Gallery | None:
    """The same cases of all methods below each other, with the references above; ``None`` without images."""
    runs = [run for run in collected.main(benchmark) if run.images.file.map(Path.is_file).any()]
    if not runs:
        return None
    named = list(zip(distinguishing(runs), runs, strict=True))
    return named_grid(benchmark, named, collected.references, per_category)


def named_grid(
    benchmark: str, runs: Sequence[tuple[str, Run]], references: Mapping[str, Path], per_category: int
) -> Gallery | None:
    """The same cases of named runs below each other; ``None`` where no case is common to all."""
    cases = chosen_cases([run for _, run in runs], per_category)
    return _gallery(references, benchmark, runs, cases) if cases else None


def attention_grid(collected: Collected, benchmark: str, columns: int = 3) -> Gallery | None:
    """Attention of each subject's word, with and without localization, each case's image first."""
    pair = collected.ablation(benchmark)
    ours = collected.ours(benchmark)
    runs = list(pair) if pair else [ours] if ours else []
    having = [
        (run, [image for image in run.images.itertuples(index=False) if attention_files(run, image)])
        for run in runs
    ]
    having = [(run, images) for run, images in having if images]
    if not having:
        return None
    common = set.intersection(*({image.case for image in images} for _, images in having))
    cases = [image for image in having[0][1] if image.case in common]
    named = [("With localization" if run.localized else "Without localization", run) for run, _ in having]
    return _gallery(collected.references, benchmark, named, _spread(cases, columns), maps=True)


def attention_files(run: Run, image: Any) -> list[Path]:
    """Maps of an image's subjects in their order, ``attention/<case id>/<number>.png`` of the run."""
    if run.folder is None:
        return []
    files = [run.folder / "attention" / image.case / f"{number}.png" for number in range(len(image.subjects))]
    return files if all(file.is_file() for file in files) else []


def chosen_cases(runs: Sequence[Run], per_category: int) -> list[Any]:
    """Choose common cases by their order alone: prompts spread over each category, other people for each."""
    images = runs[-1].images
    for run in runs[:-1]:
        images = images.merge(run.images[["case", "seed"]])
    # Of <benchmark>/<subjects>/<category>_<prompt>/<image>.
    images = images.assign(prompt=[case.split("/")[-2] for case in images.case])
    chosen = []
    for _, group in images.groupby("category", sort=False):
        prompts = [list(cases.itertuples(index=False)) for _, cases in group.groupby("prompt", sort=False)]
        chosen += _spread(prompts, per_category)
    return [cases[int(len(cases) * _GOLDEN * number) % len(cases)] for number, cases in enumerate(chosen)]


def caption_of(image: Any) -> str:
    """The prompt that an image was sampled from, as its file states; the case where it does not."""
    metadata = read_metadata(image.file) or {}
    return strip_markers(str(metadata["prompt"])) if "prompt" in metadata else image.case


def shown(file: Path, alt: str) -> Shown:
    """Embed an image into the page: small ones as they are, larger ones reduced."""
    with Image.open(file) as opened:
        rgba = opened.convert("RGBA")
    image = Image.new("RGB", rgba.size, _BACKING)
    image.paste(rgba, (0, 0), rgba)
    small = max(image.size) <= _SMALL
    data = BytesIO()
    if small:
        image.save(data, "PNG", optimize=True)
    else:
        image.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
        image.save(data, "JPEG", quality=88)
    kind = "png" if small else "jpeg"
    return Shown(f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}", alt, small)


def _gallery(
    references: Mapping[str, Path],
    benchmark: str,
    runs: Sequence[tuple[str, Run]],
    cases: Sequence[Any],
    maps: bool = False,
) -> Gallery:
    """Lay out cases as columns and named runs as lines, below the references."""
    captions = tuple(caption_of(case) for case in cases)
    strips = _references(references, cases)
    for name, run in runs:
        named = zip(cases, captions, strict=True)
        cells = tuple(_cell(run.of_case(case.case), run, name, caption, maps) for case, caption in named)
        strips.append(Strip(name, cells))
    return Gallery(benchmark, captions, tuple(strips))


def _cell(image: Any, run: Run, name: str, caption: str, maps: bool) -> tuple[Shown, ...]:
    """An image, and the attention maps of its subjects; nothing where there is no image."""
    if image is None or not image.file.is_file():
        return ()
    files = zip(attention_files(run, image) if maps else (), image.subjects, strict=False)
    return (
        shown(image.file, f"{name}: {caption}"),
        *(shown(file, f"{name}: attention on {subject} in {caption}") for file, subject in files),
    )


def _references(references: Mapping[str, Path], cases: Sequence[Any]) -> list[Strip]:
    names = {name for case in cases for name in case.subjects}
    known = {name: references[name] for name in names if name in references and references[name].is_file()}
    if not known:
        return []
    images = {name: shown(file, f"Reference of {name}") for name, file in known.items()}
    cells = [tuple(images[name] for name in case.subjects if name in images) for case in cases]
    return [Strip("Reference", tuple(cells), references=True)]


def _spread(items: Sequence[T], number: int) -> list[T]:
    """Take up to ``number`` at even distances."""
    number = min(number, len(items))
    return [items[int(len(items) * (index + 0.5) / number)] for index in range(number)]
