"""Files that define a benchmark: prompts by category and, for the single-subject one, the subjects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcomposer.prompt import MARKER, strip_markers

PLACEHOLDERS = {"single_subject": ("{subject}",), "multi_subject": ("{subject_1}", "{subject_2}")}
"""Benchmarks by name, and what stands for the subjects in their prompts."""
_KEYS = {"name", "images_per_prompt", "subjects", "pairs", "placeholder", "prompts"}


class BenchmarkError(ValueError):
    """A definition that cannot be run; the message names file and field."""


@dataclass(frozen=True)
class Definition:
    """A benchmark before subjects are given.

    Attributes:
        file: Where it was read.
        name: A key of :data:`PLACEHOLDERS`.
        images_per_prompt: Images of each prompt and subject or pair.
        prompts: Prompts with placeholders, by category.
        subjects: Class word by subject; ``None`` where the file names none.
    """

    file: Path
    name: str
    images_per_prompt: int
    prompts: Mapping[str, tuple[str, ...]]
    subjects: Mapping[str, str] | None = None

    @property
    def placeholders(self) -> tuple[str, ...]:
        """What stands for the subjects, in their order."""
        return PLACEHOLDERS[self.name]

    def numbered_prompts(self) -> Iterator[tuple[str, int, str]]:
        """Category, number within it and prompt, in the order of the file."""
        for category, prompts in self.prompts.items():
            for number, prompt in enumerate(prompts):
                yield category, number, prompt


def read_definition(file: str | Path) -> Definition:
    """Read and check a definition.

    Its keys are ``name``, ``images_per_prompt``, ``prompts`` (lists by category), optionally ``subjects``
    (class word by id), and ``pairs`` and ``placeholder``, which are notes to the reader.

    Raises:
        BenchmarkError: If it is not as it must be.
        FileNotFoundError: If there is no such file.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(
            f"benchmark definition {path} does not exist; benchmark.folder says where it is"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BenchmarkError(f"{path}: not valid JSON: {error}") from error
    _require(isinstance(content, dict), path, "file", "a JSON object")
    for key in sorted({"name", "images_per_prompt", "prompts"} - content.keys()):
        raise BenchmarkError(f"{path}: {key}: missing")
    for key in sorted(content.keys() - _KEYS):
        raise BenchmarkError(f"{path}: {key}: unknown; there are {', '.join(sorted(_KEYS))}")
    name, images = content["name"], content["images_per_prompt"]
    _require(name in PLACEHOLDERS, path, "name", f"{' or '.join(PLACEHOLDERS)}, not {name!r}")
    whole = isinstance(images, int) and not isinstance(images, bool) and images > 0
    _require(whole, path, "images_per_prompt", f"a whole number from 1, not {images!r}")
    prompts = _prompts(path, content["prompts"], PLACEHOLDERS[name])
    subjects = _subjects(path, content["subjects"]) if "subjects" in content else None
    return Definition(path, name, images, prompts, subjects)


def _require(condition: bool, path: Path, field: str, what: str) -> None:
    if not condition:
        raise BenchmarkError(f"{path}: {field}: must be {what}")


def _prompts(path: Path, content: Any, placeholders: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    filled = isinstance(content, dict) and content
    _require(bool(filled), path, "prompts", "lists of prompts by category")
    for category, prompts in content.items():
        field = f"prompts.{category}"
        _require(bool(re.fullmatch(r"[\w-]+", category)), path, field, "named by letters, digits, - and _")
        _require(isinstance(prompts, list) and bool(prompts), path, field, "a list of at least one prompt")
        for number, prompt in enumerate(prompts):
            _check_prompt(path, f"{field}[{number}]", prompt, placeholders)
            _require(prompt not in prompts[:number], path, f"{field}[{number}]", f"there once: {prompt!r}")
    return {category: tuple(prompts) for category, prompts in content.items()}


def _check_prompt(path: Path, field: str, prompt: Any, placeholders: tuple[str, ...]) -> None:
    _require(isinstance(prompt, str), path, field, f"a text, not {prompt!r}")
    _require(MARKER not in prompt, path, field, f"without {MARKER}, which is put in where a subject stands")
    found = re.findall(r"\{[^{}]*\}?|\}", prompt)
    expected = " and ".join(placeholders)
    for placeholder in found:
        _require(placeholder in placeholders, path, field, f"without {placeholder}: {expected} is known")
    _require(
        tuple(found) == placeholders, path, field, f"a prompt with {expected} once, in this order: {prompt!r}"
    )
    # The text without markers must read as if there had never been any: see strip_markers.
    marked, plain = prompt, prompt
    for placeholder in placeholders:
        marked = marked.replace(placeholder, f"man {MARKER}")
        plain = plain.replace(placeholder, "man")
    _require(
        strip_markers(marked) == plain, path, field, f"a prompt with {expected} as whole words: {prompt!r}"
    )


def _subjects(path: Path, content: Any) -> dict[str, str]:
    filled = isinstance(content, dict) and content
    _require(bool(filled), path, "subjects", "a table of class words by subject")
    for name, word in content.items():
        field = f"subjects.{name}"
        # Ids become names of files; "+" stands between the two of a pair.
        _require(bool(re.fullmatch(r"\w[\w.-]*", name)), path, field, "named by letters, digits, ., - and _")
        fits = isinstance(word, str) and re.fullmatch(r"[b-df-hj-np-tv-z][a-z]*", word)
        _require(bool(fits), path, field, f"one word in small letters that takes the article a, not {word!r}")
    return dict(content)
