"""Training from precomputed moments and text states is training without them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny_architectures import add_t5, narrow
from torch import Tensor

from fastcomposer.batch import SubjectBatch
from fastcomposer.composer import FastComposer
from fastcomposer.data.cache_files import StaleCacheError, read_part_records
from fastcomposer.data.records import Record, read_record, record_path, write_record
from fastcomposer.models.loading import load_tokenizer
from fastcomposer.models.text import ENCODERS, encode_text
from fastcomposer.training.module import FastComposerModule
from fastcomposer.training.precompute import CacheStage, frozen_digests

Make = Callable[..., Any]
Fill = Callable[..., CacheStage]


@pytest.fixture
def fill(make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path) -> Fill:
    """Fill ``<tmp_path>/cache`` for a data folder; returns the stage."""

    def run(data: Any = None, **settings: Any) -> CacheStage:
        settings = {"records_per_file": 10, "batch_size": 4, **settings}
        stage = CacheStage(make_module().model, data or make_data(), tmp_path / "cache", **settings)
        make_trainer().predict(stage, return_predictions=False)
        return stage

    return run


@pytest.fixture
def own_world(world: Path, tmp_path: Path) -> Path:
    """The data folder, to be changed."""
    return Path(shutil.copytree(world, tmp_path / "world"))


class _Watch(Callback):
    """Keeps every step's batch, loss and gradients."""

    def __init__(self) -> None:
        self.batches: list[SubjectBatch] = []
        self.losses: list[float] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: SubjectBatch, *args: Any
    ) -> None:
        self.batches.append(batch)
        self.losses.append(float(outputs["loss"]))

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        self.gradients.append(
            {name: p.grad.clone() for name, p in module.trained_parameters().items() if p.grad is not None}
        )


def watched(
    make_module: Make, make_trainer: Make, data: Any, steps: int
) -> tuple[_Watch, FastComposerModule]:
    watch = _Watch()
    module = make_module(
        caption_dropout=0.4, subject_dropout=0.3, optimizer=partial(torch.optim.SGD, lr=0.05), ema_decay=None
    )
    make_trainer(max_steps=steps, callbacks=[watch]).fit(module, data)
    return watch, module


