"""Benchmarks of others, read from the files that their authors release.

Each becomes one :class:`~fastcomposer.evaluation.benchmark.Benchmark` for every number of people in an image,
such as ``multiid_2``. Folders and people per image: ``docs/benchmarks/others.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field

from fastcomposer.evaluation.benchmark import OTHERS, Benchmark, BenchmarkError, Case, Subject
from fastcomposer.prompt import MARKER, PromptError, place_markers, strip_markers
from fastcomposer.utils.json_files import read_json_as
from fastcomposer.utils.ranges import Count, Seed

_Text = Annotated[str, Field(min_length=1)]
_Item = TypeVar("_Item", bound=BaseModel)
People = Annotated[tuple[Count, ...], Field(min_length=1)]
"""Numbers of people in an image."""


@dataclass(frozen=True)
class _Entry:
    """One prompt of a file: where it stands, for messages, and what a case takes from it."""

    where: str
    category: str
    number: str | int
    prompt: str  # with markers
    subjects: tuple[Subject, ...]  # in the order of the markers
    target: Path | None = None


class _MultiID(BaseModel):
    """An entry of MultiID-Bench."""

    prompt: _Text
    image_paths: Annotated[tuple[_Text, ...], Field(min_length=1)]
    ori_img_path: _Text


_MULTIID_LISTS = {"v200_single": "v200_single/untar", "v202": "v202/untar", "v200_m": "v200_m"}
_ONE_PERSON = "man|woman|boy|girl|lady|gentleman|guy|person|individual|child|actor|actress|singer"
_MENTION = re.compile(rf"(?<![\w-])(?:{_ONE_PERSON})(?![\w-])", re.IGNORECASE)


def load_multiid(
    images: str | Path,
    seed: Seed = 42,
    people: People | None = None,
    num_cases: Count | None = None,
    images_per_prompt: Count = 1,
    unnamed: Literal["refuse", "append"] = "refuse",
) -> list[Benchmark]:
    """Load MultiID-Bench (Xu et al. 2025, "WithAnyone", arXiv 2510.14975).

    ``images`` is the folder that the authors' ``hf2bench.py`` writes: lists ``v200_single.json``,
    ``v202.json`` and ``v200_m.json`` of entries with ``prompt``, ``image_paths`` (a reference of each person)
    and ``ori_img_path`` (a photo of all of them, the target of the case). Paths start at
    ``v200_single/untar``, ``v202/untar`` and ``v200_m``.

    Markers stand at ``person_1``, ``person_2``, … where the prompt has these. Otherwise they follow the words
    for one person, such as ``woman``, in the order of the references; "the man" counts only where too few
    people are named otherwise.

    Read: ``MultiID-Bench/hf2bench.py``, ``MultiID_Bench/parquet2bench.py`` and ``infer_withanyone.py`` of
    Doby-Xu/WithAnyone, the authors' ``eval.py``, and the features on the dataset's card. Not verified, for
    want of the data: how prompts name people, that they do so in the order of the references, and that nobody
    is in two entries, as coverage's threshold supposes.

    Args:
        images: The folder.
        seed: Base seed; see :func:`~fastcomposer.evaluation.benchmark.load_benchmark`.
        people: Which numbers of people in an image; ``None`` for all there are.
        num_cases: Most prompts of each number of people, at equal distances; ``None`` for all.
        images_per_prompt: Images of each prompt.
        unnamed: What to do with a prompt that names too few people: refuse it, or append a sentence that
            names them.

    Raises:
        FileNotFoundError: If a list or an image is missing.
        ValueError: If an entry is not valid, with file and field, or too much is asked for.
    """
    root = Path(images)
    entries = []
    for name, folder in _MULTIID_LISTS.items():
        file = root / f"{name}.json"
        for where, item in _read(_MultiID, file):
            prompt, order, words = _multiid_prompt(f"{where}.prompt", item, unnamed)
            files = [root / folder / item.image_paths[number] for number in order]
            subjects = [Subject(_id(file), word, (file,)) for file, word in zip(files, words, strict=True)]
            target = root / folder / item.ori_img_path
            entries.append(_Entry(where, name, _id(target), prompt, tuple(subjects), target))
    return _benchmarks("multiid", entries, seed, people, num_cases, images_per_prompt)


def _multiid_prompt(where: str, item: _MultiID, unnamed: str) -> tuple[str, list[int], list[str]]:
    """Prompt with markers, and of each marker the number of its reference and its class word."""
    text, count = item.prompt.strip(), len(item.image_paths)
    if "person_" in text:
        prompt, order = _numbered(where, text, r"\bperson_(\d+)\b", ["person"] * count)
        return prompt, order, ["person"] * count
    mentions = [*_MENTION.finditer(text)]
    new = [one for one in mentions if not re.search(r"\bthe(?: [\w-]+)?\s+$", text[: one.start()], re.I)]
    chosen = (new if len(new) >= count else mentions)[:count]
    if len(chosen) == count:
        prompt = place_markers(text, [one.end() for one in chosen])
        return prompt, [*range(count)], [one[0].lower() for one in chosen]
    if unnamed == "refuse":
        raise BenchmarkError(
            f"{where}: names {len(chosen)} of {count} people by a word for one person, which the marker "
            f"follows: {text!r}; benchmark.unnamed=append adds a sentence that names them"
        )
    names = [f"a person {MARKER}"] * count
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"{text} Shown {'is' if count == 1 else 'are'} {listed}.", [*range(count)], ["person"] * count


class _XVerseInput(BaseModel):
    image_path: _Text
    caption: str


class _Modulation(BaseModel):
    src_inputs: Annotated[tuple[_XVerseInput, ...], Field(min_length=1)]
    use_words: tuple[tuple[int, _Text, str] | tuple[int, _Text, str, Annotated[int, Field(ge=1)]], ...]


class _XVerse(BaseModel):
    """An entry of XVerseBench."""

    index: Annotated[int, Field(ge=0)]
    prompt: _Text
    modulation: Annotated[tuple[_Modulation, ...], Field(min_length=1)]


def load_xverse(
    images: str | Path,
    seed: Seed = 42,
    people: People | None = None,
    num_cases: Count | None = None,
    images_per_prompt: Count = 4,
) -> list[Benchmark]:
    """Load the people of XVerseBench (Chen et al. 2025, "XVerse", arXiv 2506.21416); UMO reports on it.

    ``images`` is a checkout of bytedance/XVerse: lists ``eval/tools/XVerseBench_single.json`` and
    ``XVerseBench_multi.json`` of entries with ``index``, ``prompt`` and, in ``modulation[0]``, ``src_inputs``
    (``image_path``, from the checkout's root) and ``use_words`` (number of the input, its words in the
    prompt, the same again, and which occurrence of them, by default the first).

    Markers follow the ``use_words`` of inputs from a folder ``human``. As in the authors' face score, other
    inputs are not scored: objects and animals stay words without a reference, and prompts without people are
    left out.

    Read: both lists, ``idip_face_score.py``, ``idip_gen_split_idip.py`` (4 images a prompt) and
    ``modulation_utils.py`` in the copy zsxkib/cog-XVerse; ``eval/UNO/inference_xversebench.py`` and
    ``eval/id_conf_xversebench.py`` of bytedance/UMO. Not verified: that the lists of bytedance/XVerse are
    those of the copy, of which three quarters of the prompts were read.

    Args and Raises are those of :func:`load_multiid`.
    """
    root = Path(images)
    entries = []
    for name in ("single", "multi"):
        for where, item in _read(_XVerse, root / "eval" / "tools" / f"XVerseBench_{name}.json"):
            entries += _xverse_entry(root, where, item)
    return _benchmarks("xverse", entries, seed, people, num_cases, images_per_prompt)


def _xverse_entry(root: Path, where: str, item: _XVerse) -> list[_Entry]:
    """The entry with its people in the order of the prompt; none where it has no people."""
    inputs = [Path(one.image_path) for one in item.modulation[0].src_inputs]
    humans = [number for number, file in enumerate(inputs) if file.parent.name == "human"]
    words = {used[0]: (used[1], used[3] if len(used) > 3 else 1) for used in item.modulation[0].use_words}
    text, found = item.prompt.strip(), []
    for number in humans:
        if number not in words:
            raise BenchmarkError(f"{where}.modulation[0].use_words: no words of input {number}")
        phrase, occurrence = words[number]
        ends = [one.end() for one in re.finditer(rf"(?<![\w-]){re.escape(phrase)}(?!\w)", text)]
        if len(ends) < occurrence:
            raise BenchmarkError(
                f"{where}.prompt: {phrase!r} of input {number} is there {len(ends)} times, not {occurrence}: "
                f"{text!r}"
            )
        subject = Subject(_id(inputs[number]), phrase.split()[-1], (root / inputs[number],))
        found.append((ends[occurrence - 1], subject))
    if not found:
        return []
    found.sort(key=lambda pair: pair[0])
    try:
        prompt = place_markers(text, [end for end, _ in found])
    except PromptError as error:
        raise BenchmarkError(f"{where}.modulation[0].use_words: {error}") from None
    category = "-".join(sorted({file.parent.name for file in inputs}))
    return [_Entry(where, category, item.index, prompt, tuple(subject for _, subject in found))]


class _MultiHuman(BaseModel):
    """An entry of MultiHuman-Testbench."""

    people: Annotated[tuple[_Text, ...], Field(min_length=1)]
    omnigen_prompt: _Text
    identifier: tuple[Annotated[str, Field(pattern="^[a-z]+$")], ...]


_SIMPLE = 1500  # entries, before those of complex actions


def load_multihuman(
    images: str | Path,
    seed: Seed = 42,
    people: People | None = None,
    num_cases: Count | None = None,
    images_per_prompt: Count = 1,
) -> list[Benchmark]:
    """Load MultiHuman-Testbench (Borse et al. 2025, arXiv 2506.20879) without its pose images.

    ``images`` is a checkout of Qualcomm-AI-research/MultiHuman-Testbench after ``download_faces.py``:
    ``data/multihuman_metadata.json`` is a list of entries with ``people`` (faces, from the checkout's root),
    ``identifier`` (their class words) and ``omnigen_prompt``. The first 1 500 are category ``simple``, the
    others ``complex``.

    Prompts name people together ("Four people …"); only ``omnigen_prompt`` has a placeholder for each,
    ``<img><|image_1|></img>``. Each is replaced by article, class word and marker: "One person is a woman
    <|image|>."

    Read: ``data/multihuman_metadata.json`` (excerpts of every number of people),
    ``data_generation/download_faces.py``, ``inference/generate_omnigen_images.py`` and
    ``benchmarking/compute_scores.py`` of the repository. Not verified: every entry, and the downloaded faces.

    Args and Raises are those of :func:`load_multiid`.
    """
    root = Path(images)
    entries = []
    items = _read(_MultiHuman, root / "data" / "multihuman_metadata.json")
    for number, (where, item) in enumerate(items):
        if len(item.identifier) != len(item.people):
            count = len(item.people)
            raise BenchmarkError(f"{where}.identifier: {len(item.identifier)} words for {count} people")
        phrases = [f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in item.identifier]
        pattern = r"(?:from )?<img><\|image_(\d+)\|></img>"
        prompt, order = _numbered(f"{where}.omnigen_prompt", item.omnigen_prompt.strip(), pattern, phrases)
        faces = [(root / item.people[k], item.identifier[k]) for k in order]
        subjects = tuple(Subject(_id(file), word, (file,)) for file, word in faces)
        entries.append(_Entry(where, "simple" if number < _SIMPLE else "complex", number, prompt, subjects))
    return _benchmarks("multihuman", entries, seed, people, num_cases, images_per_prompt)


def _read(kind: type[_Item], file: Path) -> Iterator[tuple[str, _Item]]:
    """Entries of a list, each with its file and field."""
    found: Any = read_json_as(list[kind], file, "benchmark.images:")  # type: ignore[valid-type]
    for number, item in enumerate(found):
        yield f"{file}: [{number}]", item


def _id(file: Path) -> str:
    """Name of a file as a subject's id."""
    return re.sub(r"[^\w.-]+", "_", file.stem)


def _numbered(where: str, text: str, pattern: str, phrases: Sequence[str]) -> tuple[str, list[int]]:
    """Put phrases for numbered placeholders, each first one with a marker; gives their order, from 0."""
    order: list[int] = []

    def named(match: re.Match[str]) -> str:
        number = int(match[1]) - 1
        if number in order or not 0 <= number < len(phrases):
            return phrases[number] if number in order else match[0]
        order.append(number)
        return f"{phrases[number]} {MARKER}"

    prompt = re.sub(pattern, named, text)
    if len(order) < len(phrases) or re.search(pattern, prompt):
        raise BenchmarkError(f"{where}: must have a placeholder for each of {len(phrases)} people: {text!r}")
    return prompt, order


def _benchmarks(
    family: str,
    entries: Sequence[_Entry],
    seed: int,
    people: Sequence[int] | None,
    num_cases: int | None,
    images_per_prompt: int,
) -> list[Benchmark]:
    by_count: dict[int, list[tuple[int, _Entry]]] = {}
    for position, entry in enumerate(entries):
        by_count.setdefault(len(entry.subjects), []).append((position, entry))
    benchmarks = []
    for count in dict.fromkeys(people or sorted(by_count)):
        found = by_count.get(count, [])
        if not found:
            there = ", ".join(map(str, sorted(by_count))) or "no"
            raise ValueError(f"benchmark.people: {count}: there are images of {there} people")
        name = f"{family}_{count}"
        if name not in OTHERS:
            raise BenchmarkError(f"{found[0][1].where}: {count} people are more than this benchmark has")
        kept = min(num_cases or len(found), len(found))
        subjects: dict[str, Subject] = {}
        cases: dict[str, Case] = {}
        for position, entry in (found[i * len(found) // kept] for i in range(kept)):
            _check(entry, subjects)
            group = tuple(subject.id for subject in entry.subjects)
            for image in range(images_per_prompt):
                case_id = f"{name}/{'+'.join(group)}/{entry.category}_{entry.number}/{image}"
                if case_id in cases:
                    raise BenchmarkError(f"{entry.where}: there twice")
                text, case_seed = strip_markers(entry.prompt), seed + images_per_prompt * position + image
                cases[case_id] = Case(
                    case_id, name, entry.category, entry.prompt, text, group, case_seed, entry.target
                )
        benchmarks.append(Benchmark(name, tuple(subjects.values()), tuple(cases.values())))
    return benchmarks


def _check(entry: _Entry, known: dict[str, Subject]) -> None:
    """Refuse missing files, other numbers of markers, and people who share a name; add the subjects."""
    if entry.prompt.count(MARKER) != len(entry.subjects):
        raise BenchmarkError(f"{entry.where}: must be without {MARKER}: {entry.prompt!r}")
    for file in filter(None, (*(subject.reference for subject in entry.subjects), entry.target)):
        if not file.is_file():
            raise FileNotFoundError(f"benchmark.images: {file} does not exist; {entry.where} names it")
    if len({subject.id for subject in entry.subjects}) < len(entry.subjects):
        raise BenchmarkError(f"{entry.where}: a person is there twice")
    for subject in entry.subjects:
        if known.setdefault(subject.id, subject).images != subject.images:
            raise BenchmarkError(
                f"{entry.where}: {subject.reference} has the name of {known[subject.id].reference}"
            )
