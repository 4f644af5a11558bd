"""Benchmarks: which images a method is asked for, case by case (docs/method.md, Evaluation protocol)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fastcomposer.prompt import MARKER, strip_markers
from fastcomposer.utils.assets import asset
from fastcomposer.utils.errors import invalid_fields
from fastcomposer.utils.ranges import Count, Seed

PLACEHOLDERS = {"single_subject": ("{subject}",), "multi_subject": ("{subject_1}", "{subject_2}")}
"""Benchmarks by name, and what stands for the subjects in their prompts."""
OTHERS = {
    f"{name}_{count}": f"{title}, {count} {'person' if count == 1 else 'people'}"
    for name, title, most in (
        ("multiid", "MultiID-Bench", 5),
        ("xverse", "XVerseBench", 3),
        ("multihuman", "MultiHuman-Testbench", 5),
    )
    for count in range(1, most + 1)
}
"""Titles of others' benchmarks by name: one benchmark for each number of people in an image."""


class BenchmarkError(ValueError):
    """A definition that cannot be run; the message names file and field."""


# Names become folders; "+" stands between the two subjects of a pair.
_Category = Annotated[str, Field(pattern=r"^[\w-]+$")]
_SubjectId = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
_ClassWord = Annotated[str, Field(pattern="^[b-df-hj-np-tv-z][a-z]*$")]  # one word that takes the article a


class Definition(BaseModel):
    """A benchmark before subjects are given.

    Attributes:
        name: A key of :data:`PLACEHOLDERS`.
        images_per_prompt: Images of each prompt and subject or pair.
        prompts: Prompts with placeholders, by category.
        subjects: Class word by subject; ``None`` where the file names none.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    name: Literal["single_subject", "multi_subject"]
    images_per_prompt: Count
    prompts: Annotated[dict[_Category, Annotated[tuple[str, ...], Field(min_length=1)]], Field(min_length=1)]
    subjects: Annotated[dict[_SubjectId, _ClassWord], Field(min_length=1)] | None = None
    pairs: str = ""  # this and the next are notes to the reader
    placeholder: str = ""

    @property
    def placeholders(self) -> tuple[str, ...]:
        """What stands for the subjects, in their order."""
        return PLACEHOLDERS[self.name]

    def numbered_prompts(self) -> Iterator[tuple[str, int, str]]:
        """Category, number within it and prompt, in the order of the file."""
        for category, prompts in self.prompts.items():
            for number, prompt in enumerate(prompts):
                yield category, number, prompt

    @model_validator(mode="after")
    def _check_prompts(self) -> Definition:
        expected = " and ".join(self.placeholders)
        for category, number, prompt in self.numbered_prompts():
            field = f"prompts.{category}[{number}]"
            if MARKER in prompt:
                raise ValueError(f"{field}: must be without {MARKER}, which is put in where a subject stands")
            if tuple(re.findall(r"\{[^{}]*\}?|\}", prompt)) != self.placeholders:
                raise ValueError(f"{field}: must have {expected} once, in this order: {prompt!r}")
            # The text without markers must read as if there had never been any: see strip_markers.
            marked = fill(prompt, self.placeholders, [f"man {MARKER}"] * len(self.placeholders))
            if strip_markers(marked) != fill(prompt, self.placeholders, ["man"] * len(self.placeholders)):
                raise ValueError(f"{field}: must have {expected} as full words: {prompt!r}")
            if prompt in self.prompts[category][:number]:
                raise ValueError(f"{field}: there twice: {prompt!r}")
        return self


def fill(template: str, placeholders: Sequence[str], values: Sequence[str]) -> str:
    """Replace the placeholders of a prompt by values."""
    for placeholder, value in zip(placeholders, values, strict=True):
        template = template.replace(placeholder, value)
    return template


def read_definition(file: str | Path) -> Definition:
    """Read a definition; an invalid one is a :class:`BenchmarkError` with file and field."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(
            f"benchmark definition {path} does not exist; benchmark.folder names its folder"
        )
    try:
        return Definition.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BenchmarkError(f"{path}: {invalid_fields(error)}") from error


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")

