"""Benchmarks of others, from small files in their released layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from toy_evaluation import SAMPLER, predict

from fastcomposer.evaluation.benchmark import OTHERS, Benchmark, BenchmarkError
from fastcomposer.evaluation.generation import GenerationStage, open_runs, plan_runs
from fastcomposer.evaluation.methods import FastComposerMethod
from fastcomposer.evaluation.other_benchmarks import load_multihuman, load_multiid, load_xverse
from fastcomposer.evaluation.results import read_results, write_results
from fastcomposer.evaluation.scoring import ScoringStage
from fastcomposer.evaluation.summary import result_rows
from fastcomposer.metrics.faces import Faces
from fastcomposer.prompt import strip_markers

CONF = Path(__file__).parents[2] / "conf" / "benchmark"


def written(root: Path, lists: dict[str, Any], images: list[str]) -> Path:
    """Lists as JSON, and empty files for images."""
    for name, content in lists.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def multiid(root: Path, prompts: dict[int, str]) -> Path:
    """MultiID-Bench with one prompt for each number of people."""
    lists: dict[str, Any] = {"v200_single.json": [], "v202.json": [], "v200_m.json": []}
    images = []
    for count, prompt in prompts.items():
        name, folder = {1: ("v200_single", "untar/"), 2: ("v202", "untar/")}.get(count, ("v200_m", ""))
        entry = f"{count:04d}"
        refs = [f"{entry}_{number}.jpg" for number in range(1, count + 1)]
        target = f"{entry}.jpg"
        if count > 2:
            refs = [f"refs/person_{number}/{file}" for number, file in enumerate(refs, 1)]
            target = f"num_{count}/{target}"
        lists[f"{name}.json"].append({"prompt": prompt, "image_paths": refs, "ori_img_path": target})
        images += [f"{name}/{folder}{file}" for file in (*refs, target)]
    return written(root, lists, images)


def xverse(root: Path, single: list[Any], multi: list[Any]) -> Path:
    """XVerseBench with prompts, each with inputs of kind, file and use_words."""
    lists, images = {}, []
    for name, prompts in (("single", single), ("multi", multi)):
        entries = []
        for index, (prompt, *inputs) in enumerate(prompts):
            paths = [f"assets/XVerseBench/{kind}/{file}.jpg" for kind, file, *_ in inputs]
            images += paths
            modulation = {
                "type": "adapter",
                "src_inputs": [{"image_path": path, "caption": "a thing"} for path in paths],
                "use_words": [[i, words, words, *more] for i, (_, _, words, *more) in enumerate(inputs)],
            }
            entries.append({"index": index, "prompt": prompt, "input_images": [], "modulation": [modulation]})
        lists[f"eval/tools/XVerseBench_{name}.json"] = entries
    return written(root, lists, images)


def multihuman(root: Path, prompts: list[tuple[str, list[str]]]) -> Path:
    """MultiHuman-Testbench with prompts, each with class words of its people."""
    entries, images = [], []
    for number, (prompt, words) in enumerate(prompts):
        people = [f"data/faces/ffhq_{number}{k}.jpg" for k in range(len(words))]
        images += people
        entries.append({"people": people, "prompt": "", "omnigen_prompt": prompt, "identifier": words})
    return written(root, {"data/multihuman_metadata.json": entries}, images)


def placed(number: int) -> str:
    return f"<img><|image_{number}|></img>"


def prompts_of(benchmarks: list[Benchmark]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Prompt and subjects of the first case of each benchmark."""
    return {one.name: (one.cases[0].prompt, one.cases[0].subjects) for one in benchmarks}


