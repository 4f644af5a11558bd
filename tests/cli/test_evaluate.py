"""Evaluation as a user calls it: methods on benchmarks, interrupted, resumed, on several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from toy_evaluation import Toy, make_toy, run_evaluate

from fastcomposer.cli import evaluate
from fastcomposer.evaluation.results import read_results

Run = Callable[..., tuple[int, str, str]]
MEASURED = {"seconds", "peak_memory_bytes"}
"""Columns of the scores that are never the same twice."""
ROUNDED = ("identity", "identity_published", "prompt_consistency", "copy_paste", "confusion")
RATIO = "copy_paste_ratio"  # of angles, which may be small
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["toy_evaluation", "fastcomposer.evaluation.scoring", "hydra.main"])
_LOOK = 0.02  # seconds between looks at the files: looking takes time from what is looked at


@pytest.fixture(scope="module")
def toy(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(small_base, tmp_path_factory.mktemp("toy"))


@pytest.fixture
def run(run: Callable[..., tuple[int, str, str]], toy: Toy) -> Run:
    """Call the command in this process, in an empty folder; returns status, output and errors."""
    return lambda *arguments: run(evaluate, *toy.arguments(*arguments))


def images(folder: Path) -> dict[str, int]:
    """Time of the last change of every image, by name."""
    return {
        str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("images/**/*.png")
    }


def scores(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What must be the same each time, by run."""
    found = {}
    for file in sorted(folder.glob("*/*/scores.parquet")):
        lines = pq.read_table(file).to_pylist()
        kept = [{key: line[key] for key in line if key not in MEASURED} for line in lines]
        found[str(file.parent.relative_to(folder))] = kept
    return found


def same_scores(folder: Path, other: Path) -> None:
    """All six runs have the same scores, but for rounding."""
    one, two = scores(folder), scores(other)
    assert one.keys() == two.keys() and len(one) == 6
    for name in one:
        for line, its in zip(one[name], two[name], strict=True):
            for key in ROUNDED:
                assert line.pop(key) == pytest.approx(its.pop(key), abs=1e-3)
            assert line.pop(RATIO) == pytest.approx(its.pop(RATIO), abs=0.05)
            assert line == its


def test_two_methods_on_two_benchmarks(run: Run, world: Path) -> None:
    status, out, err = run("alphas=[0.5]", "save_attention=true")
    assert status == 0, err
    folder = Path("outputs/evaluate")
    assert f"{folder}/results.json" in out
    rows = read_results(folder / "results.json").rows
    assert [(row.benchmark, row.method, dict(row.settings), row.images) for row in rows] == [
        ("single_subject", "fastcomposer", {"alpha": 0.5}, 12),
        ("single_subject", "text_only", {}, 12),
        ("multi_subject", "fastcomposer", {"alpha": 0.5}, 12),
        ("multi_subject", "text_only", {}, 12),
    ]
    # Two men share the first two of four steps; a text is sampled once for all people of one word.
    assert [row.unet_calls for row in rows] == [40, 32, 48, 48]
    assert [row.reference_images for row in rows] == [1, 0, 1, 0]
    assert all(row.peak_memory_bytes > 1e7 and row.seconds_per_image > 0 for row in rows)
    assert len(list(folder.rglob("attention/**/maps.npz"))) == 3
    before = images(folder)
    assert len(before) == 48

    # Another method joins; what is there stays.
    real = ["fid=true", f"data.root={world}"]
    status, _, err = run("methods=[fastcomposer]", "alphas=[1.0]", "labels={localization: none}", *real)
    assert status == 0, err
    rows = read_results(folder / "results.json").rows
    assert [dict(row.settings) for row in rows] == [
        {"alpha": 0.5},
        {"alpha": 1.0, "localization": "none"},
        {},
    ] * 2
    assert [row.distances and row.distances.real_images for row in rows] == [None, 8, None] * 2
    assert before.items() <= images(folder).items()
    assert (folder / "single_subject" / "fastcomposer-alpha_1.0-localization_none" / "run.json").exists()


