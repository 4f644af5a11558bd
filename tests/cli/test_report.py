"""The report of a base with some of its parts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fastcomposer.cli import report
from fastcomposer.models.detector import HeadDetector
from fastcomposer.models.embedder import IdentityEmbedder


def test_the_report_measures_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    HeadDetector(channels=(8, 8, 8, 8), head_channels=8).save_pretrained("base/detector")
    IdentityEmbedder(16, 16, 1.1, (8, 8, 8)).save_pretrained("base/embedder")
    call = ["report", "what=mini_base", "model.base=base", "num_scenes=20", "card=base/README.md"]
    monkeypatch.setattr(sys, "argv", call)
    report.main()
    written = json.loads(Path("outputs/report/mini_base.json").read_text())
    assert written["missing"] == [
        "tokenizer",
        "vae",
        "text_encoder",
        "image_encoder",
        "clip",
        "unet",
        "scheduler",
    ]
    rows = {(row["part"], row["measure"]): row for row in written["rows"]}
    assert rows["detector", "recall at IoU 0.5, 1 subject"]["at_least"] == 0.97
    assert rows["embedder", "verification AUC, 30 % of both heads hidden"]["at_least"] == 0.95
    assert 0 <= rows["embedder", "verification AUC, other clothing and expression"]["value"] <= 1
    assert "missing" in capsys.readouterr().out
    card = Path("base/README.md").read_text()
    assert "This file is generated" in card
    assert json.loads(Path("base/training.json").read_text()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [("what=nothing", "what=nothing: unknown"), ("model.base=nowhere", "model.base=nowhere: no such folder")],
)
def test_what_is_not_there_is_said(
    override: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["report", override])
    with pytest.raises(SystemExit):
        report.main()
    assert message in capsys.readouterr().err