def test_multiid_marks_people_in_the_order_of_the_references(tmp_path: Path) -> None:
    four = "person_2 hugs person_1 while person_3 and person_4 watch person_2"
    prompts = {1: "The man on the left waves", 2: "A woman in red and an old man; the woman smiles", 4: four}
    found = load_multiid(multiid(tmp_path, prompts))
    assert prompts_of(found) == {
        "multiid_1": ("The man <|image|> on the left waves", ("0001_1",)),
        "multiid_2": (
            "A woman <|image|> in red and an old man <|image|>; the woman smiles",
            ("0002_1", "0002_2"),
        ),
        "multiid_4": (
            "person <|image|> hugs person <|image|> while person <|image|> and person <|image|> watch person",
            ("0004_2", "0004_1", "0004_3", "0004_4"),
        ),
    }
    two, four_people = found[1], found[2]
    assert two.cases[0].id == "multiid_2/0002_1+0002_2/v202_0002/0"
    assert two.cases[0].target == tmp_path / "v202" / "untar" / "0002.jpg"
    assert [subject.word for subject in two.subjects] == ["woman", "man"]
    assert four_people.subjects[0].reference == tmp_path / "v200_m" / "refs" / "person_2" / "0004_2.jpg"


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("Two women at a party", r"v202\.json: \[0\]\.prompt: names 0 of 2"),
        ("person_1 and a man", r"\[0\]\.prompt: must have a placeholder"),
    ],
)
def test_multiid_refuses_prompts_that_name_too_few(prompt: str, field: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=field):
        load_multiid(multiid(tmp_path, {2: prompt}))


def test_multiid_appends_a_sentence_where_asked(tmp_path: Path) -> None:
    (found,) = load_multiid(multiid(tmp_path, {3: "Three women at a party."}), unnamed="append")
    sentence = "Shown are a person <|image|>, a person <|image|> and a person <|image|>."
    assert found.cases[0].prompt == f"Three women at a party. {sentence}"


XVERSE = {
    "one": ("an old man sitting.\n", ("human", "16_old man", "old man")),
    "animal": ("a dog", ("animal", "12_dog", "dog")),
    "order": (
        "An anime Spider-Man plays with a boy.",
        ("human", "00_boy", "boy"),
        ("object", "71_anime Spider-Man", "anime Spider-Man"),
    ),
    "second": (
        "A little girl and a girl admire a hat.",
        ("human", "19_girl", "girl", 2),
        ("human", "04_little girl", "little girl"),
        ("object", "01_hat", "hat"),
    ),
    "three": ("A man, a man, and a man", *(("human", f"0{k}_man", "man", k) for k in (3, 1, 2))),
}


def test_xverse_marks_people_at_their_occurrence_and_leaves_things_out(tmp_path: Path) -> None:
    single, multi = [XVERSE["animal"], XVERSE["one"]], [XVERSE["order"], XVERSE["second"], XVERSE["three"]]
    found = load_xverse(xverse(tmp_path, single, multi))
    assert prompts_of(found) == {
        "xverse_1": ("an old man <|image|> sitting.", ("16_old_man",)),
        "xverse_2": (
            "A little girl <|image|> and a girl <|image|> admire a hat.",
            ("04_little_girl", "19_girl"),
        ),
        "xverse_3": ("A man <|image|>, a man <|image|>, and a man <|image|>", ("01_man", "02_man", "03_man")),
    }
    one = found[0]
    assert [case.id for case in one.cases[3:5]] == [
        "xverse_1/16_old_man/human_1/3",
        "xverse_1/00_boy/human-object_0/0",
    ]
    assert [case.seed for case in one.cases] == [42, 43, 44, 45, 46, 47, 48, 49]
    assert [subject.word for subject in one.subjects] == ["man", "boy"]


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (("A woman smiles", ("human", "05_man", "man")), r"multi\.json: \[0\]\.prompt: 'man' of input 0"),
        (("A man", ("human", "05_man", "man", 2)), "1 times, not 2"),
        (("A man", ("human", "05_man", "man"), ("human", "06_man", "man")), r"\[0\]\.modulation\[0\]"),
        (("A man and a man", ("human", "05_man", "man"), ("human", "05_man", "man", 2)), "twice"),
    ],
)
def test_xverse_refuses_words_that_it_cannot_place(prompt: Any, field: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=field):
        load_xverse(xverse(tmp_path, [], [prompt]))


