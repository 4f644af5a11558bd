"""Measure speed: ``fastcomposer bench``."""

from __future__ import annotations

import gc
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fastcomposer.cli.closing import conclude
from fastcomposer.cli.common import command, show_table
from fastcomposer.utils.files import write_atomically

SUITES = (
    "scenes",
    "loader",
    "reading",
    "step",
    "sampler",
    "evaluation",
    "startup",
    "personalization",
    "plan",
)


@command("bench")
def main(config: DictConfig) -> None:
    """Time the chosen suites, and write their figures."""
    unknown = [name for name in config.suites if name not in SUITES]
    if unknown:
        raise ValueError(f"suites: unknown {', '.join(unknown)}; there are {', '.join(SUITES)}")
    if "startup" in config.suites and not Path(config.data.root).is_dir():
        raise FileNotFoundError(
            f"data.root={config.data.root}: no such folder, which suite startup reads; make it with "
            "fastcomposer prepare, or name other suites"
        )
    if config.document is not None:
        from fastcomposer.utils.markdown import check_section

        check_section("document", config.document, "bench")
    if "personalization" in config.suites:
        project_personalization(config)
    if "plan" in config.suites:
        project_growth(config)
    if set(config.suites) - {"personalization", "plan"}:
        measure_speed(config)


def measure_speed(config: DictConfig) -> None:
    """Time the parts, and write the figures and their table."""
    from hydra.utils import instantiate

    from fastcomposer.bench import suites, timing, training_step
    from fastcomposer.utils.markdown import write_section

    known = training_step.VARIANTS
    variants = list(known) if config.variants is None else list(config.variants)
    if not set(variants) <= set(known):
        raise ValueError(f"variants: there are {', '.join(map(repr, known))}")
    facts = timing.environment()
    watch = timing.Stopwatch(config.min_seconds, config.min_rounds)
    if "scenes" in config.suites:
        settings = config.data.prepare
        suites.time_scenes(watch, instantiate(settings.scenes), settings.num_workers)
    if "loader" in config.suites:
        tokenizer = instantiate(config.data.module.tokenizer)
        suites.time_loader(watch, tokenizer, **config.loader)
    if "step" in config.suites:
        training_step.time_step(watch, instantiate(config.step, _convert_="all"), variants)
    if "reading" in config.suites:
        arguments = instantiate(config.data.module, _partial_=True).keywords
        parts = instantiate(config.method.model)(), instantiate(config.data.prepare.scenes)
        suites.time_reading(watch, arguments, *parts, **config.reading)
    if {"sampler", "evaluation"} & set(config.suites):
        model = instantiate(config.method.model)()
        options: Any = OmegaConf.to_container(config.sampler)
        if "sampler" in config.suites:
            suites.time_sampler(watch, model, options, config.sampler_batches)
        if "evaluation" in config.suites:
            suites.time_evaluation(watch, model, options)
    if "startup" in config.suites:
        calls: Any = OmegaConf.to_container(config.startup, resolve=True)
        suites.time_startup(watch, calls)
    lines = [f"- {line}" for line in (*suites.limits(watch.rows), *suites.shares(watch.rows))]
    text = "\n".join([timing.table(watch.rows, facts), "", *lines])
    print(text)
    content = {"environment": facts, "rows": [row.as_dict() for row in watch.rows]}
    file = Path(config.output) / "bench.json"
    _write_json(file, content)
    if config.document is not None:
        write_section(config.document, "bench", text)
    print(file)
    conclude({"figures": file})


def _write_json(file: Path, content: Any) -> None:
    write_atomically(file, lambda out: out.write((json.dumps(content, indent=2) + "\n").encode()))


