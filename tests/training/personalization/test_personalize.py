"""Learning people once: measured, and not again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from learning_beside import learn_beside_another
from PIL import Image

from fastcomposer.data.portraits import ReferenceSet
from fastcomposer.training.personalization.concept import Concept
from fastcomposer.training.personalization.fine_tuning import PersonalizationModule
from fastcomposer.training.personalization.personalize import personalize

Factory = Callable[..., partial[PersonalizationModule]]
TRAINER = partial(L.Trainer, accelerator="cpu", gradient_clip_val=1.0)


@pytest.fixture
def learn(people: tuple[ReferenceSet, ...], tmp_path: Path) -> Callable[..., Concept]:
    """Learn the first person."""

    def run(method: Any, trainer: Any = TRAINER, **changes: Any) -> Concept:
        adam = people[0]
        chosen = {"images": adam.images, "word": adam.word, "folder": tmp_path, "name": "adam", "seed": 1}
        return personalize(method, trainer, **(chosen | changes))

    return run


def test_a_person_is_learned_once(
    learn: Callable[..., Concept], factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    method = factory("textual_inversion")
    learned = learn(method)
    assert learned.file == tmp_path / "adam" / "concept.safetensors"
    assert learned.steps == 2
    assert learned.seconds > 0
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "concept.json",
        "concept.safetensors",
    ]
    time = learned.file.stat().st_mtime_ns
    assert learn(method) == learned
    assert learned.file.stat().st_mtime_ns == time


def test_the_same_seed_gives_the_same_concept(
    learn: Callable[..., Concept], factory: Factory, tmp_path: Path
) -> None:
    found = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        torch.manual_seed(len(found))
        learned = learn(factory("custom_diffusion"), seed=seed, folder=tmp_path / name)
        found.append(learned.file.read_bytes())
    assert found[0] == found[1] != found[2]


def test_an_unfinished_person_is_learned_anew(
    learn: Callable[..., Concept], factory: Factory, tmp_path: Path
) -> None:
    learned = learn(factory("dreambooth"))
    content = learned.file.read_bytes()
    (tmp_path / "adam" / "concept.json").unlink()
    learned.file.write_bytes(b"half")
    assert learn(factory("dreambooth")).file.read_bytes() == content


def test_changed_settings_people_seeds_and_bases_are_named(
    learn: Callable[..., Concept],
    factory: Factory,
    people: tuple[ReferenceSet, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learn(factory("textual_inversion"))
    with pytest.raises(ValueError, match=r"method\.steps: 2, not 3"):
        learn(factory("textual_inversion", steps=3))
    faster = partial(torch.optim.AdamW, lr=0.5, weight_decay=0.01)
    with pytest.raises(ValueError, match=r"method\.optimizer\.lr: 0\.3, not 0\.5"):
        learn(factory("textual_inversion", optimizer=faster))
    with pytest.raises(ValueError, match=r"trainer\.gradient_clip_val: 1\.0, not 0\.5"):
        learn(factory("textual_inversion"), partial(TRAINER, gradient_clip_val=0.5))
    with pytest.raises(ValueError, match=r"seed: 1, not 2"):
        learn(factory("textual_inversion"), seed=2)
    with pytest.raises(ValueError, match=r"people\.adam\.word: 'man', not 'woman'"):
        learn(factory("textual_inversion"), word="woman")
    moved = tmp_path / "moved.png"  # what is in the images counts, not where they are
    moved.write_bytes(people[0].images[0].read_bytes())
    learn(factory("textual_inversion"), images=[moved, people[0].images[1]])
    Image.new("RGB", (16, 16), "red").save(moved)
    with pytest.raises(ValueError, match=r"people\.adam\.images"):
        learn(factory("textual_inversion"), images=[moved, people[0].images[1]])
    monkeypatch.setattr(
        "fastcomposer.training.personalization.personalize.source_fingerprint", lambda base: "new"
    )
    with pytest.raises(ValueError, match=r"base: '[0-9a-f]{16}', not 'new'"):
        learn(factory("textual_inversion"))


def test_a_process_learns_people_without_waiting_for_others(
    factory: Factory, people: tuple[ReferenceSet, ...], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    arguments = (tmp_path, factory("dreambooth"), TRAINER, people)
    both = [context.Process(target=learn_beside_another, args=(rank, *arguments)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        process.kill()  # one that waits for people whom nobody learns
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert {file.parent.name for file in tmp_path.glob("*/concept.json")} == {"adam", "eve"}