def test_multihuman_puts_class_words_for_its_placeholders(tmp_path: Path) -> None:
    five = ", ".join(f"one (from {placed(number)}) waves" for number in (1, 2, 3, 5, 4))
    words = ["man", "woman", "man", "woman", "actor"]
    two = f"Two friends. One person is {placed(1)}. Another person is {placed(2)}."
    found = load_multihuman(multihuman(tmp_path, [(five, words), (two, ["woman", "man"])]))
    assert prompts_of(found) == {
        "multihuman_2": (
            "Two friends. One person is a woman <|image|>. Another person is a man <|image|>.",
            ("ffhq_10", "ffhq_11"),
        ),
        "multihuman_5": (
            "one (a man <|image|>) waves, one (a woman <|image|>) waves, one (a man <|image|>) waves, "
            "one (an actor <|image|>) waves, one (a woman <|image|>) waves",
            ("ffhq_00", "ffhq_01", "ffhq_02", "ffhq_04", "ffhq_03"),
        ),
    }
    assert found[0].cases[0].id == "multihuman_2/ffhq_10+ffhq_11/simple_1/0"


def test_multihuman_begins_with_simple_prompts(tmp_path: Path) -> None:
    root = multihuman(tmp_path, [(f"{k} The person is {placed(1)}.", ["man"]) for k in range(1502)])
    (whole,) = load_multihuman(root)
    assert [case.category for case in whole.cases] == ["simple"] * 1500 + ["complex"] * 2
    (few,) = load_multihuman(root, num_cases=4)
    assert [case.id.split("_")[-1] for case in few.cases] == ["0/0", "375/0", "751/0", "1126/0"]
    assert {*few.cases} < {*whole.cases}
    assert len(few.subjects) == 4


@pytest.mark.parametrize(
    ("prompt", "words", "field"),
    [
        (f"One is {placed(1)}.", ["man", "woman"], r"metadata\.json: \[0\]\.omnigen_prompt"),
        (f"{placed(1)} and {placed(3)}", ["man", "woman"], r"\[0\]\.omnigen_prompt"),
        (f"{placed(1)} and {placed(2)}", ["man", "2"], r"\[0\]\.identifier\[1\]"),
        (", ".join(map(placed, range(1, 7))), ["man"] * 6, "6 people are more"),
    ],
)
def test_multihuman_refuses_prompts_without_their_placeholders(
    prompt: str, words: list[str], field: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=field):
        load_multihuman(multihuman(tmp_path, [(prompt, words)]))


def make(name: str, root: Path) -> Path:
    """A benchmark with images of one and of two people."""
    one, two = "A man waves", "A man and a woman wave"
    if name == "multiid":
        return multiid(root, {1: one, 2: two})
    if name == "xverse":
        man, woman = ("human", "05_man", "man"), ("human", "09_woman", "woman")
        return xverse(root, [(one, man)], [(two, man, woman)])
    return multihuman(root, [(placed(1), ["man"]), (f"{placed(1)} and {placed(2)}", ["man", "woman"])])


LISTS = {
    "multiid": "v202.json",
    "xverse": "eval/tools/XVerseBench_multi.json",
    "multihuman": "data/multihuman_metadata.json",
}
each = pytest.mark.parametrize("name", LISTS)


def load(name: str, root: Path, **changes: Any) -> list[Benchmark]:
    """Load as ``benchmark=<name>`` does."""
    found: list[Benchmark] = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), images=str(root), **changes)
    return found


@each
def test_a_choice_loads_every_number_of_people(name: str, tmp_path: Path) -> None:
    root = make(name, tmp_path)
    found = load(name, root)
    assert [one.name for one in found] == [f"{name}_1", f"{name}_2"]
    assert {one.name for one in found} <= OTHERS.keys()
    assert load(name, root, people=[2]) == found[1:]
    for one in found:
        for case in one.cases:
            assert case.text == strip_markers(case.prompt)
            assert case.prompt.count("<|image|>") == len(case.subjects) == int(one.name[-1])
    with pytest.raises(Exception, match=r"benchmark\.people: 3: there are images of 1, 2 people"):
        load(name, root, people=[1, 3])


