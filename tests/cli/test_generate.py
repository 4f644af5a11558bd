"""Generating from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastcomposer import FastComposer
from fastcomposer.cli import generate
from fastcomposer.cli.common import quoted
from fastcomposer.models.weights_io import save_trained_weights

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=null"], "checkpoint: name trained weights"),
        (["checkpoint=nowhere.ckpt"], "checkpoint nowhere.ckpt: no such file"),
        (["checkpoint=x", "compile=quick"], "compile=quick: torch has the backends "),
        (["sampler.scheduler={name:Nobody}"], "sampler.scheduler.name=Nobody: no scheduler of diffusers"),
        (["checkpoint=x", "references=[nobody.png]"], "references: no such file: nobody.png"),
        (["checkpoint=x", "references=[[nobody.png,b.png]]"], "references: no such file: nobody.png, b.png"),
        (["settings=nothing.png"], "settings=nothing.png: no complete PNG with settings of this program"),
        (["checkpoint=x", "references=."], "references: folder . has no image (.png, .jpg, .jpeg, .webp)"),
    ],
)
def test_generate_says_what_is_wrong_before_it_loads(run: Run, arguments: list[str], message: str) -> None:
    status, _, err = run(generate, "prompt=hello", *arguments)
    assert status == 1
    assert err.strip() == f"error: {message}" or message in err
    assert "Traceback" not in err


def test_generate_wants_a_prompt(run: Run) -> None:
    message = "error: prompt: say what the image should show, or name an image in settings"
    status, _, err = run(generate, "checkpoint=x")
    assert (status, err.strip()) == (1, message)


def test_references_on_the_command_line(tmp_path: Path) -> None:
    person = tmp_path / "ann"
    person.mkdir()
    ann = [str(person / name) for name in ("1.JPG", "2.png")]
    bob = str(tmp_path / "bob.png")
    for file in (*ann, bob, person / "notes.txt"):
        Path(file).write_bytes(b"")
    assert generate.reference_files(bob) == [[bob]]
    assert generate.reference_files(str(person)) == [ann]
    assert generate.reference_files([str(person), bob]) == [ann, [bob]]
    assert generate.reference_files([[bob, ann[1]], ann[0]]) == [[bob, ann[1]], [ann[0]]]
    assert generate.reference_files([]) == []


def test_subjects_are_counted_before_anything_loads(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    call = ["prompt=a man <|image|> and a woman <|image|>", "references=[[a.png,a.png]]", "checkpoint=x"]
    status, _, err = run(generate, *call)
    assert status == 1
    assert "1 reference image(s) for 2 marker(s)" in err
    assert "several images of one subject are a list of their own" in err


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a man on the beach", "1 reference image(s) for 0 marker(s)"),
        ("<|image|> on the beach", "has no word before it"),
        (f"{'very ' * 80}old man <|image|>", "subject 1 is token"),
    ],
)
def test_generate_explains_prompts(
    run: Run, world: Path, small_base: Path, prompt: str, message: str
) -> None:
    save_trained_weights(FastComposer.from_pretrained(small_base), "trained.safetensors")
    portrait = sorted((world / "references").glob("*.png"))[0]
    call = [f"model.base={small_base}", "checkpoint=trained.safetensors", f"references=[{portrait}]"]
    status, _, err = run(generate, *call, f'prompt="{prompt}"')
    assert status == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("prompt=a man <|image|>, smiling", 'prompt="a man <|image|>, smiling"'),
        ('prompt="a man"', 'prompt="a man"'),
        ('prompt=a "man"', 'prompt="a \\"man\\""'),
        ("prompt=a ${seed} man", 'prompt="a \\${seed} man"'),
        ('prompt=a "man\\', 'prompt="a \\"man\\\\"'),
        ("alpha=0.6", "alpha=0.6"),
        ("--help", "--help"),
    ],
)
def test_prompts_need_no_quotes_of_their_own(argument: str, expected: str) -> None:
    assert quoted(argument, "prompt") == expected
