"""Sampling of benchmarks: groups of cases as a prediction of Lightning, under any of its strategies."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from fastcomposer.evaluation.benchmark import Benchmark, Subject
from fastcomposer.evaluation.methods import ImageRequest, Method
from fastcomposer.evaluation.store import ImageMetadata, RunStore, run_folder, write_all
from fastcomposer.utils.memory import peak_memory_bytes
from fastcomposer.utils.progress import tracked
from fastcomposer.utils.settings import differences, digest, file_digest
from fastcomposer.utils.stages import ResumableStage


@dataclass(frozen=True)
class PlannedRun:
    """One method with one of its settings on the cases of one benchmark."""

    store: RunStore
    benchmark: Benchmark
    setting: int


def plan_runs(
    method: Method, benchmarks: Sequence[Benchmark], output: str | Path, precision: str = "32-true"
) -> list[PlannedRun]:
    """List a method's runs: one for each of its settings and each benchmark within its limit of subjects.

    Its weights are read; ``precision`` is that of the networks, as Lightning names it.
    """
    runs = []
    for benchmark in _within_limit(method, benchmarks):
        images = {
            subject.id: digest([file_digest(file) for file in method.images(subject)])
            for subject in benchmark.subjects
        }
        for setting, chosen in enumerate(method.settings):
            config = {"method": method.name, "precision": precision, **method.config(setting)}
            store = RunStore(Path(output), benchmark.name, method.name, chosen, config, images)
            runs.append(PlannedRun(store, benchmark, setting))
    return runs


def planned_folders(
    methods: Sequence[Method], benchmarks: Sequence[Benchmark], output: str | Path
) -> set[Path]:
    """Folders of the runs that :func:`plan_runs` lists, without reading weights."""
    return {
        run_folder(Path(output), benchmark.name, method.name, chosen)
        for method in methods
        for benchmark in _within_limit(method, benchmarks)
        for chosen in method.settings
    }


def _within_limit(method: Method, benchmarks: Sequence[Benchmark]) -> list[Benchmark]:
    """Benchmarks with no more subjects in an image than the method takes."""
    most = method.max_subjects
    return [one for one in benchmarks if most is None or len(one.cases[0].subjects) <= most]


def open_runs(runs: Sequence[PlannedRun], concepts: str | Path, restart: bool = False) -> None:
    """Make the folders of a method's runs, or continue what is there; on the first process only.

    With ``restart`` what is there is removed, of the runs and of the learned ``concepts``. Images sampled
    under other settings, also at other alphas, are a ValueError with what differs.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    if restart:
        shutil.rmtree(concepts, ignore_errors=True)
    folders = [run.store.folder for run in runs]
    for run in runs:
        run.store.check_other_alphas(folders)
    for run in runs:
        run.store.open(restart)


class GenerationStage(ResumableStage):
    """Samples what is missing of a method's opened runs.

    ``concepts`` is the folder for what fine-tuning methods learn; ``save_attention`` keeps attention maps of
    the first case of each pair of subjects.
    """

    def __init__(
        self, method: Method, runs: Sequence[PlannedRun], concepts: str | Path, save_attention: bool = False
    ) -> None:
        super().__init__()
        self.method, self.runs, self.concepts = method, list(runs), Path(concepts)
        self.title = f"images of {method.name}"
        self.networks = nn.ModuleDict(method.networks)  # Lightning moves and casts them
        self._runs = {(run.benchmark.name, run.setting): run for run in runs}
        self._attended: set[str] = set()
        if save_attention and method.sees_subjects:
            for run in runs:
                firsts = {case.subjects: case.id for case in reversed(run.benchmark.cases)}
                self._attended |= {case for subjects, case in firsts.items() if len(subjects) > 1}

    def setup(self, stage: str) -> None:
        """Learn the subjects, each process some of them.

        Raises:
            ValueError: If this process would sample other images than the first one.
        """
        own = [dict(run.store.config) for run in self.runs]
        changed = differences(self.trainer.strategy.broadcast(own), own, "runs")
        if changed:
            raise ValueError(f"process {self.global_rank} has other settings: {'; '.join(changed)}")
        known = {subject.id: subject for run in self.runs for subject in run.benchmark.subjects}
        subjects = list(known.values())
        part: Iterable[Subject] = subjects[self.global_rank :: self.trainer.world_size]
        if self.trainer.is_global_zero:
            part = tracked(list(part), f"people for {self.method.name}", transient=True)
        for subject in part:
            self.method.prepare([subject], self.concepts)
        self.trainer.strategy.barrier("prepared")
        self.method.prepare(subjects, self.concepts)

    def missing_tasks(self) -> list[tuple[ImageRequest, ...]]:
        """Groups of requests whose files are not there."""
        requests = [
            ImageRequest(case, run.setting)
            for run in self.runs
            for case in run.benchmark.cases
            if not self._has(run, case)
        ]
        return self.method.groups(requests)

    def images_of(self, task: tuple[ImageRequest, ...]) -> int:
        """Number of its requests."""
        return len(task)

    def on_predict_start(self) -> None:
        """Reset the peak of memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def predict_step(self, batch: int, batch_idx: int) -> int:
        """Sample a group and write it; returns how many images."""
        requests = self.tasks[batch]
        sampled = self.method.sample(
            requests, attention=any(request.case.id in self._attended for request in requests)
        )
        peak = peak_memory_bytes(self.device)
        files = {}
        for request, image, calls, seconds, maps in zip(
            requests, sampled.images, sampled.unet_calls, sampled.seconds, sampled.attention, strict=True
        ):
            store = self._runs[request.case.benchmark, request.setting].store
            if request.case.id in self._attended:
                store.write_attention(request.case, image, maps)
            metadata = ImageMetadata(seconds, calls, peak)
            # Where only the maps were missing the image stays.
            if not store.has_image(request.case):
                files[store.image_file(request.case)] = store.encode_image(request.case, image, metadata)
        write_all(files)
        return len(requests)

    def finish(self) -> None:
        """Keep the costs beside the images."""
        for run in self.runs:
            run.store.write_costs(self.method.costs())

    def _has(self, run: PlannedRun, case: Any) -> bool:
        attended = case.id not in self._attended or run.store.attention_file(case).exists()
        return run.store.has_image(case) and attended
