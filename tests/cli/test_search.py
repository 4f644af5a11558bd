"""A search of a baseline's settings, from the call to the best setting."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from toy_evaluation import SIZE, judged_base, write_definitions

from fastcomposer.cli import evaluate, report


def test_learning_rate_and_steps_are_searched(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    call = [
        "evaluate",
        "-m",
        "sweep=search_textual_inversion",
        f"model.base={judged_base(small_base, tmp_path / 'base')}",
        f"model.resolution={SIZE}",
        f"benchmark.folder={write_definitions(tmp_path / 'definitions')}",
        "benchmark.people.numbers=[0,5]",
        "benchmark.people.scenes.num_identities=8",
        "benchmark.part.prompts_per_category=1",
        f"+sampler.height={SIZE}",
        f"+sampler.width={SIZE}",
        "sampler.num_inference_steps=2",
        "methods.textual_inversion.personalize.method.steps=1,2",
        "methods.textual_inversion.personalize.method.optimizer.lr=0.01",
    ]
    monkeypatch.setattr(sys, "argv", call)
    evaluate.main()
    jobs = sorted(file.parent.name for file in Path("multirun/search").glob("*/*/results.json"))
    assert jobs == ["lr_0.01-steps_1", "lr_0.01-steps_2"]
    before = {file: file.stat().st_mtime_ns for file in Path("multirun").rglob("images/**/*.png")}
    assert len(before) == 2 * 2 * 2 * 2  # jobs, methods, people, prompts
    evaluate.main()  # called again, it finds everything
    assert {file: file.stat().st_mtime_ns for file in before} == before
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["report", "sweep=multirun/search/textual_inversion"])
    report.main()
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("Textual Inversion, best of 2: steps=")
    assert out[-1] == "multirun/search/textual_inversion/report.html"
    assert "(best)" in Path("multirun/search/textual_inversion/tables.md").read_text()