NUM_TUNING_IMAGES = 5
"""Images of a person that methods with fine-tuning get, including the reference."""


@dataclass(frozen=True)
class Subject:
    """A person to be depicted, named ``id`` in case ids."""

    id: str
    word: str  # class word, such as man
    images: tuple[Path, ...]  # the reference, further ones for methods with fine-tuning, then others

    @property
    def reference(self) -> Path:
        """The one image that methods without fine-tuning get."""
        return self.images[0]

    @property
    def tuning_images(self) -> tuple[Path, ...]:
        """The reference and up to four more, for methods with fine-tuning."""
        return self.images[:NUM_TUNING_IMAGES]

    @property
    def other_images(self) -> tuple[Path, ...]:
        """Images that no method gets, for the copy-paste metric; may be none."""
        return self.images[NUM_TUNING_IMAGES:]


@dataclass(frozen=True)
class Case:
    """One image to be sampled.

    Attributes:
        id: ``<benchmark>/<subjects>/<category>_<prompt>/<image>``, counted from 0; also a path.
        benchmark: Name of the benchmark.
        category: What the prompt asks to change.
        prompt: With a ``<|image|>`` marker after each subject's class word.
        text: The prompt without markers.
        subjects: Ids in the order of the markers.
        seed: Of the initial noise.
        target: An image of all its subjects that no method gets, for the copy-paste scores.
    """

    id: str
    benchmark: str
    category: str
    prompt: str
    text: str
    subjects: tuple[str, ...]
    seed: int
    target: Path | None = None


@dataclass(frozen=True)
class Subset:
    """How much of a benchmark to run; ``None`` is all there is, a number is at least 1.

    Attributes:
        num_subjects: Subjects, about as many of each class word.
        prompts_per_category: Prompts, spread evenly over each category.
        images_per_prompt: Images of each prompt and subject or pair.
        num_pairs: Pairs in which every subject appears about equally often.
    """

    num_subjects: Count | None = None
    prompts_per_category: Count | None = None
    images_per_prompt: Count | None = None
    num_pairs: Count | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: at least 1, or null for all")


