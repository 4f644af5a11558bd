"""The shell completes commands, choices and keys."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
source scripts/completion.bash
COMP_LINE="$1" COMP_POINT=${#1}
_fastcomposer
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(line: str) -> list[str]:
    """What bash offers when the tab key is pressed at the end of a line."""
    call = ["bash", "-c", SCRIPT, "bash", line]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("-m fastcomposer.cli.tr", ["fastcomposer.cli.train"]),
        ("-m fastcomposer.cli.train localization=n", ["localization=none", "localization=normalized"]),
        (
            "-m fastcomposer.cli.train experiment=mini trainer.max_",
            ["trainer.max_steps=", "trainer.max_time="],
        ),
        ("-m fastcomposer.cli.generate sampler=u", ["sampler=unipc"]),
        ("-m pip ", []),
    ],
)
def test_the_tab_key_knows_what_follows(typed: str, offered: list[str]) -> None:
    assert completed(f"{sys.executable} {typed}") == offered


def test_make_says_how_to_switch_it_on() -> None:
    said = subprocess.run(["make", "-s", "completion"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout == f"source {ROOT}/scripts/completion.bash\n"
