"""The commands as a user calls them, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from configurations import composed
from PIL import Image

from fastcomposer import __version__
from fastcomposer.cli import attention, generate, train
from fastcomposer.utils.provenance import read_metadata

Run = Callable[..., tuple[int, str, str]]


def test_prepare_train_resume_generate_evaluate(
    run: Run, settings: list[str], world: Path, small_base: Path, recwarn: pytest.WarningsRecorder
) -> None:
    status, _, err = run(train, *settings)
    assert status == 0, err
    folder = Path("outputs/mini")
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert (folder / "samples" / "step_000002.png").exists()

    status, _, err = run(train, *settings)
    assert status == 1
    assert "resume=auto" in err

    recwarn.clear()
    status, _, err = run(train, *settings, "trainer.max_steps=5", "resume=auto")
    assert status == 0, err
    assert not [one for one in recwarn if "not empty" in str(one.message)]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5

    portraits = sorted(str(path) for path in (world / "references").glob("*.png"))[:2]
    shown = [
        f"model.base={small_base}",
        "checkpoint=outputs/mini",
        "prompt=a man <|image|> and a woman <|image|> on the beach",
        f"references=[[{portraits[0]},{portraits[0]}],{portraits[1]}]",
        "sampler=dpm",
        "sampler.num_inference_steps=2",
        "num_images=2",
        "alpha=0.7",
        "output=images",
    ]
    status, out, err = run(generate, *shown)
    assert status == 0, err
    files = sorted(Path("images").glob("*.png"))
    assert [str(file) for file in files] == out.split()
    assert len(files) == 3  # two images and a sheet of them beside their references
    stored = json.loads(Image.open(files[1]).text["fastcomposer"])  # type: ignore[attr-defined]
    assert stored["seed"] == 43
    assert stored["alpha"] == 0.7
    assert stored["sampler"]["scheduler"]["name"] == "DPMSolverMultistepScheduler"
    assert stored["references"] == [[portraits[0]] * 2, portraits[1]]
    assert stored["version"] == __version__

    recalled = [f"settings={files[1]}", f"model.base={small_base}"]
    status, out, err = run(generate, *recalled, "output=again")
    assert status == 0, err
    assert "other reference images" not in err
    again = Path("again") / files[1].name
    assert out.split()[0] == str(again)
    difference = np.asarray(Image.open(again), dtype=int) - np.asarray(Image.open(files[1]), dtype=int)
    assert np.abs(difference).max() <= 2  # it was one of two in a batch, whose products round otherwise
    assert {**read_metadata(again), "output": "images"} == stored
    status, _, err = run(
        generate, *recalled, "output=other", f"references=[{portraits[0]},{portraits[1]}]", "sampler=mini"
    )
    assert status == 0, err
    assert f"{files[1]} was generated from other reference images" in err
    changed = read_metadata(Path("other") / files[1].name)
    assert changed["sampler"]["scheduler"] is None  # the command line's sampler, and the image's α
    assert (changed["alpha"], changed["sampler"]["num_inference_steps"]) == (0.7, 30)

    measured = [
        f"model.base={small_base}",
        "model.resolution=32",
        "model.reference_size=56",
        f"data.root={world}",
    ]
    status, _, err = run(
        attention, *measured, "data.module.batch_size=4", "checkpoints=[outputs/mini]", "num_batches=1"
    )
    assert status == 0, err
    share = json.loads(Path("outputs/attention/attention.json").read_text())["outputs/mini"]
    assert 0 < share["inside"] < 1
    assert share["subjects"] >= 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.base=nowhere", "nowhere"),
        ("model.resolution=36", "multiple"),
        ("data.root=nowhere", "nowhere"),
        ("resume=nowhere.ckpt", "resume=nowhere.ckpt"),
        ("method.model.loss_config.mask_loss_probability=2", "mask_loss_probability"),
        ("method.caption_dropout=-1", "method.caption_dropout"),
        ("localization.localization_blocks=[attic]", "attic"),
        ("localization.localization=l2", "localization.localization"),
        ("method.model.fusion.mode=max", "method.model.fusion.mode=max: takes one of mlp"),
        ("data.module.background=blur", "data.module.background=blur: takes one of noise, black, kept"),
        ("matmul_precision=fast", "matmul_precision=fast: takes one of highest"),
        ("data.module.batch_size=0", "batch_size"),
    ],
)
def test_train_names_what_is_wrong(run: Run, settings: list[str], override: str, message: str) -> None:
    status, _, err = run(train, *settings, override)
    assert status == 1
    assert message in err
    assert "Traceback" not in err


def test_weights_that_do_not_exist_are_refused_before_anything_else(
    run: Run, settings: list[str], tmp_path: Path
) -> None:
    checkpoint = Path("outputs/mini/checkpoints/last.ckpt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    for weights in ("nowhere", str(tmp_path)):
        more = ["data.root=gone", "resume=restart"]
        status, _, err = run(train, *settings, f"method.weights={weights}", *more)
        assert status == 1
        assert f"method.weights={weights}" in err
        assert checkpoint.exists()
    assert train.weights_to_start_from(composed("train", "experiment=person", "method=dreambooth")) is None
