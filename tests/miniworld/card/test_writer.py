"""The card of the embedded base: figures, lengths of training, and the committed card."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastcomposer.miniworld.card.measures import Row
from fastcomposer.miniworld.card.writer import (
    Training,
    base_card,
    describe_machine,
    read_lengths,
    write_lengths,
)

MINI = Path(__file__).parents[3] / "data" / "mini"
MINI_DIT = MINI.with_name("mini_dit")


def test_the_card_has_the_measurements() -> None:
    rows = (
        Row("detector", "recall at IoU 0.5, 1 subject", 0.9912, 0.97),
        Row("detector", "parameters", 192757.0),
        Row("detector", "size, bytes", 387763.0),
        Row("detector", "one scene, MFLOP", 22.09),
        Row("fastcomposer_id", "size, bytes", 7_222_104.0),
    )
    length = Training("detector", 531, 1.0, 42, "an abacus")
    card = base_card(rows, ["unet"], [length], 100, ["a_man_smiling_sheet.png"])
    for part in (
        "| detector | recall at IoU 0.5, 1 subject | 0.9912 | 0.97 | yes |",
        "| detector | 192,757 | 387,763 |",
        "| detector | one scene | 22.1 |",
        "| detector | 531 | 1 | 42 | an abacus |",
        "![a man smiling](samples/a_man_smiling_sheet.png)",
        "Missing parts: unet.",
        "On 100 scenes",
        "Apache-2.0",
        "\n## Intended use\n",
        "\n## Limits\n",
        "\n## Consent and misuse\n",
    ):
        assert part in card
    # All that the command does not measure is in the committed cards.
    transformer = base_card([Row("transformer", "size, bytes", 9e6)], [], [length], 100)
    assert (
        "links to" not in card and "links to those of [the embedded base](../mini/README.md)" in transformer
    )
    for base, written in ((MINI, card), (MINI_DIT, transformer)):
        committed = (base / "README.md").read_text()
        assert committed.startswith(written.partition("## Parts")[0])
        assert committed.endswith(card.rpartition("|\n")[2])


def test_lengths_outlive_the_runs(tmp_path: Path) -> None:
    runs, base = tmp_path / "runs", tmp_path / "base"
    base.mkdir()
    (base / "training.json").write_text(json.dumps([{"method": "vae", "steps": 7, "minutes": 2.0}]))
    folder = runs / "mini_base_detector"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(f"seed: 5\nmodel: {{base: {base}}}\n")
    torch.save({"length": {"steps": 9, "minutes": 1.5}}, folder / "checkpoints" / "last.ckpt")
    expected = [Training("vae", 7, 2.0), Training("detector", 9, 1.5, 5, describe_machine())]
    assert read_lengths(base, runs) == expected
    assert read_lengths(tmp_path / "another", runs) == []
    write_lengths(base, expected)
    assert read_lengths(base, tmp_path / "gone") == expected


def test_checkpoints_contain_their_total_length(tmp_path: Path) -> None:
    entry = {"method": "fastcomposer", "steps": 7, "minutes": 2.0, "seed": 5, "machine": "an abacus"}
    (tmp_path / "training.json").write_text(json.dumps([entry]))
    for folder in (tmp_path, tmp_path / "without_localization"):
        folder.mkdir(exist_ok=True)
        metadata = {"steps": "15589", "minutes": "168.61", "fusion": "{}"}
        save_file({"x": torch.zeros(1)}, folder / "fastcomposer.safetensors", metadata)
    assert read_lengths(tmp_path, tmp_path / "gone") == [
        Training("fastcomposer", 15589, 168.6, 5, "an abacus"),
        Training("without_localization", 15589, 168.6),
    ]


@pytest.mark.parametrize("base", [MINI, MINI_DIT])
def test_the_committed_card_has_the_lengths_of_the_committed_weights(base: Path) -> None:
    lengths = read_lengths(base, base / "no runs")
    assert [asdict(length) for length in lengths] == json.loads((base / "training.json").read_text())
    card = (base / "README.md").read_text()
    for length in lengths:
        assert f"| {length.method} | {length.steps:,} | " in card
