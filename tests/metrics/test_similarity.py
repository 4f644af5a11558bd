"""Copy-paste and image similarity by hand, and features of vision transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcomposer.metrics.similarity import CopyPaste, DinoExtractor, ImageSimilarity, copy_paste


def at(degrees: float) -> Tensor:
    """A unit vector in the plane."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()])


def test_copies_are_positive_and_free_drawings_near_zero() -> None:
    reference, others = at(0), torch.stack([at(60), at(-60)])
    assert copy_paste(at(0), reference, others) == pytest.approx(1 - 0.5)  # the reference itself
    # At 60 degrees it is another image: 0.5 - (1 - 0.5) / 2.
    assert copy_paste(at(60), reference, others) == pytest.approx(0.5 - 0.25)
    assert copy_paste(at(180), reference, others) == pytest.approx(-1 + 0.5)
    assert copy_paste(3 * at(0), reference, others[:1]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least one other image"):
        copy_paste(at(0), reference, others[:0])


def test_mean_of_copy_paste_over_faces() -> None:
    metric = CopyPaste()
    others = torch.stack([at(60), at(-60)])
    metric.update(torch.stack([at(0), at(60)]), torch.stack([at(0), at(0)]), [others, others])
    metric.update(at(180)[None], at(0)[None], [others])
    assert metric.compute().item() == pytest.approx((0.5 + 0.25 - 0.5) / 3)
    assert metric.higher_is_better is False
    with pytest.raises(ValueError, match="zip"):
        metric.update(at(0)[None], at(0)[None], [])


def test_image_similarity_is_a_mean_of_cosines() -> None:
    metric = ImageSimilarity()
    metric.update(torch.stack([at(0), at(30)]), torch.stack([5 * at(60), at(30)]))
    metric.update(at(0)[None], at(180)[None])
    assert metric.compute().item() == pytest.approx((0.5 + 1 - 1) / 3)
    with pytest.raises(ValueError, match=r"\(1, 2\) for images but \(2, 2\) for references"):
        metric.update(at(0)[None], torch.stack([at(0), at(30)]))


def write_transformer(folder: Path, kind: str) -> nn.Module:
    """Write a tiny random vision transformer with its preprocessing: 28 pixels, mean and deviation 0.5."""
    from transformers import (
        BitImageProcessor,
        Dinov2Config,
        Dinov2Model,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 28,
        "patch_size": 14,
    }
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor: Any
    if kind == "vit":  # as DINO's files are: without a pooler
        network: nn.Module = ViTModel(ViTConfig(**sizes), add_pooling_layer=False)
        processor = ViTImageProcessor(size={"height": 28, "width": 28}, **half)
    else:
        network = Dinov2Model(Dinov2Config(**sizes))
        square = {"height": 28, "width": 28}
        processor = BitImageProcessor(size={"shortest_edge": 28}, crop_size=square, **half)
    network.save_pretrained(folder)  # type: ignore[operator]
    processor.save_pretrained(folder)
    return network.eval()


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_dino_features_are_the_class_token(kind: str, tmp_path: Path) -> None:
    network = write_transformer(tmp_path, kind)
    extractor = DinoExtractor(tmp_path)
    images = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        token = network(pixel_values=2 * images - 1).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor.embed_images(images), F.normalize(token, dim=-1))
    assert extractor.embed_images(torch.rand(1, 3, 56, 56)).shape == (1, 16)


def test_dino_files_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: it holds no AutoModel \(config\.json"):
        DinoExtractor(tmp_path / "nowhere")
    write_transformer(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json there"):
        DinoExtractor(tmp_path)