def test_changed_settings_are_refused(run: Run) -> None:
    part = ["methods=[text_only]", "benchmark.multi=null"]
    assert run(*part)[0] == 0
    before = images(Path("outputs"))
    status, _, err = run(*part, "sampler.guidance_scale=4.0")
    assert status == 1
    assert "text_only was made under other settings (sampler.guidance_scale: 3.0, not 4.0)" in err
    assert "output=<other>" in err and "resume=restart" in err
    assert "Traceback" not in err
    assert images(Path("outputs")) == before
    status, _, err = run(*part, "sampler.guidance_scale=4.0", "resume=restart")
    assert status == 0, err
    assert not set(before.items()) & set(images(Path("outputs")).items())


def test_other_metrics_are_refused_beside_scores_that_stay(run: Run) -> None:
    part = ["benchmark.multi=null", "alphas=[0.5]"]
    assert run(*part, "methods=[text_only]")[0] == 0
    before, folder = images(Path("outputs")), Path("outputs/evaluate")
    results = (folder / "results.json").read_bytes()
    status, _, err = run(*part, "methods=[fastcomposer]", "metrics.faces.threshold=0.2")
    assert status == 1 and "Traceback" not in err
    assert "text_only was scored under other settings (metrics.faces.threshold: 0.4, not 0.2)" in err
    assert images(Path("outputs")) == before  # refused before anything is generated
    assert (folder / "results.json").read_bytes() == results
    # All at once are scored anew, from the images that are there.
    status, _, err = run(*part, "methods=[text_only,fastcomposer]", "metrics.faces.threshold=0.2")
    assert status == 0, err
    assert before.items() <= images(Path("outputs")).items()
    rows = read_results(folder / "results.json").rows
    assert len(rows) == 2 and len({row.scored_by for row in rows}) == 1 and rows[0].scored_by


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint=null"], "checkpoint: name trained weights"),
        (["checkpoint=gone.ckpt"], "checkpoint gone.ckpt: no such file"),
        (["alphas=[2]"], "alphas=[2]: takes a list of numbers from 0 to 1"),
        (["model.base=gone"], "gone"),
        (["benchmark.images=gone"], "benchmark.images=gone: no such folder"),
        (["scoring.batch_size=0", "methods=[text_only]", "benchmark.multi=null"], "scoring.batch_size=0"),
    ],
)
def test_wrong_settings_are_named(run: Run, arguments: list[str], message: str) -> None:
    status, _, err = run(*arguments)
    assert status == 1
    assert message in err
    assert "Traceback" not in err


def test_fine_tuning_baselines(run: Run) -> None:
    """People are learned once, and benchmarks that a method cannot sample are left out."""
    call = [
        "methods=[mini_textual_inversion,mini_dreambooth]",
        "methods.textual_inversion.personalize.method.steps=1",
        "methods.dreambooth.personalize.method.steps=1",
        "methods.dreambooth.personalize.method.rare_token=smiling",
        "methods.dreambooth.personalize.method.class_images.count=1",
        "methods.dreambooth.personalize.method.class_images.num_inference_steps=1",
    ]
    status, out, err = run(*call)
    assert status == 0, err
    assert "dreambooth cannot sample so many subjects together: without multi_subject" in out
    folder = Path("outputs/evaluate")
    concepts = {file: file.stat().st_mtime_ns for file in sorted(folder.glob("concepts/*/*/concept.json"))}
    assert len(concepts) == 6
    rows = read_results(folder / "results.json").rows
    assert [(row.benchmark, row.method, row.reference_images, row.unet_calls) for row in rows] == [
        ("single_subject", "textual_inversion", 5, 48),
        ("single_subject", "dreambooth", 5, 48),
        ("multi_subject", "textual_inversion", 5, 48),
    ]
    assert all(row.personalization_seconds_per_subject > 0 for row in rows)
    assert rows[0].stored_bytes_per_subject < rows[1].stored_bytes_per_subject
    before = images(folder)
    status, _, err = run(*call)
    assert status == 0, err
    assert images(folder) == before
    assert {file: file.stat().st_mtime_ns for file in concepts} == concepts
    status, _, err = run(*call, "methods.textual_inversion.personalize.method.steps=2")
    assert status == 1
    assert "recipe.method.steps: 1, not 2" in err


