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
    """Completions that bash offers at the end of a line."""
    call = ["bash", "-c", SCRIPT, "bash", line]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tr", ["train"]),
        ("train localization=n", ["localization=none", "localization=normalized"]),
        ("train experiment=mini trainer.max_", ["trainer.max_steps=", "trainer.max_time="]),
        ("generate sampler=u", ["sampler=unipc"]),
        ("nothing ", []),
    ],
)
def test_the_tab_key_completes(typed: str, offered: list[str]) -> None:
    assert completed(f"{Path(sys.executable).with_name('fastcomposer')} {typed}") == offered
