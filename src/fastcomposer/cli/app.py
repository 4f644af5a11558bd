"""The command ``fastcomposer``: hands over to the module of a subcommand."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train FastComposer, a fine-tuning baseline or a part of the embedded base",
    "evaluate": "sample a benchmark with one or several methods and score the images",
    "benchmark": "write the cases of a benchmark, for other systems to generate images for",
    "score": "score images of another system beside those of evaluate",
    "attention": "measure how much of each subject word's attention falls on that subject",
    "diagnose": "measure where identity is lost, stage by stage and at each noise level",
    "generate": "generate images of given people",
    "prepare": "make a data folder, a cache or shards",
    "report": "write tables, plots and pages of evaluations and sweeps",
    "card": "measure the embedded base and its checkpoints, and write their card",
    "workspace": "create the panels of a project at Weights & Biases",
    "bench": "measure speed and memory, and project long trainings",
    "demo": "serve a page in the browser",
    "doctor": "see what a machine lacks for a command and its configuration",
}
"""Subcommands and what they do. Each is a module of this package."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Become the process ``python -m fastcomposer.cli.<subcommand>``.

    A process of its own, because launchers and multi-device training start the main module once more.

    Args:
        arguments: A subcommand and what it takes; ``None`` for those of the process.
    """
    name, *rest = (list(sys.argv[1:]) if arguments is None else list(arguments)) or ["--help"]
    if name in COMMANDS:
        os.execv(sys.executable, [sys.executable, "-m", f"fastcomposer.cli.{name}", *rest])
    elif name in ("--help", "-h"):
        width = max(map(len, COMMANDS))
        print("usage: fastcomposer <subcommand> [key=value ...]\n")
        print("\n".join(f"  {command:<{width}}  {what}" for command, what in COMMANDS.items()))
        print("\nfastcomposer <subcommand> --help lists its keys and examples.")
    else:
        print(f"error: no subcommand {name}; there is {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
