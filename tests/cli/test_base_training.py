"""The commands that train the embedded base, each for two steps, give a base that loads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from fastcomposer.cli import train
from fastcomposer.composer import FastComposer

MINI_DIT = Path(__file__).parents[2] / "data" / "mini_dit"


def test_the_parts_make_a_base(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = [
        "experiment=mini_base",
        "model.base=base",
        f"data.root={world}",
        "data.module.batch_size=8",
        "data.module.num_validation=16",
        "trainer.max_time=null",
        "trainer.max_steps=2",
        "trainer.val_check_interval=1",
        "trainer.limit_val_batches=1",
    ]
    for part in (["method=vae"], ["method=clip", "method.num_portraits=4"], ["method=text_to_image"]):
        monkeypatch.setattr(sys, "argv", ["train", *common, *part])
        train.main()
    # A resumed part continues from its own folder.
    monkeypatch.setattr(sys, "argv", ["train", *common, "method=vae", "resume=auto", "trainer.max_steps=3"])
    train.main()
    run = Path("outputs/mini_base_vae/checkpoints/last.ckpt")
    assert torch.load(run, weights_only=True)["global_step"] == 3

    model = FastComposer.from_pretrained("base", max_subjects=3)
    assert model.tokenizer("a man").input_ids[0] == model.tokenizer.bos_token_id
    assert model.noise_scheduler.config.prediction_type == "v_prediction"
    assert len(model.localized_layers) == 7
    pipeline = model.to_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a man on the beach", num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    stored = torch.load(run, weights_only=True)["state_dict"]
    assert not torch.equal(model.vae.encoder.conv_in.weight, stored["vae.encoder.conv_in.weight"])  # averaged

    monkeypatch.setattr(sys, "argv", ["train", *common, "method=vae_decoder"])
    train.main()
    finished = FastComposer.from_pretrained("base", max_subjects=3).vae
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(*(vae.encode(pixels).latent_dist.mode() for vae in (finished, model.vae)))
    assert finished.config.scaling_factor == model.vae.config.scaling_factor
    assert not torch.equal(finished.decoder.conv_in.weight, model.vae.decoder.conv_in.weight)


def test_the_transformer_fits_the_other_parts(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "experiment=mini_base",
        "method=transformer",
        f"model.base={MINI_DIT}",
        "export=base",
        f"data.root={world}",
        "data.module.batch_size=8",
        "method.t5_fraction=0.5",
        "method.warmup_steps=0",
        "trainer.max_time=null",
        "trainer.max_steps=4",
    ]
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    train.main()
    transformer = SD3Transformer2DModel.from_pretrained("base/transformer")
    assert transformer.proj_out.weight.any()
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3", "image_encoder"))
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        MINI_DIT, transformer=transformer, torch_dtype=torch.float32, **absent
    )
    pipeline.set_progress_bar_config(disable=True)
    for length in (0, 256):
        image = pipeline("a man on the beach", num_inference_steps=2, max_sequence_length=length).images[0]
        assert image.size == (64, 64)
