"""Files that define a benchmark: their defects are named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from toy_evaluation import people

from fastcomposer.evaluation.benchmark import BenchmarkError, Subject, Subset, load_benchmark, load_benchmarks


def definition(folder: Path, **changes: Any) -> Path:
    content = {
        "name": "single_subject",
        "images_per_prompt": 2,
        "subjects": {"a": "man"},
        "prompts": {"style": ["a drawing of a {subject}"]},
    } | changes
    file = folder / "benchmark.json"
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "double"}, "name: .*'single_subject' or 'multi_subject', not 'double'"),
        ({"images_per_prompt": 0}, "images_per_prompt: .*, not 0"),
        ({"prompts": None}, "prompts: Field required"),
        ({"prompts": {"style": []}}, r"prompts\.style: "),
        ({"prompts": {"a/b": ["a {subject}"]}}, r"prompts\.a/b: "),
        ({"prompts": {"style": ["a {person}"]}}, r"prompts\.style\[0\]: .*\{subject\} once"),
        ({"prompts": {"style": ["a man"]}}, r"prompts\.style\[0\]: .*\{subject\} once"),
        ({"prompts": {"style": ["a {subject}s"]}}, r"prompts\.style\[0\]: .* full words"),
        ({"prompts": {"style": ["a <|image|> {subject}"]}}, r"prompts\.style\[0\]: .*<\|image\|>"),
        ({"prompts": {"style": ["a {subject}"] * 2}}, r"prompts\.style\[1\]: there twice"),
        ({"subjects": {"a+b": "man"}}, r"subjects\.a\+b: "),
        ({"subjects": {"a": "old man"}}, r"subjects\.a: .*not 'old man'"),
        ({"extra": 1}, "extra: "),
    ],
)
def test_defects_of_a_definition_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = definition(tmp_path, **changes)
    with pytest.raises(BenchmarkError, match=f"{re.escape(str(file))}: {message}"):
        load_benchmark(file, people("m"))


def test_placeholders_come_in_their_order(tmp_path: Path) -> None:
    file = definition(
        tmp_path, name="multi_subject", prompts={"style": ["a {subject_2} beside a {subject_1}"]}
    )
    with pytest.raises(
        BenchmarkError, match=r"style\[0\]: .*\{subject_1\} and \{subject_2\} once, in this order"
    ):
        load_benchmark(file, people("mw"))


def test_defects_of_subjects_are_named(tmp_path: Path) -> None:
    file = definition(tmp_path)
    with pytest.raises(BenchmarkError, match=r"benchmark\.json: subject 0m has no image"):
        load_benchmark(file, [Subject("0m", "man", ())])
    with pytest.raises(BenchmarkError, match="subject 0m is there 2 times"):
        load_benchmark(file, people("m") * 2)
    with pytest.raises(BenchmarkError, match="0 subjects for prompts with 1"):
        load_benchmark(file, [])
    with pytest.raises(FileNotFoundError, match=r"benchmark\.folder names its folder"):
        load_benchmark(tmp_path / "missing.json", people("m"))
    file.write_text("{")
    with pytest.raises(BenchmarkError, match="Invalid JSON"):
        load_benchmark(file, people("m"))


def test_a_subjects_possessive_is_a_whole_word(tmp_path: Path) -> None:
    benchmark = load_benchmark(
        definition(tmp_path, prompts={"style": ["a {subject}'s portrait"]}), people("w")
    )
    assert benchmark.cases[0].prompt == "a woman <|image|>'s portrait"
    assert benchmark.cases[0].text == "a woman's portrait"


def test_subjects_come_from_the_single_subject_definition(tmp_path: Path) -> None:
    definition(tmp_path, subjects=None).rename(tmp_path / "single_subject.json")
    with pytest.raises(BenchmarkError, match=r"single_subject\.json: subjects: missing"):
        load_benchmarks(tmp_path, tmp_path, single=Subset())
