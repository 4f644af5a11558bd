"""Versions, devices, memory and disk, and what a configuration needs of them."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastcomposer.doctor.finding import Finding, at, gigabytes

Config = Mapping[str, Any]
_PACKAGES = ("fastcomposer", "torch", "diffusers", "transformers", "lightning")
_BYTES = 4  # of a number in float32
_BYTES_PER_PIXEL = 2  # of a PNG, about
_FULL = 0.8  # of the memory that numbers may take before activations


def versions() -> Iterator[Finding]:
    """Versions of Python and of the libraries that results depend on."""
    yield Finding("versions", "python", "ok", platform.python_version())
    for name in _PACKAGES:
        yield Finding("versions", name, "ok", version(name))


def num_processes(config: Config) -> int:
    """Processes of a training: devices times nodes."""
    trainer = config["trainer"]
    devices = trainer["devices"]
    if isinstance(devices, list):
        wanted = len(devices)
    elif str(devices) in ("-1", "auto"):
        wanted = 1 if trainer["accelerator"] == "cpu" else max(1, len(_gpus()))
    else:
        wanted = int(devices)
    return wanted * int(trainer.get("num_nodes", 1))


def _gpus() -> list[tuple[str, int]]:
    """Name and bytes of memory of each GPU."""
    import torch

    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [(one.name, one.total_memory) for one in found]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices(config: Config) -> Iterator[Finding]:
    """``trainer.accelerator`` and ``trainer.devices`` against what is there."""
    trainer = config["trainer"]
    accelerator, key = trainer["accelerator"], "trainer.devices"
    if accelerator == "cpu":
        there, what = _cores(), "CPU cores"
    else:
        there, what = len(_gpus()), "GPUs"
        if not there and accelerator == "auto":
            there, what = _cores(), "CPU cores"
    wanted = num_processes(config) // int(trainer.get("num_nodes", 1))
    detail = f"{wanted} of {there} {what}"
    if not there:
        yield Finding(
            "devices", "trainer.accelerator", "missing", f"{accelerator}: no GPU", "trainer=cpu, or a GPU"
        )
    elif wanted > there:
        yield Finding("devices", key, "missing", detail, f"{key}={there}, with as many batches accumulated")
    else:
        yield Finding("devices", key, "ok", detail)


def memory(config: Config, parameters: Mapping[str, int], trained: int) -> Iterator[Finding]:
    """Weights, gradients, optimizer and averages of a process; activations come on top.

    Args:
        config: Configuration.
        parameters: Numbers of each network, and of the adapters of a LoRA.
        trained: Numbers that are trained; 0 without training.
    """
    total = sum(number for name, number in parameters.items() if name != "vision_layer")
    if not total:
        yield Finding("memory", "model", "warning", "not estimated: no weights and no architecture are there")
        return
    sharded = "Sharded" in str(at(config, "trainer.strategy._target_"))
    kept = trained * (_bytes(config) + _states(config)) / (num_processes(config) if sharded else 1)
    needed = total * _bytes(config) + kept
    detail = f"weights{', gradients, optimizer and averages' * bool(trained)} take about {gigabytes(needed)}"
    trainer = config.get("trainer") or {"accelerator": "auto", "devices": 1}
    sizes = [] if trainer["accelerator"] == "cpu" else [size for _, size in _gpus()]
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    local = num_processes(config) // int(trainer.get("num_nodes", 1)) if "trainer" in config else 1
    if trainer["accelerator"] in ("gpu", "cuda") and not sizes:
        yield Finding("memory", "GPU", "warning", f"{detail}; activations not counted, and no GPU to compare")
    elif sizes:
        yield _fits("memory", "GPU", detail, needed, min(sizes))
        yield _fits("memory", "RAM", "weights on their way to the GPUs", local * total * _BYTES, ram)
    else:
        yield _fits("memory", "RAM", detail, local * needed, ram)


def _fits(topic: str, name: str, detail: str, needed: float, there: float) -> Finding:
    text = f"{detail}, of {gigabytes(there)}; activations not counted"
    if needed > there:
        remedy = "trainer=fsdp, method.optimizer.implementation=8bit, a smaller model or a larger device"
        return Finding(topic, name, "missing", text, remedy)
    if needed > _FULL * there:
        return Finding(topic, name, "warning", text, "lower data.module.batch_size if it runs out")
    return Finding(topic, name, "ok", text)


def _bytes(config: Config) -> int:
    """Bytes of a number of the weights, trained or frozen; mixed precision keeps float32."""
    return 2 if at(config, "trainer.precision") in ("16-true", "bf16-true") else _BYTES


def _states(config: Config) -> float:
    """Bytes of optimizer states and average of a trained number."""
    eight = at(config, "method.optimizer.implementation") == "8bit"
    average = at(config, "method.ema_decay") is not None
    return (2 if eight else 2 * _bytes(config)) + _bytes(config) * average


def trained_numbers(config: Config, parameters: Mapping[str, int]) -> int:
    """Numbers that a training of FastComposer trains, without the fusion; 0 for other methods."""
    method = config.get("method", {})
    if "train_backbone" not in method:
        return 0
    full = parameters["unet"] + parameters["transformer"]
    backbone = full if method["train_backbone"] is True else parameters.get("lora", 0)
    return backbone + parameters["vision_layer"] * method["vision_layers"]


def disk(key: str, folder: str | Path, needed: float, what: str) -> Finding:
    """Room for bytes, 0 where that is not estimated, on the disk of a folder, and leave to write there."""
    there = Path(folder).expanduser().absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    taken = f"take about {gigabytes(needed)}" if needed else "are not estimated"
    detail = f"{folder}: {what} {taken}, {gigabytes(free)} are free"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding("disk", key, "missing", f"{there} is no folder that can be written", f"{key}=<other>")
    if needed > free:
        return Finding("disk", key, "missing", detail, f"make room, or {key}=<folder on another disk>")
    return Finding("disk", key, "ok", detail)


def checkpoint_bytes(config: Config, trained: int) -> float:
    """Bytes of the checkpoints that are kept, of one more being written, and of the exported weights."""
    kept = at(config, "callbacks.checkpoint.save_top_k")
    kept = 2 if kept is None else max(kept, 0)
    return trained * (_bytes(config) + _states(config)) * (kept + 1) + trained * _BYTES


def image_bytes(config: Config, images: int) -> float:
    """Bytes of the images of an evaluation."""
    return images * at(config, "model.resolution") ** 2 * _BYTES_PER_PIXEL


def step_cost(config: Config, folder: Path, model_choice: str) -> Finding:
    """Time of a training by the step that ``fastcomposer bench suites=[plan]`` measured on this machine."""
    model, batch = at(config, "model.base"), at(config, "data.module.batch_size")
    root = at(config, "data.root")
    command = f"fastcomposer bench suites=[plan] model={model_choice} batch_size={batch} data.root={root}"
    try:
        content = json.loads((folder / "plan.json").read_bytes())
        measured, known = content["measured"], content["model"]
        seconds = measured["seconds_per_step"] * batch / measured["batch_size"]
    except (OSError, ValueError, LookupError, TypeError):
        return Finding("cost", "step", "ok", "not measured", command)
    if known != model:
        return Finding("cost", "step", "ok", f"not measured: {folder}/plan.json is of {known}", command)
    seconds *= at(config, "trainer.accumulate_grad_batches")
    steps = at(config, "trainer.max_steps")
    whole = f", {seconds * steps / 3600:,.1f} h for {steps:,} steps" if steps and steps > 0 else ""
    return Finding("cost", "step", "ok", f"about {seconds:,.3g} s{whole}")
