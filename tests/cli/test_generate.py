"""Generating from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastcomposer.cli import generate

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=x", "references=[ann/a.png]"], "1 reference image(s) for 0 marker(s)"),
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
def test_generate_names_what_is_wrong_before_it_loads(run: Run, arguments: list[str], message: str) -> None:
    Path("ann").mkdir()
    Path("ann/a.png").touch()
    status, _, err = run(generate, "prompt=hello", *arguments)
    assert (status, message in err, "Traceback" in err) == (1, True, False)


def test_generate_wants_a_prompt(run: Run) -> None:
    status, _, err = run(generate, "checkpoint=x")
    assert (status, "error: prompt: " in err) == (1, True)


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