def project_personalization(config: DictConfig) -> None:
    """Measure single steps of FastComposer and the fine-tuning methods, and project them."""
    import torch
    from hydra.utils import instantiate
    from rich.table import Table

    from fastcomposer.bench.personalization_cost import project_sampling, project_training
    from fastcomposer.evaluation.load_results import method_name

    pipeline = instantiate(config.method.model)().to_pipeline(safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    found = [project_sampling(pipeline, config.sampler, config.model.resolution, config.repeats)]
    ours = found[0]
    del pipeline
    file = Path(config.output) / "projection.json"
    for name, method in config.fine_tuning.items():  # one at a time in memory
        gc.collect()  # a trainer and its module hold each other
        print(f"Measuring {name} ...", flush=True)
        module = instantiate(method, _convert_="object")
        found.append(project_training(module, ours, config.repeats))
        del module
        content = {"projection": True, "model": config.model.base, "rows": [one.as_dict() for one in found]}
        _write_json(file, content)
    columns = ("method", "s / step", "steps", "s to personalise", "s / image", "s in all", "× FastComposer")
    table = Table(*columns, title="Projection: measured times of single steps, times numbers of steps")
    for one in found:
        figures = (
            one.personalization_seconds,
            one.seconds_per_image,
            one.seconds,
            one.seconds / ours.seconds,
        )
        step = f"{one.seconds_per_training_step:.3g}" if one.training_steps else ""
        shown = [f"{figure:,.3g}" if figure < 1000 else f"{figure:,.0f}" for figure in figures]
        name = method_name(one.method) + (" (gradient checkpointing)" if one.gradient_checkpointing else "")
        table.add_row(name, step, f"{one.training_steps:,}", *shown)
    show_table(table)
    print(file)
    conclude({"projection": file})


def project_growth(config: DictConfig) -> None:
    """Measure one device and some records, and project a training on many devices, of many records."""
    import torch
    from hydra.utils import instantiate
    from rich.table import Table

    from fastcomposer.bench import scaling as growth

    machines = instantiate(config.plan.machines)
    shard_bytes, index_bytes = growth.weigh_records(config.data.root)
    method, device = config.method, "cuda" if torch.cuda.is_available() else "cpu"
    model = instantiate(method.model)().to(device).train()
    model.set_trainable(
        unet=method.train_unet, fusion=method.train_fusion, vision_layers=method.vision_layers
    )
    batch = growth.noise_batch(model, config.model.resolution, config.model.reference_size, config.batch_size)
    batch = batch.to(device)
    seconds, activations = growth.measure_step(model, batch, config.repeats)
    trained = sum(parameter.numel() for parameter in model.trainable_parameters())
    measured = growth.Measured(
        seconds,
        config.batch_size,
        trained,
        sum(parameter.numel() for parameter in model.parameters()) - trained,
        method.ema_decay is not None,
        activations,
        growth.weigh_cache(model, batch),
        shard_bytes,
        index_bytes,
    )
    plans = [
        growth.project(measured, machines, devices, records, strategy)
        for strategy in config.plan.strategies
        for devices in config.plan.devices
        for records in config.plan.records
    ]
    first = config.plan.records[0]
    by_devices = Table("strategy", "devices", "GB of a device", "GB sent in a step", "s / step", "h / epoch")
    for plan in (plan for plan in plans if plan.records == first):
        figures = (
            plan.memory_bytes / 1e9,
            plan.network_bytes / 1e9,
            plan.seconds_per_step,
            plan.hours_per_epoch,
        )
        by_devices.add_row(plan.strategy, str(plan.devices), *(f"{figure:,.3g}" for figure in figures))
    by_records = Table("records", "TB of shards", "TB of a cache", "GB of index in every process")
    for plan in plans[: len(config.plan.records)]:
        sizes = plan.shard_bytes / 1e12, plan.cache_bytes / 1e12, plan.index_bytes / 1e9
        by_records.add_row(f"{plan.records:,}", *(f"{size:,.3g}" for size in sizes))
    for title, table in ((f"Projection: {first:,} records", by_devices), ("Projection: disk", by_records)):
        table.title = title
        show_table(table)
    file = Path(config.output) / "plan.json"
    content = {"projection": True, "model": config.model.base, "measured": asdict(measured)}
    content |= {"machines": asdict(machines), "rows": [plan.as_dict() for plan in plans]}
    _write_json(file, content)
    print(file)
    conclude({"projection": file})


if __name__ == "__main__":
    main()
