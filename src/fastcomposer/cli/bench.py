"""Measure speed: ``fastcomposer bench``."""

from __future__ import annotations

import gc
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fastcomposer.cli.common import command, quieten_lightning, show_table, write_figures, write_json

_PROJECTIONS = ("personalization", "plan")
SUITES = ("scenes", "loader", "reading", "step", "sampler", "evaluation", "startup", *_PROJECTIONS)


@command("bench")
def main(config: DictConfig) -> None:
    """Check the settings, and run the chosen suites."""
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
    if set(config.suites) - set(_PROJECTIONS):
        measure_speed(config)


def measure_speed(config: DictConfig) -> None:
    """Time the chosen suites, and write the figures and their table."""
    from hydra.utils import instantiate

    from fastcomposer.bench import suites, timing, training_step
    from fastcomposer.utils.markdown import write_section

    quieten_lightning()
    known = training_step.VARIANTS
    variants = list(known) if config.variants is None else list(config.variants)
    if not set(variants) <= set(known):
        raise ValueError(f"variants: there are {', '.join(map(repr, known))}")
    metadata = timing.environment()
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
    text = "\n".join([timing.table(watch.rows, metadata), "", *lines])
    print(text)
    if config.document is not None:
        write_section(config.document, "bench", text)
    rows = [asdict(row) for row in watch.rows]
    write_figures(Path(config.output) / "bench.json", {"environment": metadata, "rows": rows})


def project_personalization(config: DictConfig) -> None:
    """Measure single steps of FastComposer and the fine-tuning methods, and project them."""
    import torch
    from hydra.utils import instantiate
    from rich.table import Table

    from fastcomposer.bench import projection

    quieten_lightning()
    pipeline = instantiate(config.method.model)().to_pipeline(safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    found = [projection.project_sampling(pipeline, config.sampler, config.model.resolution, config.repeats)]
    del pipeline
    file, content = Path(config.output) / "projection.json", {}
    for name, method in config.fine_tuning.items():  # one at a time in memory
        gc.collect()  # a trainer and its module hold each other
        print(f"Measuring {name} ...", flush=True)
        module = instantiate(method, _convert_="object")
        found.append(projection.project_training(module, found[0], config.repeats))
        del module
        content = {"projection": True, "model": config.model.base, "rows": [one.as_dict() for one in found]}
        write_json(file, content)
    title = "Projection: measured times of single steps, times numbers of steps"
    table = Table(*projection.COST_COLUMNS, title=title)
    for row in projection.cost_rows(found):
        table.add_row(*row)
    show_table(table)
    write_figures(file, content)


def project_growth(config: DictConfig) -> None:
    """Measure one device and some records, and project a training on many devices, of many records."""
    import torch
    from hydra.utils import instantiate
    from rich.table import Table

    from fastcomposer.bench import projection
    from fastcomposer.bench.training_step import noise_batch

    machines = instantiate(config.plan.machines)
    method, device = config.method, "cuda" if torch.cuda.is_available() else "cpu"
    model = instantiate(method.model)().to(device).train()
    lora = instantiate(method.lora, _convert_="object")
    backbone = lora if method.train_backbone == "lora" else method.train_backbone
    model.set_trainable(backbone=backbone, fusion=method.train_fusion, vision_layers=method.vision_layers)
    if model.text_encoder_3 is not None:
        raise ValueError("suites=[plan] measures without T5: add model.t5=false")
    if method.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    sizes = config.model.resolution, config.model.reference_size
    batch = noise_batch(config.batch_size, model.fusion.config.max_subjects or 1, *sizes).to(device)
    averaged = method.ema_decay is not None
    measured = projection.measure_growth(model, batch, config.data.root, config.repeats, averaged)
    chosen = config.plan.devices, config.plan.records, config.plan.strategies
    plan = projection.project_growth(measured, machines, *chosen)
    for title, texts in projection.growth_tables(plan):
        table = Table(*texts, title=title)
        for row in texts.to_numpy():
            table.add_row(*row)
        show_table(table)
    content = {"projection": True, "model": config.model.base, "measured": asdict(measured)}
    content |= {"machines": asdict(machines), "rows": plan.to_dict("records")}
    write_figures(Path(config.output) / "plan.json", content)


if __name__ == "__main__":
    main()
