"""The report on a command and its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastcomposer.doctor import machine, models, records
from fastcomposer.doctor.finding import Finding, at
from fastcomposer.doctor.inputs import READ, inputs

BENCH = Path("outputs/bench")
"""Where ``fastcomposer bench`` writes what costs are estimated from."""


def examine(command: str, config: Mapping[str, Any], model_choice: str = "mini") -> list[Finding]:
    """Look at everything that a command needs; nothing is loaded, downloaded or written.

    Args:
        command: One of :data:`~fastcomposer.doctor.inputs.READ`.
        config: Its composed configuration in plain values; ``???`` where a value is missing.
        model_choice: Chosen file of the group ``model``, for commands that are shown.

    Raises:
        ValueError: If the command is another.
    """
    if command not in READ:
        raise ValueError(f"doctor {command}: examines {', '.join(READ)}")
    return list(dict.fromkeys(_examine(command, config, model_choice)))


def _examine(command: str, config: Mapping[str, Any], model_choice: str) -> Iterator[Finding]:
    yield from machine.versions()
    if "trainer" in config:
        yield from machine.devices(config)
    found = list(inputs(command, config))
    yield from found
    model = config.get("model")
    model = None if command == "prepare" and config["cache"] is None else model
    parameters = models.parameters(model) if model else {}
    if command == "train" and at(config, "method.train_backbone") == "lora":
        parameters["lora"] = models.lora_parameters(config["model"], config["method"]["lora"])
    trained = machine.trained_numbers(config, parameters) if command == "train" else 0
    if model:
        yield from machine.memory(config, parameters, trained)
    if command == "train":
        yield from _earlier_run(config)
        needed = machine.checkpoint_bytes(config, trained)
        yield machine.disk("run_dir", config["run_dir"], needed, "checkpoints and weights")
        if at(config, "data.module.batch_size"):
            yield machine.step_cost(config, BENCH, model_choice)
    elif command == "evaluate":
        complete = not any(one.name.startswith("benchmark") and one.state == "missing" for one in found)
        runs = len(config["methods"]) - 1 + len(config["alphas"])
        images = runs * records.num_cases(config["benchmark"]) if complete else 0
        yield machine.disk("output", config["run_dir"], machine.image_bytes(config, images), "images")
    elif command == "prepare":
        for key in ("cache", "shards", "data.root"):
            if at(config, key) is not None:
                yield machine.disk(key, at(config, key), 0, "files")
                break
    elif "output" in config:
        yield machine.disk("output", config["output"], 0, "files")


def _earlier_run(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the run's folder is free, or the checkpoint to resume from is there."""
    from fastcomposer.training.resuming import find_checkpoint

    resume = config["resume"]
    if resume not in (None, "auto", "restart"):
        yield records.existing("resume", [resume], "resume=auto, or another .ckpt file")
    elif resume is None:
        try:
            find_checkpoint(None, Path(config["run_dir"]) / "checkpoints")
        except ValueError as error:
            yield Finding("disk", "run_dir", "missing", str(error), "resume=auto, or name=<other>")