class Evaluation:
    """The command in processes of its own, watched by the files that it leaves in ``output``."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        self.output = output
        self._arguments = [*arguments, f"output={output.name}"]
        self._ever: set[str] = set()

    def start(self) -> multiprocessing.process.BaseProcess:
        """Call the command."""
        process = _CONTEXT.Process(target=run_evaluate, args=(str(self.output.parent), self._arguments))
        process.start()
        return process

    def written(self) -> int:
        """How many files there have been so far; parts of scores come and go."""
        for folder, _, files in os.walk(self.output):
            self._ever |= {f"{folder}/{name}" for name in files if not name.endswith(".tmp")}
        return len(self._ever)

    def arrivals(self) -> list[float]:
        """Run undisturbed; returns after how many seconds each file was there."""
        warm = _CONTEXT.Process(target=time.sleep, args=(0,))  # the first one waits for imports
        warm.start()
        warm.join()
        begun, process, seconds = time.monotonic(), self.start(), []
        while process.is_alive():
            seconds += [time.monotonic() - begun] * (self.written() - len(seconds))
            time.sleep(_LOOK)
        assert process.exitcode == 0
        return seconds

    def kill(self, count: int, later: float) -> bool:
        """Run until so many files have been there and some seconds more; whether the kill came in time."""
        process, deadline = self.start(), time.monotonic() + 300
        while process.is_alive() and self.written() < count:
            assert time.monotonic() < deadline, f"no {count} files in five minutes"
            time.sleep(_LOOK)
        process.join(later)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0


def moments(arrivals: list[float], kills: int, rng: random.Random) -> list[tuple[int, float]]:
    """Choose when to kill: how many files are awaited, and how many seconds after the last of them.

    One moment in four lies in the start of a process, the others are uniform over the time of its work.
    """
    early = kills // 4
    chosen = sorted(rng.uniform(arrivals[0], 0.95 * arrivals[-1]) for _ in range(kills - early))
    counts = [bisect_right(arrivals, moment) for moment in chosen]
    found = [(count, moment - arrivals[count - 1]) for count, moment in zip(counts, chosen, strict=True)]
    for _ in range(early):
        found.insert(rng.randrange(kills), (0, rng.uniform(0, arrivals[0])))
    return found


def test_killed_ten_times_at_random_moments_it_resumes(toy: Toy, tmp_path: Path) -> None:
    """No image is sampled twice, and the scores come out as if nothing had happened."""
    kills = 10
    seed = random.SystemRandom().randrange(10**6)  # printed, so that a failure can be repeated
    arguments = toy.arguments("group_size=2", "scoring.batch_size=3", "threads=1")
    full, parts = (Evaluation(arguments, tmp_path / name) for name in ("full", "parts"))
    arrivals = full.arrivals()
    planned = moments(arrivals, kills, random.Random(seed))
    print(f"seed {seed}: killed at {planned} of {len(arrivals)} files, {arrivals[-1]:.1f} s")
    seen: dict[str, int] = {}
    struck = 0
    for count, later in planned:
        struck += parts.kill(count, later)
        now = images(parts.output)
        assert seen.items() <= now.items(), "an image was sampled again"
        seen = now
    # A process that had finished before it was killed does not count; the machine may have stood still.
    assert struck >= kills - 1
    parts.arrivals()
    assert seen.items() <= images(parts.output).items(), "an image was sampled again"
    assert len(images(parts.output)) == 72
    # The rest of a group that was cut in two is sampled in a smaller batch: the same but for rounding.
    same_scores(full.output, parts.output)
    assert not list(parts.output.rglob("*.tmp"))


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(run: Run, toy: Toy, tmp_path: Path) -> None:
    assert run("output=one")[0] == 0
    for output, options in (("two", []), ("three", ["alphas=[1.0]", "methods=[fastcomposer]"])):
        # The second time there is less to do than there are processes.
        command = [sys.executable, "-m", "fastcomposer.cli.evaluate"]
        call = toy.arguments("trainer.strategy=ddp", "trainer.devices=2", f"output={output}", *options)
        if output == "three":
            call += ["benchmark.multi=null", "group_size=100"]
        result = subprocess.run([*command, *call], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    same_scores(tmp_path / "one", tmp_path / "two")
    rows = [json.loads((tmp_path / name / "results.json").read_text())["rows"] for name in ("one", "two")]
    assert [row["images"] for row in rows[0]] == [row["images"] for row in rows[1]] == [12] * 6