def test_training_from_the_cache_equals_training_without(
    fill: Fill, make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    fill()
    plain, _ = watched(make_module, make_trainer, make_data(batch_size=4), 4)
    cached, module = watched(make_module, make_trainer, make_data(batch_size=4, cache=tmp_path / "cache"), 4)
    mixed = 0
    for without, batch in zip(plain.batches, cached.batches, strict=True):
        assert without.latent_moments is None
        assert torch.equal(without.pixel_values, batch.pixel_values)
        assert batch.latent_moments is not None
        with torch.no_grad():
            wanted = module.model.encode_moments(batch.pixel_values)
            other = module.model.encode_moments(batch.pixel_values.flip(-1))
            states = encode_text(module.model.text_encoder, batch.input_ids)
        torch.testing.assert_close(batch.latent_moments, wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.text_embeds, states, atol=1e-5, rtol=0)
        assert (batch.latent_moments - other).abs().max() > 1e-3
        mirrored = [bool((m - module_cache(tmp_path, n)).abs().max() > 1e-6) for m, n in pairs(batch)]
        mixed += len(set(mirrored)) == 2
    assert mixed >= 2  # batches with images both as they are and mirrored
    assert cached.losses == pytest.approx(plain.losses, abs=1e-5)
    for one, other_step in zip(plain.gradients, cached.gradients, strict=True):
        assert one.keys() == other_step.keys()
        for name, gradient in one.items():
            torch.testing.assert_close(other_step[name], gradient, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_states_of_further_text_encoders_are_kept_too(
    name: str, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    base = narrow(name, tmp_path / name)
    if name == "sd3":
        add_t5(base, length=32)
    torch.manual_seed(0)
    model = FastComposer.from_pretrained("no/base", architecture=base, weights="random")
    tokenizer = load_tokenizer("no/base", architecture=base, weights="random")
    settings = {"resolution": 64, "reference_size": 28, "tokenizer": tokenizer}
    stage = CacheStage(model, make_data(**settings), tmp_path / "cache")
    make_trainer().predict(stage, return_predictions=False)
    data = make_data(cache=tmp_path / "cache", **settings)
    data.setup("fit")
    batch = SubjectBatch.collate([data.train_dataset[3], data.train_dataset[8]])
    plain = batch.replace(latent_moments=None, text_embeds=None, pooled_text_embeds=None)
    assert batch.pooled_text_embeds is not None
    states = model.encode_captions(plain)
    torch.testing.assert_close(batch.text_embeds, states.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.pooled_text_embeds, states.pooled, atol=1e-5, rtol=0)
    one, other = (
        model.training_losses(given, generator=torch.Generator().manual_seed(0)) for given in (plain, batch)
    )
    torch.testing.assert_close(one.loss, other.loss, atol=1e-5, rtol=0)
    encoders = {"sdxl": {"text_encoder", "text_encoder_2"}, "sd3": {*ENCODERS}}[name]
    assert set(frozen_digests(model)) == {"vae", *encoders}
    assert (batch.subject_token_idx_3 is not None) == (name == "sd3")


def pairs(batch: SubjectBatch) -> list[tuple[Tensor, str]]:
    assert batch.latent_moments is not None
    return list(zip(batch.latent_moments, batch.record_ids, strict=True))


def module_cache(folder: Path, record_id: str) -> Tensor:
    """A record's moments as it is, read past the reader."""
    from safetensors.torch import load_file

    for file in (folder / "cache").glob("part-*.safetensors"):
        ids, _, _ = read_part_records(file)
        if record_id in ids:
            return load_file(file)["moments"][ids.index(record_id), 0]
    raise LookupError(record_id)


def test_it_resumes_where_it_stopped_and_renews_what_changed(
    fill: Fill, make_data: Make, own_world: Path, tmp_path: Path
) -> None:
    first = fill(make_data(root=own_world))
    files = sorted((tmp_path / "cache").glob("part-*.safetensors"))
    assert [len(read_part_records(file)[0]) for file in files] == [10, 10, 4, 8]
    assert first.num_images() == 32
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}
    assert fill(make_data(root=own_world)).num_images() == 0
    files[1].unlink()
    assert fill(make_data(root=own_world)).num_images() == 10
    assert files[1].read_bytes() == before[files[1].name][1]

    changed = first.datasets[0].record_ids[20]
    loaded = read_record(own_world, changed)
    record = Record(changed, f"{loaded.record.caption} again", loaded.record.segments, loaded.record.extra)
    write_record(own_world, record, loaded.image, loaded.segment_map)
    data = make_data(root=own_world, cache=tmp_path / "cache")
    data.setup("fit")
    with pytest.raises(StaleCacheError, match=rf"{changed} has changed; .*prepare cache=.*renews it"):
        data.train_dataset[20]
    assert fill(make_data(root=own_world)).num_images() == 4
    data = make_data(root=own_world, cache=tmp_path / "cache")
    data.setup("fit")
    assert data.train_dataset[20].text_embeds.shape == (1, 77, 32)
    assert files[0].stat().st_mtime_ns == before[files[0].name][0]
    assert fill(make_data(root=own_world), restart=True).num_images() == 32
    assert fill(make_data(root=own_world, train_split="test", val_split=None), restart=True).groups
    assert [file.name for file in sorted((tmp_path / "cache").glob("part-*"))] == [files[0].name]


def test_stale_caches_are_refused_with_what_changed(
    fill: Fill, make_module: Make, make_data: Make, make_trainer: Make, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(FileNotFoundError, match=r"data\.module\.cache: no cache at .*prepare cache="):
        make_data(cache=cache)
    fill(make_data(train_split="test", val_split=None))
    module = make_module()
    with torch.no_grad():
        module.model.vae.encoder.conv_in.bias += 1e-3
    data = make_data(cache=cache, train_split="test", val_split=None)
    with pytest.raises(StaleCacheError, match=r"stale: weights\.vae: '.*, not '.*restart=true makes it anew"):
        make_trainer(max_steps=1).fit(module, data)
    with pytest.raises(StaleCacheError, match=r"made from something else: weights\.vae.*restart=true"):
        CacheStage(module.model, make_data(), cache)
    with pytest.raises(
        StaleCacheError, match="made from something else: precision: 'float32', not 'float16'"
    ):
        fill(precision="float16")
    with pytest.raises(StaleCacheError, match="stale: resolution: 32, not 64"):
        make_data(cache=cache, resolution=64)
    with pytest.raises(StaleCacheError, match="decoding: 'scaled, reference=other_image', not 'whole'"):
        make_data(cache=cache, scaled_decoding=False)
    data = make_data(cache=cache)
    with pytest.raises(StaleCacheError, match="24 of 24 records are missing, 00000000 first"):
        data.setup("fit")
    manifest = json.loads((cache / "cache.json").read_text())
    crop = bytearray.fromhex(manifest["target"]["crop"])
    crop[5] = (crop[5] + 9) % 256
    manifest["target"]["crop"] = crop.hex()
    (cache / "cache.json").write_text(json.dumps(manifest))
    with pytest.raises(StaleCacheError, match="stale: crop: images were resized or cropped in another way"):
        make_data(cache=cache)


def test_half_precision_takes_half_the_space(fill: Fill, make_data: Make, tmp_path: Path) -> None:
    fill()
    file = tmp_path / "cache" / "part-00000.safetensors"
    full = file.stat().st_size
    exact = sample(make_data(cache=tmp_path / "cache"))
    fill(precision="float16", restart=True)
    assert file.stat().st_size < 0.55 * full
    half = sample(make_data(cache=tmp_path / "cache"))
    assert half.latent_moments.dtype == half.text_embeds.dtype == torch.float16
    torch.testing.assert_close(half.latent_moments.float(), exact.latent_moments, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(half.text_embeds.float(), exact.text_embeds, atol=2e-3, rtol=1e-3)


def sample(data: Any) -> Any:
    data.setup("fit")
    return data.train_dataset[3]


def test_bad_records_are_left_out_and_named(
    fill: Fill, make_data: Make, own_world: Path, tmp_path: Path
) -> None:
    bad = "00000004"
    record_path(own_world, bad, ".jpg").write_bytes(b"no image")
    fill(make_data(root=own_world, on_bad_record="skip"))
    ids, reasons, _ = read_part_records(tmp_path / "cache" / "part-00000.safetensors")
    assert len(ids) == 9
    assert bad not in ids
    assert "unreadable" in reasons[bad]
    data = make_data(root=own_world, on_bad_record="skip", cache=tmp_path / "cache")
    data.setup("fit")
    place = data.train_dataset.record_ids.index(bad)
    assert data.train_dataset[place].record_ids == ("00000005",)
