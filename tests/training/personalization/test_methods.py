"""What the fine-tuning methods train, on what, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Generator, Tensor
from transformers import CLIPTokenizer

from fastcomposer.data.portraits import Portraits, PortraitSettings, ReferenceSet
from fastcomposer.models.text import encode_text
from fastcomposer.training.personalization.prior import ClassImages

Make = Callable[..., Any]


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *rest: Any) -> None:
        self.values.append(float(outputs["loss"]))


def weights(module: Any) -> dict[str, Tensor]:
    parts = {name: getattr(module, name) for name in ("vae", "unet", "text_encoder")}
    return {
        f"{part}.{name}": value.detach().clone()
        for part, network in parts.items()
        for name, value in network.state_dict().items()
    }


@pytest.mark.parametrize(
    ("name", "changes", "trained"),
    [
        ("textual_inversion", {}, {"text_encoder.embeddings.token_embedding.new"}),
        ("dreambooth", {}, {"unet"}),
        ("dreambooth", {"train_text_encoder": True}, {"unet", "text_encoder"}),
        ("custom_diffusion", {}, {"text_encoder.embeddings.token_embedding.new", "attn2.to_k", "attn2.to_v"}),
    ],
)
def test_nothing_else_changes(
    make: Make, fit: Make, people: tuple[ReferenceSet, ...], name: str, changes: Any, trained: set[str]
) -> None:
    module = make(name, **changes)
    table = module.text_encoder.get_input_embeddings()
    known, before = table.weight.detach().clone(), weights(module)
    fit(module, people[:1])
    after = weights(module)
    chosen = {key for key in after if any(part in key for part in trained)}
    assert {key for key in before if key in after and not torch.equal(before[key], after[key])} <= chosen
    untouched = {k: v for k, v in after.items() if k in before and k not in chosen}
    assert all(torch.equal(before[key], value) for key, value in untouched.items())
    named = set(module.trained_parameters())
    assert named == {key for key in chosen if not key.endswith("position_ids")}
    if name != "dreambooth":
        assert torch.equal(table.weight, known)
        new = module.text_encoder.get_input_embeddings().new
        word = "man" if name == "textual_inversion" else "ktn"
        ids = module.tokenizer(word, add_special_tokens=False).input_ids
        assert not torch.equal(new[0], known[ids].mean(0))
        assert torch.allclose(new[0], known[ids].mean(0), atol=3 * 0.3)
    moved = {key for key in chosen if key in before and not torch.equal(before[key], after[key])}
    assert name == "textual_inversion" or len(moved) > len(chosen) / 2


@pytest.mark.parametrize("known", [True, False])
def test_custom_diffusion_starts_from_the_entry_ktn_of_the_vocabulary(
    known: bool, make: Make, people: tuple[ReferenceSet, ...]
) -> None:
    """As in CLIP's vocabulary, where ``ktn`` is 42170: merges make ``k`` and ``tn</w>`` of the word."""
    merges = [("t", "n"), ("t", "n</w>"), ("k", "t"), ("k", "tn")]
    entries = ["k", "t", "n", "n</w>", *("".join(pair) for pair in merges[: 4 if known else 3])]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    module = make("custom_diffusion")
    module.tokenizer = CLIPTokenizer(
        vocab=vocabulary | {"<|startoftext|>": 498, "<|endoftext|>": 499},
        merges=merges[: 4 if known else 3],
    )
    pieces = module.tokenizer("ktn", add_special_tokens=False).input_ids
    assert module.tokenizer.convert_ids_to_tokens(pieces) == ["k", "tn</w>"]
    table = module.text_encoder.get_input_embeddings().weight.detach().clone()
    module.people = people[:1]
    module.choose_trained()
    start = module.text_encoder.get_input_embeddings().new[0]
    assert torch.equal(start, table[vocabulary["ktn"]] if known else table[pieces].mean(0))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_target_is_what_the_scheduler_predicts(
    make: Make,
    fit: Make,
    people: tuple[ReferenceSet, ...],
    write_base: Make,
    tmp_path: Path,
    prediction_type: str,
) -> None:
    unet = {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "block_out_channels": [8, 8]}
    unet |= {
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    }
    base = write_base(tmp_path / "base", prediction_type=prediction_type, unet=unet)
    frozen = partial(torch.optim.SGD, lr=0.0)
    module, losses = (
        make("dreambooth", base=str(base), class_images=None, optimizer=frozen, steps=1),
        Losses(),
    )
    fit(module, people[:1], callbacks=[losses])

    number = np.random.SeedSequence((0, 0, 0)).generate_state(1, np.uint64)[0] >> 1  # seed, process, step
    generator = Generator().manual_seed(int(number))
    batch = Portraits(people[:1], module.images, 0).sample(0)
    with torch.no_grad():
        latents = module.vae.encode(batch.pixel_values).latent_dist.sample(generator)
        latents = latents * module.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.randint(1000, (2,), generator=generator)
        alpha = module.noise_scheduler.alphas_cumprod[steps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        ids = module.tokenizer(
            ["a photo of a sks man"] * 2, padding="max_length", return_tensors="pt"
        ).input_ids
        found = module.unet(noisy, steps, encode_text(module.text_encoder, ids)).sample
    target = noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    assert losses.values[0] == pytest.approx(float((found - target).square().mean()), rel=1e-4)


def test_the_prior_doubles_the_batch_and_its_images_are_kept(
    make: Make, fit: Make, people: tuple[ReferenceSet, ...], tmp_path: Path
) -> None:
    sizes: list[int] = []
    module = make("dreambooth")
    fit(module, people[:1], callbacks=[_Sizes(sizes)])
    assert sizes == [4, 4]
    (folder,) = (tmp_path / "class").iterdir()
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["0000.png", "0001.png", "0002.png"]
    content = [file.read_bytes() for file in files]
    assert len(set(content)) == 3
    times = [file.stat().st_mtime_ns for file in files]

    files[1].unlink()  # as if the drawing had been interrupted
    fit(make("dreambooth"), people[:1])
    assert [file.read_bytes() for file in files] == content
    assert [files[i].stat().st_mtime_ns == times[i] for i in (0, 2)] == [True, True]

    other = ClassImages(tmp_path / "class", count=3, num_inference_steps=3)
    fit(make("dreambooth", class_images=other), people[:1])
    assert len(list((tmp_path / "class").iterdir())) == 2

    sizes.clear()
    fit(make("dreambooth", class_images=None), people[:1], callbacks=[_Sizes(sizes)])
    assert sizes == [2, 2]


class _Sizes(Callback):
    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        module.unet.register_forward_pre_hook(lambda unet, args: self.sizes.append(len(args[0])))


def test_the_weight_of_the_prior_counts(make: Make, fit: Make, people: tuple[ReferenceSet, ...]) -> None:
    frozen, found = partial(torch.optim.SGD, lr=0.0), []
    for weight in (0.0, 1.0, 2.0):
        losses = Losses()
        fit(
            make("dreambooth", prior_weight=weight, optimizer=frozen, steps=1), people[:1], callbacks=[losses]
        )
        found.append(losses.values[0])
    assert found[2] - found[1] == pytest.approx(found[1] - found[0], rel=1e-4)
    assert found[1] > found[0] > 0


def test_prompts_name_far_and_close_images(
    make: Make, fit: Make, people: tuple[ReferenceSet, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make("custom_diffusion", images=PortraitSettings(16, 2, scales=(0.4, 0.5)), steps=4)
    prompts: list[str] = []
    encoded, losses = module._encoded, Losses()
    monkeypatch.setattr(module, "_encoded", lambda given: prompts.extend(given) or encoded(given))
    fit(module, people[:1], callbacks=[losses])
    mine = [prompt for prompt in prompts if "<adam> man" in prompt]
    assert len(mine) == 8
    assert all(prompt.startswith(("far away a photo", "very small a photo")) for prompt in mine)
    assert [prompt for prompt in prompts if prompt not in mine] == ["a photo of a man"] * 8
    # The loss is the mean over the image, however small it is.
    assert min(losses.values) > 0.5


def test_dreambooth_learns_one_person(make: Make, fit: Make, people: tuple[ReferenceSet, ...]) -> None:
    with pytest.raises(ValueError, match="one person at a time, not 2"):
        fit(make("dreambooth"), people)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("dreambooth", {"steps": 0}, r"method\.steps=0"),
        ("dreambooth", {"prior_weight": -1.0}, r"method\.prior_weight=-1"),
        ("dreambooth", {"templates": ["a photo"]}, r"method\.templates=\['a photo'\]"),
        ("textual_inversion", {"class_images": ClassImages("x")}, r"method\.class_images"),
    ],
)
def test_bad_settings_are_named_before_anything_loads(
    make: Make, name: str, changes: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastcomposer.models.loading.ModelSource.load", None)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(name, **changes)


def test_a_resolution_that_the_base_cannot_halve_is_named(
    make: Make, write_base: Make, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base")  # four levels and a VAE of two
    with pytest.raises(ValueError, match=r"method\.images\.resolution=24: this base takes multiples of 16"):
        make("dreambooth", base=str(base), images=PortraitSettings(24))


def test_a_stopped_training_resumes(
    make: Make, fit: Make, people: tuple[ReferenceSet, ...], tmp_path: Path
) -> None:
    straight = make("custom_diffusion", steps=4)
    fit(straight, people[:1])
    first = make("custom_diffusion", steps=2)
    fit(first, people[:1]).save_checkpoint(tmp_path / "half.ckpt")
    second = make("custom_diffusion", steps=4)
    fit(second, people[:1], resume=tmp_path / "half.ckpt")
    one, other = straight.learned(), second.learned()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
