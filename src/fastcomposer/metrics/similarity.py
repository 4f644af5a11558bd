"""Similarity of images, and whether a reference is copied rather than its person drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel

from fastcomposer.metrics.image_scores import ImageMean, paired_cosine
from fastcomposer.metrics.pretrained import load_pretrained


def copy_paste(output: Tensor, reference: Tensor, others: Tensor) -> float:
    """How much closer a face is to the reference image than to other images of that person.

    ``cos(output, reference) − mean cos(output, others)``: about 0 where the person was drawn, positive where
    the reference's own expression, light and pose came along.

    Args:
        output: (d,) embedding of the person's face in the output.
        reference: (d,) embedding of the reference.
        others: (M, d) embeddings of other images of that person, at least one.

    Returns:
        A number in [-2, 2].

    Raises:
        ValueError: If there is no other image.
    """
    if not len(others):
        raise ValueError("copy-paste needs at least one other image of the person than the reference")
    cosine = F.cosine_similarity(output[None].double(), torch.cat([reference[None], others]).double())
    return float(cosine[0] - cosine[1:].mean())


class CopyPaste(ImageMean):
    """Mean of :func:`copy_paste` over the faces that were found; it is not defined for others."""

    higher_is_better = False

    def update(self, outputs: Tensor, references: Tensor, others: Sequence[Tensor]) -> None:
        """Count faces.

        Args:
            outputs: (B, d) embeddings of faces in outputs.
            references: (B, d) embeddings of the references.
            others: For each face, its person's other images (M_i, d).
        """
        rows = zip(outputs, references, others, strict=True)
        self.add(torch.tensor([copy_paste(*row) for row in rows], dtype=torch.float64))


class ImageSimilarity(ImageMean):
    """Mean cosine of images with their references: CLIP-I or DINO, as the features are.

    Ruiz et al. 2023 ("DreamBooth"), section 4.2.
    """

    def update(self, image_features: Tensor, reference_features: Tensor) -> None:
        """Count images.

        Args:
            image_features: (B, d) of the images.
            reference_features: (B, d) of their references.

        Raises:
            ValueError: If there is not one reference for every image.
        """
        self.add(paired_cosine(image_features, reference_features, "reference"))


class DinoExtractor(nn.Module):
    """Class token of a self-supervised vision transformer, after its last normalization.

    Args:
        model: Folder or hub id of a ViT or DINOv2 model of transformers with its preprocessor_config.json,
            such as ``facebook/dino-vits16``, which DreamBooth's DINO score takes.

    Raises:
        FileNotFoundError: If there is no model, or nothing that says how images are prepared for it.
        ValueError: If weights are missing.
    """

    def __init__(self, model: str | Path) -> None:
        super().__init__()
        # The pooler comes after the class token and is in few of the files.
        self.network = load_pretrained(AutoModel, model, "DinoExtractor model", unused=("pooler.",))
        try:
            self.processor = AutoImageProcessor.from_pretrained(model)
        except OSError as error:
            raise FileNotFoundError(
                f"DinoExtractor model={model}: no preprocessor_config.json there: {error}"
            ) from error

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, H, W) in [0, 1] as unit vectors (N, d), on the device of the images."""
        prepared = self.processor(
            images=images.to(self.network.device), do_rescale=False, return_tensors="pt"
        )
        hidden = self.network(pixel_values=prepared.pixel_values).last_hidden_state
        return F.normalize(hidden[:, 0], dim=-1).to(images.device)
