"""What a fine-tuning method has learned of a person: on disk, in prompts and in a pipeline."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastcomposer.models.published_checkpoint import load_exact
from fastcomposer.prompt import MARKER, PromptError
from fastcomposer.training.personalization.merge import merged_weights
from fastcomposer.training.personalization.tokens import shared_copy, with_vectors
from fastcomposer.utils.files import save_atomically, write_atomically
from fastcomposer.utils.json_files import read_json_as

if TYPE_CHECKING:
    from fastcomposer.pipeline.stable_diffusion import FastComposerPipeline

CONCEPT_NAME = "concept.json"
WEIGHTS_NAME = "concept.safetensors"
TOKEN_PREFIX = "tokens."
_NETWORKS = ("unet", "text_encoder")


@dataclass(frozen=True)
class Concept:
    """A person that a method has learned.

    Attributes:
        method: ``textual_inversion``, ``dreambooth`` or ``custom_diffusion``.
        word: Class word.
        token: What stands for the person in a prompt, such as ``<adam>``; a rare word of the tokenizer for
            DreamBooth, which may be several tokens to it.
        file: Only the weights that were trained, and embeddings of new tokens. People learned together share
            the file, and count a fraction each of its size and of the training's wall time.
        seconds: Wall time of the training.
        stored_bytes: Size of the file.
        peak_memory_bytes: Most memory allocated on the GPU during the training; on the CPU the most that the
            process has taken since it began.
        steps: Steps of the training.
    """

    method: str
    word: str
    token: str
    file: Path
    seconds: float
    stored_bytes: int
    peak_memory_bytes: int
    steps: int

    @property
    def phrase(self) -> str:
        """What replaces the class word in a prompt."""
        return self.token if self.method == "textual_inversion" else f"{self.token} {self.word}"


def write_concepts(
    folder: Path, concepts: Sequence[Concept], tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[Concept, ...]:
    """Write people that were learned in one training; the list comes last, as the sign that all is there.

    Embeddings are named ``tokens.<token>``, weights ``unet.<name>`` and ``text_encoder.<name>``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONCEPT_NAME).unlink(missing_ok=True)
    file = folder / WEIGHTS_NAME
    state = {name: value.cpu().contiguous() for name, value in tensors.items()}
    save_atomically(file, lambda temporary: save_file(state, temporary))
    size = file.stat().st_size // len(concepts)
    concepts = tuple(replace(concept, file=file, stored_bytes=size) for concept in concepts)
    entries = [asdict(concept) | {"file": file.name} for concept in concepts]
    text = json.dumps({"settings": settings, "concepts": entries}, indent=1) + "\n"
    write_atomically(folder / CONCEPT_NAME, lambda stream: stream.write(text.encode()))
    return concepts


def read_concepts(folder: str | Path) -> tuple[Concept, ...]:
    """Read the people of one training."""
    return tuple(replace(one, file=Path(folder) / one.file) for one in _content(Path(folder)).concepts)


def read_settings(folder: str | Path) -> dict[str, Any]:
    """What the training of a folder's concepts depended on."""
    return _content(Path(folder)).settings


class _Content(BaseModel):
    settings: dict[str, Any]
    concepts: list[Concept]


def _content(folder: Path) -> _Content:
    path = folder / CONCEPT_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no finished concept: there is no {CONCEPT_NAME}")
    try:
        return read_json_as(_Content, path, "concept")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a concept: {error}; remove it") from error


def rewrite_prompt(prompt_with_markers: str, concepts: Sequence[Concept]) -> str:
    """Replace the markers of a prompt by people's tokens.

    ``a man <|image|> on the beach`` becomes ``a <adam> man on the beach``, or, where the token stands for the
    class word (Textual Inversion), ``a <adam> on the beach``.

    Raises:
        PromptError: If there are more or fewer markers than people, or a class word is another.
    """
    *before, rest = prompt_with_markers.split(MARKER)
    if len(before) != len(concepts):
        raise PromptError(
            f"{len(concepts)} concept(s) for {len(before)} marker(s) {MARKER} in prompt "
            f"{prompt_with_markers!r}"
        )
    text = ""
    for piece, concept in zip(before, concepts, strict=True):
        piece = piece.rstrip()
        if not re.search(rf"(?<!\w){re.escape(concept.word)}$", piece, re.IGNORECASE):
            raise PromptError(
                f"{concept.token} is a {concept.word}, but prompt {prompt_with_markers!r} has a marker after "
                f"{piece.split(' ')[-1]!r}"
            )
        text += _joined(text, piece[: len(piece) - len(concept.word)] + concept.phrase)
    return text + _joined(text, rest)


def _joined(text: str, piece: str) -> str:
    """The next piece, with a space where only a marker separated two words."""
    return f" {piece}" if text and piece[:1].isalnum() else piece


def apply_concepts(pipeline: FastComposerPipeline, concepts: Sequence[Concept]) -> FastComposerPipeline:
    """Make a pipeline that generates some people.

    The given pipeline stays as it is; what does not change is shared with it. People of Textual Inversion
    bring a token each. People of Custom Diffusion who were not learned together are merged
    (:mod:`~fastcomposer.training.personalization.merge`).

    Args:
        pipeline: A pipeline of the base that the people were learned from.
        concepts: One person or several, all learned by one method.

    Raises:
        ValueError: If there are none, methods are mixed, a method cannot take so many, two people have one
            token, or a concept was learned from another base.
    """
    methods = sorted({concept.method for concept in concepts})
    if len(methods) != 1:
        raise ValueError(f"concepts of one method are wanted, not of {' and '.join(methods) or 'none'}")
    if methods == ["dreambooth"] and len(concepts) > 1:
        raise ValueError(f"dreambooth takes one person at a time, not {len(concepts)}: it has one rare token")
    states = {file: _read_weights(file) for file in dict.fromkeys(concept.file for concept in concepts)}
    names = {concept.token: (concept.file, TOKEN_PREFIX + concept.token) for concept in concepts}
    vectors = {token: states[file][name] for token, (file, name) in names.items() if name in states[file]}
    if vectors and len(vectors) < len(concepts):
        raise ValueError(f"two concepts have one token: {[concept.token for concept in concepts]}")
    parts = dict(pipeline.components)
    if vectors:
        parts["tokenizer"], parts["text_encoder"] = with_vectors(
            pipeline.tokenizer, pipeline.text_encoder, vectors
        )
    weights = [
        {k: v for k, v in state.items() if not k.startswith(TOKEN_PREFIX)} for state in states.values()
    ]
    changed: Mapping[str, Tensor] = weights[0]
    if len(states) > 1 and changed:
        phrases = [[concept.phrase for concept in concepts if concept.file == file] for file in states]
        changed = merged_weights(parts["unet"], parts["tokenizer"], parts["text_encoder"], weights, phrases)
    copies: dict[str, Any] = {}
    for part in _NETWORKS:
        own = {name.removeprefix(f"{part}.") for name in changed if name.startswith(f"{part}.")}
        if own:
            copies[part] = shared_copy(parts[part], own)
    if changed:
        problem = f"concept {', '.join(map(str, states))} does not fit the base model"
        load_exact(copies, changed, problem, set(changed))
    config: Any = pipeline.config
    made = type(pipeline)(**parts | copies, requires_safety_checker=config.requires_safety_checker)
    made.set_progress_bar_config(**getattr(pipeline, "_progress_bar_config", {}))
    return made


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"concept {file} does not exist")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"concept {file} cannot be read: {error}") from error