@each
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    root = make(name, tmp_path)
    image = next(iter(sorted(root.rglob("*.jpg"))))
    image.unlink()
    with pytest.raises(Exception, match=f"{image.name} does not exist; .*json: "):
        load(name, root)
    (root / LISTS[name]).unlink()
    with pytest.raises(Exception, match=f"benchmark.images: .*{Path(LISTS[name]).name} does not exist"):
        load(name, root)


def _without(key: str) -> Callable[[Any], None]:
    return lambda entry: entry.pop(key)


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("multiid", _without("ori_img_path"), r"\[0\]\.ori_img_path"),
        ("multiid", lambda entry: entry.update(image_paths=[]), r"\[0\]\.image_paths"),
        ("multiid", lambda entry: entry.update(prompt="a man <|image|>, a man"), r"\[0\]: must be without"),
        ("xverse", lambda entry: entry["modulation"].clear(), r"\[0\]\.modulation"),
        ("xverse", lambda entry: entry["modulation"][0]["use_words"].pop(), "use_words: no words of input 1"),
        ("multihuman", _without("identifier"), r"\[0\]\.identifier"),
        ("multihuman", lambda entry: entry.update(people=["a.jpg", "b.jpg"]), r"\[0\]\.identifier: 1 words"),
    ],
)
def test_a_malformed_entry_is_named_by_file_and_field(
    name: str, change: Callable[[Any], None], field: str, tmp_path: Path
) -> None:
    file = make(name, tmp_path) / LISTS[name]
    entries = json.loads(file.read_text())
    change(entries[0])
    file.write_text(json.dumps(entries))
    with pytest.raises(Exception, match=rf"{file.name}: .*{field}"):
        load(name, tmp_path)


class SortedFaces:
    """References show one of three people by their color, other images all three."""

    def __call__(self, images: Tensor) -> list[Faces]:
        found = []
        for image in images:
            shown = image.mean((1, 2)).argmax()[None] if image.shape[-1] == 8 else torch.arange(3)
            boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(len(shown), 4)
            found.append(Faces(boxes, torch.ones(len(shown)), torch.eye(3)[shown]))
        return found

    def blank(self) -> Tensor:
        return torch.zeros(3)


class OneText:
    """Every image fits every text."""

    def embed_images(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 1)

    def embed_texts(self, texts: list[str]) -> Tensor:
        return torch.ones(len(texts), 1)


def test_images_of_three_people_are_sampled_and_scored(trained: Any, tmp_path: Path) -> None:
    root = multiid(tmp_path / "bench", {3: "A man, a woman and a man"})
    for number in range(3):
        color = tuple(200 * (channel == number) for channel in range(3))
        file = root / "v200_m" / "refs" / f"person_{number + 1}" / f"0003_{number + 1}.jpg"
        Image.new("RGB", (8, 8), color).save(file)
    Image.new("RGB", (24, 8), (9, 9, 9)).save(root / "v200_m" / "num_3" / "0003.jpg")
    benchmarks = load_multiid(root)
    assert plan_runs(FastComposerMethod(trained, SAMPLER, max_subjects=2), benchmarks, tmp_path) == []
    runs = plan_runs(method := FastComposerMethod(trained, SAMPLER, max_subjects=3), benchmarks, tmp_path)
    open_runs(runs, tmp_path / "concepts")
    predict(GenerationStage(method, runs, tmp_path / "concepts"))
    predict(ScoringStage(SortedFaces(), OneText(), runs))
    rows = result_rows(tmp_path)
    write_results(tmp_path / "results.json", rows, {})
    (row,) = read_results(tmp_path / "results.json").rows
    assert (row.benchmark, row.images) == ("multiid_3", 1)
    means = (row.coverage, row.head_count, row.confusion, row.identity_preservation, row.copy_paste_ratio)
    assert [one and one.mean for one in means] == [1, 1, 1, 1, 0]
