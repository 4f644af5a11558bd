"""Where identity is lost, as a user asks for it: two checkpoints on the small world."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_architectures import add_t5, narrow
from toy_evaluation import judged_base, write_checkpoint

from fastcomposer import FastComposer
from fastcomposer.cli import diagnose
from fastcomposer.models.fusion import FusionConfig
from fastcomposer.models.weights_io import save_trained_weights

Run = Callable[..., tuple[int, str, str]]


def test_a_transformer_is_diagnosed(run: Run, world: Path, tmp_path: Path) -> None:
    folder = add_t5(narrow("sd3", tmp_path / "sd3"), length=32)
    model = FastComposer.from_pretrained("no/base", architecture=folder, weights="random", max_subjects=3)
    model.to_pipeline().save_pretrained(tmp_path / "saved")
    base = judged_base(tmp_path / "saved", Path("base"))
    call = [f"model.base={base}", "model.reference_size=28", f"data.root={world}", "levels=[300,900.5]"]
    call += [
        "data.module.batch_size=4",
        "num_batches=2",
        f"checkpoint={write_checkpoint(base, Path('w.safetensors'))}",
    ]
    status, out, err = run(diagnose, *call)
    assert status == 0, err
    assert "x̂₀ at t = 900.5" in out
    (found,) = json.loads(Path("outputs/diagnose/diagnosis.json").read_text()).values()
    assert [point["timestep"] for point in found["curve"]] == [-1, 300, 900.5]


def test_two_checkpoints_are_compared_on_the_same_faces(run: Run, small_base: Path, world: Path) -> None:
    base = judged_base(small_base, Path("base"))
    plain = write_checkpoint(base, Path("plain.safetensors"))
    torch.manual_seed(0)
    model = FastComposer.from_pretrained(base, fusion=FusionConfig(num_tokens=3))
    several = save_trained_weights(model, "several.safetensors")
    call = [f"model.base={base}", "model.reference_size=56", f"data.root={world}", "levels=[300,900]"]
    call += ["data.module.batch_size=4", "num_batches=2"]
    status, out, err = run(diagnose, *call, f"checkpoints=[{plain},{several}]")
    assert status == 0, err
    assert "read out of patch states" in out and "x̂₀ at t = 900" in out
    found = json.loads(Path("outputs/diagnose/diagnosis.json").read_text())
    assert list(found) == [str(plain), str(several)]
    one, other = found.values()
    assert set(other["read_out"]) - set(one["read_out"]) == {"tokens"}
    levels = [(point["timestep"], point["faces"]) for point in one["curve"]]
    assert [level for level, _ in levels] == [-1, 300, 900]
    assert levels == [(point["timestep"], point["faces"]) for point in other["curve"]]
    assert levels[0][1] >= 8  # eight scenes of one person or more
    assert one["curve"][0]["subjects"] == one["curve"][0]["text"]  # the autoencoder knows no prompt
    for name in ("curve.svg", "read_out.svg"):
        assert (Path("outputs/diagnose") / name).read_text().count(str(several)) > 0

    document = Path("page.md")
    document.write_text("a\n<!-- diagnosis: written by make identity -->\nold\n<!-- diagnosis: end -->\nb\n")
    call += ["levels=[900]"]
    named = [f"checkpoints=[{plain},{several}]", "names=[one,several tokens]", f"document={document}"]
    status, _, err = run(diagnose, *call, *named)
    assert status == 0, err
    text = document.read_text()
    assert "| identity | one | several tokens |" in text and "old" not in text and text.endswith("b\n")
    for name in ("diagnosis_curve.svg", "diagnosis_read_out.svg"):
        assert f"]({name})" in text and "several tokens" in Path(name).read_text()

    status, _, err = run(diagnose, *call, f"checkpoint={plain}", "names=[one,several]")
    assert status != 0 and "names" in err
    status, _, err = run(diagnose, *call)
    assert status != 0 and "checkpoints" in err
