"""One person learned from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fastcomposer.cli import train
from fastcomposer.training.personalization.concept import read_concepts

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(small_base: Path, run: Callable[..., tuple[int, str, str]]) -> Command:
    """Call ``train`` where there are images of two people; returns status and errors."""
    for name, color in (("adam", "red"), ("eve", "blue")):
        Path(name).mkdir()
        Image.new("RGB", (20, 16), color).save(f"{name}/1.png")

    def call(*arguments: str) -> tuple[int, str]:
        common = [f"model.base={small_base}", "model.resolution=16", "data=person"]
        status, _, errors = run(train, *common, *arguments)
        return status, errors

    return call


ADAM, EVE = "adam:{word:man,images:adam}", "eve:{word:woman,images:eve}"


@pytest.mark.parametrize("method", ["textual_inversion", "dreambooth", "custom_diffusion"])
def test_a_person_goes_to_the_run_s_folder(command: Command, method: str) -> None:
    fewer = [] if method == "textual_inversion" else ["method.class_images.count=2"]
    fewer += [] if method == "textual_inversion" else ["method.class_images.num_inference_steps=2"]
    arguments = ["experiment=person", f"method=mini_{method}", "method.steps=2", *fewer]
    status, errors = command(*arguments, f"data.people={{{ADAM}}}")
    assert status == 0, errors
    (learned,) = read_concepts(f"outputs/mini_{method}")
    assert (learned.method, learned.word, learned.steps) == (method, "man", 2)
    status, errors = command(*arguments, f"data.people={{{ADAM}}}")
    assert status == 1
    assert "resume=auto" in errors


def test_two_people_are_learned_together(command: Command) -> None:
    status, errors = command(
        "method=textual_inversion", "trainer.max_steps=2", f"data.people={{{ADAM},{EVE}}}", "name=both"
    )
    assert status == 0, errors
    assert [learned.token for learned in read_concepts("outputs/both")] == ["<adam>", "<eve>"]


def test_conflicting_settings_are_named(command: Command) -> None:
    status, errors = command("method=mini_dreambooth")
    assert (status, "data.people: nobody" in errors) == (1, True)
    status, errors = command(f"data.people={{{ADAM}}}")
    assert (status, "method=textual_inversion" in errors) == (1, True)
