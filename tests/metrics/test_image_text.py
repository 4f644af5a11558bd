"""Features that images and texts share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from fastcomposer.evaluation.store import extractor_metadata
from fastcomposer.metrics.image_text import ClipExtractor, fit_square

TEXTS = ["a man on the beach", "a woman smiling"]


def random_clip(tokens: int = 500) -> CLIPModel:
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    text = CLIPTextConfig(
        **layers, vocab_size=tokens, bos_token_id=498, eos_token_id=499, pad_token_id=499, projection_dim=12
    )
    vision = CLIPVisionConfig(**layers, image_size=16, patch_size=8, projection_dim=12)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    return CLIPModel(config).eval()


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder with ``clip/`` and ``tokenizer/``."""
    folder = tmp_path_factory.mktemp("clip_base")
    random_clip().save_pretrained(folder / "clip")
    shutil.copytree(tiny_base / "tokenizer", folder / "tokenizer")
    return folder


def expected(base: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the whole model says of images of its own size."""
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    ids = tokenizer(TEXTS, padding="max_length", return_tensors="pt").input_ids
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    clip = CLIPModel.from_pretrained(base, subfolder="clip").eval()
    with torch.no_grad():
        outputs = clip(input_ids=ids, pixel_values=(images - mean) / std)
    return outputs.image_embeds, outputs.text_embeds


def test_features_are_those_of_the_whole_model(base: Path) -> None:
    extractor, images = ClipExtractor(base, "clip"), torch.rand(3, 3, 16, 16)
    image_embeds, text_embeds = expected(base, images)
    torch.testing.assert_close(extractor.embed_images(images), image_embeds)
    torch.testing.assert_close(extractor.embed_texts(TEXTS), text_embeds)
    torch.testing.assert_close(extractor.embed_texts(TEXTS[1:]), text_embeds[1:])
    torch.testing.assert_close(image_embeds.norm(dim=-1), torch.ones(3))


def test_a_folder_of_one_model_holds_its_tokenizer_itself(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "clip", tmp_path / "model")
    shutil.copytree(base / "tokenizer", tmp_path / "model", dirs_exist_ok=True)
    flat, nested = ClipExtractor(tmp_path / "model"), ClipExtractor(str(base), "clip")
    assert torch.equal(flat.embed_texts(TEXTS), nested.embed_texts(TEXTS))


def test_long_texts_are_cut_and_keep_their_end(base: Path) -> None:
    extractor = ClipExtractor(base, "clip")
    long = extractor.embed_texts(["a man " * 60, "a man " * 80, "a man " * 20])
    torch.testing.assert_close(long[0], long[1])
    assert (long[0] - long[2]).abs().max() > 1e-3
    ids = extractor.tokenizer(["a man " * 60], padding="max_length", max_length=77, truncation=True).input_ids
    assert (len(ids[0]), ids[0][-1]) == (77, 499)


def test_images_are_fitted_as_clip_does() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(fit_square(images, 16), images)
    # The shorter side decides, and what hangs over is cut on both sides alike.
    wide = torch.zeros(1, 3, 8, 24)
    wide[..., 8:16] = 1
    fitted = fit_square(wide, 16)
    assert fitted.shape == (1, 3, 16, 16)
    assert (fitted[..., 3:13] > 0.99).all()
    black_to_white = torch.zeros(1, 3, 8, 8)
    black_to_white[..., 4:] = 1
    fitted = fit_square(black_to_white, 32)
    assert (fitted.min(), fitted.max()) == (0, 1)  # bicubic would leave the range


def test_images_may_be_resized_as_in_the_published_run(base: Path) -> None:
    images = torch.rand(2, 3, 64, 64)
    expected = F.interpolate(images, (16, 16), mode="bicubic", align_corners=False, antialias=False)
    assert expected.min() < 0 and expected.max() > 1
    torch.testing.assert_close(fit_square(images, 16, antialias=False), expected)
    smooth, sharp = (ClipExtractor(base, "clip", antialias=on) for on in (True, False))
    assert extractor_metadata(smooth) | {"antialias": False} == extractor_metadata(sharp)
    assert (smooth.embed_images(images) - sharp.embed_images(images)).abs().max() > 1e-4


def test_what_cannot_be_loaded(base: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics\.image_text\.model=.*: clip/ of it holds no"):
        ClipExtractor(tmp_path, "clip")
    shutil.copytree(base / "clip", tmp_path / "clip")
    with pytest.raises(ValueError, match=r"tokenizer knows \d tokens, but the model 500"):
        ClipExtractor(tmp_path / "clip")  # the tokenizer is elsewhere
    random_clip(600).save_pretrained(tmp_path / "other" / "clip")
    shutil.copytree(base / "tokenizer", tmp_path / "other" / "tokenizer")
    with pytest.raises(ValueError, match="knows 500 tokens, but the model 600"):
        ClipExtractor(tmp_path / "other", "clip")
