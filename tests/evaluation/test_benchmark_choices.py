"""The choices of the configuration, and where their images come from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from configurations import composed
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fastcomposer.evaluation.benchmark import Benchmark, read_definition

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "data" / "benchmarks"


def loaded(choice: str, images: Path) -> list[Benchmark]:
    config = OmegaConf.load(ROOT / "conf" / "benchmark" / f"{choice}.yaml")
    assert isinstance(config, DictConfig)
    if "defaults" in config:
        below = OmegaConf.load(ROOT / "conf" / "benchmark" / f"{config.pop('defaults')[0]}.yaml")
        config = OmegaConf.merge(below, config)  # type: ignore[assignment]
    config = config.get("benchmark", config)
    found: list[Benchmark] = instantiate(config, folder=str(ROOT / config.folder), images=str(images))
    return found


def test_the_mini_choice_asks_for_minutes_of_the_same_people(world: Path) -> None:
    single, multi = loaded("mini", world / "references")
    assert (len(single.cases), len(multi.cases)) == (48, 45)
    assert single.subjects == multi.subjects
    times = Counter(name for pair in multi.groups for name in pair)
    assert set(times.values()) == {5}  # all pairs
    whole = {
        case.id: case for benchmark in loaded("mini_full", world / "references") for case in benchmark.cases
    }
    assert len(whole) == 2400 + 8820
    people = [case for benchmark in loaded("mini_people", world / "references") for case in benchmark.cases]
    assert len(people) == 120 + 315 and {*single.cases, *multi.cases} < {*people}
    assert all(whole[case.id] == case for case in people)
    assert [len(one.cases) for one in loaded("mini_card", world / "references")] == [180, 180]


def celeba_folder(root: Path) -> list[str]:
    """The published repository's layout: a folder of each identity with one image; gives their names."""
    words = read_definition(BENCHMARKS / "paper" / "single_subject.json").subjects
    assert words is not None
    for number, name in enumerate(words):
        (root / name).mkdir()
        (root / name / f"{number:09d}.jpg").touch()
    return list(words)


def test_the_paper_choice_takes_the_published_layout(tmp_path: Path) -> None:
    names = celeba_folder(tmp_path)
    single, multi = loaded("paper", tmp_path)
    assert (len(single.cases), len(multi.cases)) == (2400, 8820)
    references = {subject.id: subject.images for subject in single.subjects}
    assert references == {name: (tmp_path / name / f"{number:09d}.jpg",) for number, name in enumerate(names)}
    assert OmegaConf.is_missing(composed("evaluate", "benchmark=paper").benchmark, "images")
    (tmp_path / "002937" / f"{names.index('002937'):09d}.jpg").unlink()
    with pytest.raises(InstantiationException, match=r"of subject 002937; .* identity 2937 into .*002937/"):
        loaded("paper", tmp_path)


def test_the_paper_choice_scores_as_the_published_run_did() -> None:
    chosen = composed("evaluate", "benchmark=paper", "metrics=paper", "sampler=paper")
    assert (chosen.alphas, chosen.scoring.jpeg_quality, chosen.scoring.image_text.antialias) == (
        [0.5],
        75,
        False,
    )
    assert composed("report", "benchmark=paper", "sampler=paper").alpha == 0.5
    other = composed("evaluate", "metrics=paper", "sampler=paper")
    assert (other.alphas, other.scoring.jpeg_quality, other.scoring.image_text.antialias) == (
        [0.6],
        None,
        True,
    )
    own = composed("evaluate", "benchmark=paper", "alphas=[0.8]", "scoring.jpeg_quality=null")
    assert (own.alphas, own.scoring.jpeg_quality) == ([0.8], None)


@pytest.mark.parametrize("folders_too", [False, True])
def test_the_paper_choice_refuses_files_named_by_celeba_s_own_numbers(
    folders_too: bool, tmp_path: Path
) -> None:
    if folders_too:
        celeba_folder(tmp_path)
    (tmp_path / "000181.jpg").touch()
    (tmp_path / "000001").mkdir(exist_ok=True)
    (tmp_path / "000001" / "a.jpg").touch()
    with pytest.raises(
        InstantiationException, match=r"000181\.jpg shows somebody else than identity 181\..*identity_CelebA"
    ):
        loaded("paper", tmp_path)
