"""Features of images and texts in one space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize
from transformers import CLIPModel, CLIPTokenizer

from fastcomposer.metrics.pretrained import load_pretrained
from fastcomposer.models.conditioning import ReferenceNormalizer
from fastcomposer.utils.network_files import naming_damage


class ImageTextExtractor(Protocol):
    """Maps images and texts into one space."""

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors (N, d) of images (N, 3, H, W) in [0, 1], on the device of the images."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, d) of texts, on the CPU."""


class ClipExtractor(nn.Module):
    """A CLIP of transformers.

    Images are resized and cropped as CLIP's own preprocessing does (bicubic, shorter side to the input size,
    centre), texts longer than its limit are cut and keep their end token.

    Args:
        model: Folder or hub id, with the tokenizer beside the model.
        subfolder: Folder of the model inside it, in the diffusers layout: the tokenizer is in ``tokenizer/``
            next to that.
        antialias: Whether images are resized with antialiasing, as in CLIP's own preprocessing; the published
            run resized them without. See :func:`fit_square`.

    Raises:
        FileNotFoundError: If there is no such model or no tokenizer.
        ValueError: If weights are missing or the tokenizer is another model's.
    """

    def __init__(self, model: str | Path, subfolder: str | None = None, antialias: bool = True) -> None:
        super().__init__()
        self.antialias = antialias
        key = "metrics.image_text.model"
        self.clip = load_pretrained(CLIPModel, model, key, subfolder or "")
        try:
            with naming_damage(f"{key}: tokenizer of", model):
                self.tokenizer = CLIPTokenizer.from_pretrained(
                    model, subfolder="tokenizer" if subfolder else ""
                )
        except OSError as error:
            raise FileNotFoundError(f"{key}={model}: no tokenizer there: {error}") from error
        text = self.clip.config.text_config
        # A folder without any tokenizer gives an empty one instead of an error.
        if len(self.tokenizer) != text.vocab_size:
            raise ValueError(
                f"{key}={model}: its tokenizer knows {len(self.tokenizer)} tokens, but the model "
                f"{text.vocab_size}: put the model's own vocab.json and merges.txt or tokenizer.json there"
            )
        self.normalize = ReferenceNormalizer()

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, H, W) in [0, 1] as unit vectors (N, d)."""
        side = self.clip.config.vision_config.image_size
        pixels = fit_square(images.to(self.clip.device), side, self.antialias)
        pooled = self.clip.vision_model(pixel_values=self.normalize(pixels)).pooler_output
        return F.normalize(self.clip.visual_projection(pooled), dim=-1).to(images.device)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts as unit vectors (N, d)."""
        limit = self.clip.config.text_config.max_position_embeddings
        encoded = self.tokenizer(
            list(texts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        pooled = self.clip.text_model(input_ids=encoded.input_ids.to(self.clip.device)).pooler_output
        return F.normalize(self.clip.text_projection(pooled), dim=-1).cpu()


def fit_square(images: Tensor, side: int, antialias: bool = True) -> Tensor:
    """Resize the shorter side (bicubic) and cut out the centre.

    Args:
        images: (N, 3, H, W) float in [0, 1]; images of the right size stay as they are.
        side: Side in pixels of what comes out.
        antialias: ``False`` resizes as the published run did: without antialiasing, and values overshoot.

    Returns:
        (N, 3, side, side) float, in [0, 1] with antialiasing.
    """
    fitted = center_crop(resize(images, [side], InterpolationMode.BICUBIC, antialias=antialias), [side, side])
    return fitted.clamp(0, 1) if antialias else fitted
