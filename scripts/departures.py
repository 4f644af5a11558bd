"""Measure what departures from the published code do to scores: ``scripts/departures.py outputs/reproduce``.

The same images are scored as here and as in the published run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from fastcomposer.data.records import read_ids, read_json
from fastcomposer.evaluation.benchmark import Subset, load_benchmarks, read_definition
from fastcomposer.evaluation.load_results import BENCHMARKS, collect
from fastcomposer.evaluation.report.html import caption_of
from fastcomposer.evaluation.report.tables import Cell, Column, Table, make_frame, to_markdown
from fastcomposer.evaluation.scoring import embed_references, jpeg_pixels
from fastcomposer.evaluation.statistics import paired_difference
from fastcomposer.metrics.faces import Faces
from fastcomposer.metrics.identity import IdentityProtocol, identity_score
from fastcomposer.metrics.image_scores import prompt_consistency
from fastcomposer.metrics.image_text import ClipExtractor
from fastcomposer.miniworld.card.measures import render_held_out
from fastcomposer.miniworld.face_extractor import MiniFaces
from fastcomposer.miniworld.scenes import AvatarScenes
from fastcomposer.utils.markdown import write_section

BASE = Path("data/mini")
BENCHMARK_FILES = Path("data/benchmarks")
QUALITY = 75
SIZE = 64  # pixels of generated images, and of CLIP's input
RENDERED = 144  # 2.25 times CLIP's input, as 512 pixels are 2.29 times 224
BATCH = 64
MAX_SUBJECTS = 4
MAX_TOKENS = 77
Lines = Iterator[tuple[str, tuple[Cell, Cell]]]


def prompt_lines(what: str, images: Sequence[Tensor], texts: Sequence[str], groups: list[Any]) -> Lines:
    """Lines of the departures that change prompt consistency alone."""
    smooth, rough = (ClipExtractor(BASE, "clip", antialias) for antialias in (True, False))
    here = consistencies(smooth, images, texts)
    without = paired_difference(here, consistencies(rough, images, texts), groups)
    encoded = paired_difference(here, consistencies(smooth, as_jpeg(images), texts), groups)
    yield f"antialiased CLIP input, {what}", (None, without)
    yield f"PNG for JPEG, {what}", (None, encoded)


def consistencies(clip: ClipExtractor, images: Sequence[Tensor], texts: Sequence[str]) -> np.ndarray:
    """Prompt consistency of each image (3, H, W) with its text."""
    parts = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
    found = [
        prompt_consistency(clip.embed_images(torch.stack([*images[part]])), clip.embed_texts(texts[part]))
        for part in parts
    ]
    return torch.cat(found).numpy()


def as_jpeg(images: Sequence[Tensor]) -> list[Tensor]:
    """Images as the published run read them."""
    return [jpeg_pixels(image, QUALITY) for image in images]


def generated_lines(results: Path, people: Path, alpha: float) -> Lines:
    """Lines of the images that FastComposer generated in an evaluation."""
    benchmarks = load_benchmarks(BENCHMARK_FILES / "mini", people, single=Subset(), multi=Subset())
    extract = MiniFaces(BASE, threshold=0.4)
    known = {one.id: embed_references(one, extract, SIZE).reference for one in benchmarks[0].subjects}
    collected = collect(results, alpha)
    for run in filter(None, map(collected.fastcomposer, collected.benchmarks())):
        cases = list(run.images.itertuples(index=False))
        images = [to_tensor(Image.open(case.file).convert("RGB")) for case in cases]
        groups = [case.subjects for case in cases]
        references = [torch.stack([known[name] for name in case.subjects]) for case in cases]
        plain, encoded = extract(torch.stack(images)), extract(torch.stack(as_jpeg(images)))
        blank = extract.blank()
        here = identities(plain, references, blank, "published")
        what = f"{len(images)} images, {BENCHMARKS[run.row.benchmark].lower()}"
        texts = [caption_of(case) for case in cases]
        (antialiased, scores), (saved, (_, prompt)) = prompt_lines(what, images, texts, groups)
        changed = paired_difference(here, identities(encoded, references, blank, "published"), groups)
        yield saved, (changed, prompt)
        yield antialiased, scores
        corrected = identities(plain, references, blank, "corrected")
        yield f"corrected identity, {what}", (paired_difference(corrected, here, groups), None)


def identities(
    found: Sequence[Faces], references: Sequence[Tensor], blank: Tensor, protocol: IdentityProtocol
) -> list[float]:
    """Identity of each image."""
    pairs = zip(found, references, strict=True)
    return [identity_score(faces, of, protocol, blank).value for faces, of in pairs]


def rendered_lines(number: int) -> Lines:
    """Lines of rendered scenes that are larger than CLIP's input."""
    scenes = render_held_out(AvatarScenes(RENDERED), number)
    groups = [tuple(person.identity for person in scene) for scene in scenes.people]
    yield from prompt_lines(
        f"{number} scenes of {RENDERED} px", [*scenes.images], scenes.rich_captions, groups
    )


def touched(root: Path) -> str:
    """State how many records and prompts the departures of training and of texts concern."""
    tokenize = ClipExtractor(BASE, "clip").tokenizer
    names = read_ids(root, "train")
    records = [read_json(root, name) for name in names]
    sizes = [Image.open(root / name[:5] / f"{name}.jpg").size for name in names]
    files = BENCHMARK_FILES.glob("*/*_subject.json")
    prompts = [text for file in files for _, _, text in read_definition(file).numbered_prompts()]
    counts = {
        f"more than {MAX_SUBJECTS} people": sum(len(one.segments) > MAX_SUBJECTS for one in records),
        "two segments on one word": sum(
            len({segment.end for segment in one.segments}) < len(one.segments) for one in records
        ),
        "a size that is cropped or resized": sum(size != (SIZE, SIZE) for size in sizes),
    }
    texts = [*(one.caption for one in records), *prompts]
    long = sum(len(tokenize(text).input_ids) > MAX_TOKENS for text in texts)
    other = sum(not text.isascii() for text in texts)
    found = ", ".join(f"{number} have {what}" for what, number in counts.items())
    return (
        f"Of the {len(names):,} training records of the mini world {found}. Of their captions and the "
        f"{len(prompts)} prompts of the benchmarks {long} are longer than {MAX_TOKENS} tokens, and {other} "
        "have characters that ftfy could change."
    )


def main() -> None:
    """Print the table, or write it into the section ``departures`` of a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of an evaluation")
    parser.add_argument("--data", type=Path, default=Path("data/avatars"), help="the rendered world")
    parser.add_argument("--alpha", type=float, default=0.8)
    parser.add_argument("--scenes", type=int, default=500, help="how many scenes to render")
    parser.add_argument("--document", type=Path, help="a Markdown file whose section is replaced")
    given = parser.parse_args()
    lines = [
        *generated_lines(given.results, given.data / "references", given.alpha),
        *rendered_lines(given.scenes),
    ]
    columns = [Column("identity, published rule", "score"), Column("prompt", "score")]
    table = Table("departures", "Departures", make_frame("here, minus as published", columns, lines))
    text = f"{to_markdown(table, heading=False)}\n\n{touched(given.data)}"
    if given.document is None:
        print(text)
    else:
        write_section(given.document, "departures", text)


if __name__ == "__main__":
    main()
