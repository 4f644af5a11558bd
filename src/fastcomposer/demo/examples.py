"""Examples on the page, with rendered people."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from fastcomposer.miniworld.render import reference_name
from fastcomposer.miniworld.scenes import held_out_identities, reference_image
from fastcomposer.utils.files import write_atomically

_SIDE = 128
_TRIES = (
    ("Two on the beach", "a man <|image|> and a woman <|image|> on the beach", (0, 1)),
    ("One in the jungle", "a woman <|image|> wearing a red hoodie in the jungle", (1,)),
    ("Two in the snow", "a man <|image|> and a man <|image|> in the snow", (2, 8)),
)


@dataclass(frozen=True)
class Example:
    """A prompt with its reference images."""

    name: str  # of its button
    prompt: str  # with markers
    references: tuple[Path, ...]  # one for each marker


def held_out_examples(folder: str | Path) -> list[Example]:
    """Render held-out people of the mini world into a folder."""
    identities = held_out_identities()
    made = []
    for name, prompt, people in _TRIES:
        files = tuple(Path(folder) / f"{reference_name(i, identities[i])}.png" for i in people)
        for number, file in zip(people, files, strict=True):
            if not file.exists():
                portrait = Image.fromarray(reference_image(identities[number], _SIDE, seed=number))
                write_atomically(file, partial(portrait.save, format="PNG"))
        made.append(Example(name, prompt, files))
    return made
