"""Benchmarks: the published one and the mini world's, case by case."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from toy_evaluation import people

from fastcomposer.evaluation.benchmark import (
    Benchmark,
    Subject,
    find_subjects,
    load_benchmark,
    read_definition,
)
from fastcomposer.miniworld.scenes import held_out_identities
from fastcomposer.prompt import strip_markers

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "data" / "benchmarks"


def paper(name: str) -> Benchmark:
    words = read_definition(BENCHMARKS / "paper" / "single_subject.json").subjects
    assert words is not None
    subjects = [Subject(key, word, (Path(f"{key}.jpg"),)) for key, word in words.items()]
    return load_benchmark(BENCHMARKS / "paper" / f"{name}.json", subjects)


def mini(name: str) -> Benchmark:
    words = read_definition(BENCHMARKS / "mini" / "single_subject.json").subjects
    assert words is not None
    subjects = [Subject(key, word, (Path(f"{key}.png"),)) for key, word in words.items()]
    return load_benchmark(BENCHMARKS / "mini" / f"{name}.json", subjects)


@pytest.fixture(scope="module")
def single() -> Benchmark:
    return mini("single_subject")


@pytest.fixture(scope="module")
def multi() -> Benchmark:
    return mini("multi_subject")


def test_the_published_protocol_is_whole() -> None:
    single, multi = paper("single_subject"), paper("multi_subject")
    assert len(single.cases) == 15 * 40 * 4 == 2400
    assert len(multi.cases) == 105 * 21 * 4 == 8820
    assert Counter(case.category for case in single.cases) == dict.fromkeys(
        ("accessory", "style", "action", "context"), 600
    )
    assert Counter(case.category for case in multi.cases) == {"style": 2940, "action": 3360, "context": 2520}
    assert multi.groups[0] == ("000001", "000181")
    assert multi.groups[-1] == ("003785", "004153")
    assert len(set(multi.groups)) == 105
    case = single.cases[1]
    assert case.id == "single_subject/000001/accessory_0/1"
    assert case.prompt == "a man <|image|> wearing a red hat"
    pair = next(case for case in multi.cases if case.id == "multi_subject/000268+000612/action_5/3")
    assert pair.prompt == "a photo of a man <|image|> and a woman <|image|> posing for a selfie together"
    assert pair.subjects == ("000268", "000612")


@pytest.mark.parametrize("name", ["single_subject", "multi_subject"])
def test_texts_are_prompts_without_markers_and_ids_are_unique_paths(name: str) -> None:
    for benchmark in (paper(name), mini(name)):
        assert len({case.id for case in benchmark.cases}) == len(benchmark.cases)
        for case in benchmark.cases:
            assert case.text == strip_markers(case.prompt)
            assert case.prompt.count("<|image|>") == len(case.subjects)
            assert "{" not in case.text
            assert re.fullmatch(r"[\w+-]+(/[\w+-]+){3}", case.id)


def test_seeds_are_the_same_for_all_subjects_and_for_nothing_else(single: Benchmark) -> None:
    seeds: dict[tuple[str, ...], set[int]] = {}
    for case in single.cases:
        _, _, prompt, image = case.id.split("/")
        seeds.setdefault((prompt, image), set()).add(case.seed)
    assert all(len(found) == 1 for found in seeds.values())
    assert sorted(seed for found in seeds.values() for seed in found) == list(range(42, 42 + 160))
    assert [case.seed for case in single.cases[:5]] == [42, 43, 44, 45, 46]


def test_the_base_seed_moves_all() -> None:
    file = BENCHMARKS / "mini" / "multi_subject.json"
    first, second = (load_benchmark(file, people("mwm"), seed) for seed in (42, 1000))
    assert {b.seed - a.seed for a, b in zip(first.cases, second.cases, strict=True)} == {958}
    with pytest.raises(ValueError, match=r"benchmark\.seed=-1"):
        load_benchmark(file, people("mw"), -1)


def test_mini_subjects_are_the_held_out_people(world: Path) -> None:
    words = read_definition(BENCHMARKS / "mini" / "single_subject.json").subjects
    assert words is not None
    expected = {f"{i:02d}_{p.word}": p.word for i, p in enumerate(held_out_identities())}
    assert words == expected
    assert list(words) == list(expected)
    for subject in find_subjects(words, world / "references"):
        assert subject.reference == world / "references" / f"{subject.id}.png"
        folder = world / "references" / subject.id
        assert subject.tuning_images == (subject.reference, *(folder / f"{k}.png" for k in (1, 2, 3, 4)))
        assert subject.other_images == tuple(folder / f"{k}.png" for k in (5, 6, 7))


def test_a_part_has_the_cases_of_the_whole(single: Benchmark, multi: Benchmark) -> None:
    part = single.subset(num_subjects=5, prompts_per_category=2, images_per_prompt=3)
    assert len(part.cases) == 5 * 4 * 2 * 3
    assert set(part.cases) <= set(single.cases)
    assert [subject.id for subject in part.subjects] == ["00_man", "01_woman", "02_man", "03_woman", "04_man"]
    prompts = {case.id.split("/")[2] for case in part.cases}
    assert prompts == {f"{c}_{k}" for c in ("accessory", "style", "expression", "context") for k in (0, 5)}
    assert single.subset() == single
    few = multi.subset(num_pairs=3)
    assert set(few.cases) <= set(multi.cases)
    assert len(few.subjects) == 6
    order = {case.id: i for i, case in enumerate(multi.cases)}
    assert [order[case.id] for case in few.cases] == sorted(order[case.id] for case in few.cases)


@pytest.mark.parametrize("count", [1, 7, 15, 20, 45, 61, 104, 105])
def test_pairs_are_spread_over_the_subjects(multi: Benchmark, count: int) -> None:
    part = multi.subset(num_pairs=count, prompts_per_category=1, images_per_prompt=1)
    assert len(part.groups) == count
    assert part.groups == multi.subset(num_pairs=count, prompts_per_category=1, images_per_prompt=1).groups
    times = Counter(name for pair in part.groups for name in pair)
    assert max(times.values()) - min(times[s.id] for s in multi.subjects) <= 2


def test_subjects_are_of_each_word_in_turn() -> None:
    benchmark = load_benchmark(BENCHMARKS / "mini" / "single_subject.json", people("mmmwww"))
    part = benchmark.subset(num_subjects=3, prompts_per_category=1)
    assert [subject.id for subject in part.subjects] == ["0m", "1m", "3w"]


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("single_subject", {"num_subjects": 16}, "num_subjects=16: there are 15 subjects"),
        ("single_subject", {"num_pairs": 2}, "num_pairs=2: single_subject has no pairs"),
        ("single_subject", {"prompts_per_category": 11}, "there are 10 prompts of accessory"),
        ("single_subject", {"images_per_prompt": 5}, "there are 4 images of a prompt"),
        ("multi_subject", {"num_subjects": 1}, "num_subjects=1: a case of multi_subject has 2 subjects"),
        ("multi_subject", {"num_subjects": 3, "num_pairs": 4}, "num_pairs=4: there are 3 pairs"),
        ("multi_subject", {"num_pairs": 0}, "num_pairs=0: at least 1, or null for all"),
    ],
)
def test_too_much_or_nothing_is_refused(name: str, asked: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mini(name).subset(**asked)


def test_images_are_found_beside_and_in_folders(tmp_path: Path) -> None:
    for name in ("a.jpg", "b/10.png", "b/9.png", "b/notes.txt", "c.PNG", "c/1.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_subjects({"a": "man", "b": "woman", "c": "man"}, tmp_path)
    names = [[str(path.relative_to(tmp_path)) for path in subject.images] for subject in found]
    assert names == [["a.jpg"], ["b/9.png", "b/10.png"], ["c.PNG", "c/1.jpeg"]]
    assert found[1].reference.name == "9.png"
    assert found[1].other_images == ()
    with pytest.raises(FileNotFoundError, match=r"no image of subject 000181; put .*000181\.jpg there"):
        find_subjects({"a": "man", "000181": "man"}, tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder; prepare data=avatars"):
        find_subjects({"a": "man"}, "nowhere")