@dataclass(frozen=True)
class Benchmark:
    """Subjects, and the cases made of them: by subjects, prompt and image, every prompt for all subjects."""

    name: str
    subjects: tuple[Subject, ...]
    cases: tuple[Case, ...]

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Ids of the subjects, or pairs of subjects, that share cases."""
        return tuple(dict.fromkeys(case.subjects for case in self.cases))

    def subset(self, **counts: int | None) -> Benchmark:
        """Pick evenly, by the counts of :class:`Subset`; cases keep their ids and seeds.

        Raises:
            ValueError: If more is asked for than there is, with the key to change.
        """
        part = Subset(**counts)
        groups = self._some_groups(part)
        kept: list[Case] = []
        by_category = groupby(self.cases, lambda case: (case.subjects, case.category))
        for (group, category), cases in by_category:
            if group not in groups:
                continue
            prompts = [list(images) for _, images in groupby(cases, lambda case: case.prompt)]
            _check(part, "prompts_per_category", len(prompts), f"prompts of {category}")
            count = part.prompts_per_category or len(prompts)
            for images in (prompts[i * len(prompts) // count] for i in range(count)):  # at equal distances
                _check(part, "images_per_prompt", len(images), "images of a prompt")
                kept += images[: part.images_per_prompt]
        present = {name for group in groups for name in group}
        return Benchmark(self.name, tuple(s for s in self.subjects if s.id in present), tuple(kept))

    def _some_groups(self, part: Subset) -> Sequence[tuple[str, ...]]:
        size = len(self.groups[0])
        if part.num_pairs is not None and size != 2:
            raise ValueError(
                f"num_pairs={part.num_pairs}: {self.name} has no pairs; num_subjects is what it takes"
            )
        if part.num_subjects is not None and part.num_subjects < size:
            raise ValueError(f"num_subjects={part.num_subjects}: a case of {self.name} has {size} subjects")
        _check(part, "num_subjects", len(self.subjects), "subjects")
        chosen = _balanced(self.subjects, part.num_subjects)
        groups = [group for group in self.groups if chosen.issuperset(group)]
        _check(part, "num_pairs", len(groups), "pairs of these subjects")
        return groups if part.num_pairs is None else _spread_groups(groups, part.num_pairs)


def load_benchmarks(
    folder: str | Path,
    images: str | Path,
    seed: Seed = 42,
    single: Subset | None = None,
    multi: Subset | None = None,
    celeba_identities: bool = False,
) -> list[Benchmark]:
    """Load the two benchmarks of a folder, or parts of them.

    Args:
        folder: Folder of ``single_subject.json``, which also names the subjects, and ``multi_subject.json``.
        images: Folder of the subjects' images; see :func:`find_subjects`.
        seed: Base seed; see :func:`load_benchmark`.
        single: How much of the single-subject benchmark; ``None`` leaves it out.
        multi: How much of the multi-subject benchmark; ``None`` leaves it out.
        celeba_identities: See :func:`find_subjects`.

    Raises:
        ValueError: If nothing or too much is asked for; see also :func:`find_subjects`.
    """
    if single is None and multi is None:
        raise ValueError("benchmark: single and multi are both null, which leaves nothing to evaluate")
    folder = asset(folder)
    definition = folder / "single_subject.json"
    words = read_definition(definition).subjects
    if words is None:
        raise BenchmarkError(f"{definition}: subjects: missing; a table of class words by subject")
    subjects = find_subjects(words, images, celeba_identities)
    wanted = {"single_subject": single, "multi_subject": multi}
    return [
        load_benchmark(folder / f"{name}.json", subjects, seed).subset(**asdict(part))
        for name, part in wanted.items()
        if part is not None
    ]


def find_subjects(
    words: Mapping[str, str], images: str | Path, celeba_identities: bool = False
) -> tuple[Subject, ...]:
    """Find the images of subjects; see :func:`subject_images`.

    Args:
        words: Class word by id.
        images: The folder.
        celeba_identities: Whether ids are CelebA identity numbers, whose images lie in folders: a file of
            such a name is refused, as CelebA numbers its files apart (``002880.jpg`` is not identity 2880).

    Raises:
        BenchmarkError: If images are named by CelebA's file numbers, with the layout that is expected.
        FileNotFoundError: If there is no image of a subject, with the file that is missing.
    """
    root = Path(images)
    if not root.is_dir():
        raise FileNotFoundError(
            f"benchmark.images={root}: no such folder; prepare data=avatars makes that of the mini world"
        )
    found = []
    for name, word in words.items():
        if celeba_identities:
            _refuse_celeba_files(root, name)
        files = subject_images(root, name)
        if not files:
            wanted = f"put {root / name}.jpg there, or images into {root / name}/"
            if celeba_identities:
                wanted = f"put an image of CelebA identity {int(name)} into {root / name}/"
            raise FileNotFoundError(f"benchmark.images={root}: no image of subject {name}; {wanted}")
        found.append(Subject(name, word, files))
    return tuple(found)


def subject_images(root: Path, name: str) -> tuple[Path, ...]:
    """Images of a subject, the reference first.

    The reference of subject ``ann`` is ``ann.jpg`` (``.png``, ``.jpeg``), or else the first image in folder
    ``ann``, whose images follow in the order of their names, ``2.jpg`` before ``10.jpg``.
    """
    more = (root / name).iterdir() if (root / name).is_dir() else ()
    in_folder = sorted((file for file in more if file.suffix in IMAGE_SUFFIXES), key=_by_number)
    return (*_named_files(root, name)[:1], *in_folder)


def _named_files(root: Path, name: str) -> list[Path]:
    return [file for file in (root / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES) if file.is_file()]


def _refuse_celeba_files(root: Path, name: str) -> None:
    if not re.fullmatch(r"\d{6}", name):
        raise BenchmarkError(
            f"subjects.{name}: no CelebA identity number of six digits; benchmark.celeba_identities=false "
            "is for people of your own"
        )
    for file in _named_files(root, name):
        raise BenchmarkError(
            f"benchmark.images={root}: {file.name} is named like a file of CelebA, but the benchmark's "
            f"subjects are CelebA identities, and CelebA numbers the two apart: {file.name} shows somebody "
            f"else than identity {int(name)}. Put images of that identity into {root / name}/, as "
            f"identity_CelebA.txt lists them, and take {file.name} away; benchmark.celeba_identities=false "
            "is for people of your own"
        )


def load_benchmark(file: str | Path, subjects: Sequence[Subject], seed: int = 42) -> Benchmark:
    """Make the cases of a benchmark.

    Every case has a seed of its own, ``seed + images_per_prompt · prompt + image``, counted from 0, whatever
    its subjects: an image does not depend on those before it, and all subjects and methods start a prompt
    from the same noise. Base seeds for other noise are further apart than prompts times images.

    Args:
        file: Definition, JSON; its own ``subjects`` are not read.
        subjects: Whom to depict; a pair's first placeholder is the one that comes first here.
        seed: Base seed, not negative.

    Raises:
        BenchmarkError: If file or subjects are not valid, with file and field.
    """
    definition = read_definition(file)
    size = len(definition.placeholders)
    if len(subjects) < size:
        raise BenchmarkError(f"{file}: {len(subjects)} subjects for prompts with {size}")
    for name, count in Counter(subject.id for subject in subjects).items():
        if count > 1:
            raise BenchmarkError(f"{file}: subject {name} is there {count} times")
    for subject in subjects:
        if not subject.images:
            raise BenchmarkError(f"{file}: subject {subject.id} has no image")
    if seed < 0:
        raise ValueError(f"benchmark.seed={seed}: not negative")
    words = {subject.id: subject.word for subject in subjects}
    cases = []
    for group in combinations(words, size):
        for number, (category, k, template) in enumerate(definition.numbered_prompts()):
            nouns = [words[name] for name in group]
            text = fill(template, definition.placeholders, nouns)
            prompt = fill(template, definition.placeholders, [f"{noun} {MARKER}" for noun in nouns])
            for image in range(definition.images_per_prompt):
                case_id = f"{definition.name}/{'+'.join(group)}/{category}_{k}/{image}"
                case_seed = seed + definition.images_per_prompt * number + image
                cases.append(Case(case_id, definition.name, category, prompt, text, group, case_seed))
    return Benchmark(definition.name, tuple(subjects), tuple(cases))


def _check(part: Subset, key: str, available: int, what: str) -> None:
    count = getattr(part, key)
    if count is not None and count > available:
        raise ValueError(f"{key}={count}: there are {available} {what}")


def _balanced(subjects: Sequence[Subject], count: int | None) -> set[str]:
    """Ids of the first subjects of each class word in turn."""
    ranks: Counter[str] = Counter()
    turns = []
    for position, subject in enumerate(subjects):
        turns.append((ranks[subject.word], position, subject.id))
        ranks[subject.word] += 1
    return {name for _, _, name in sorted(turns)[:count]}


def _spread_groups(groups: Sequence[tuple[str, ...]], count: int) -> list[tuple[str, ...]]:
    """Pick groups in which every subject appears about equally often, in their order."""
    times: Counter[str] = Counter()
    left = list(groups)
    for _ in range(count):
        rarest = min(left, key=lambda group: sorted((times[name] for name in group), reverse=True))
        left.remove(rarest)
        times.update(rarest)
    return [group for group in groups if group not in left]


def _by_number(file: Path) -> list[str | int]:
    """Sorting key of a file name in which numbers count as such."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]
