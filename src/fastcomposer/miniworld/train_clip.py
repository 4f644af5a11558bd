"""Training of the embedded base's CLIP: images and captions, and images of the same person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from fastcomposer.data.segment_crop import cut_out
from fastcomposer.data.transforms import ReferenceAugmentation, ReferenceTransform
from fastcomposer.miniworld.part_module import PartModule, save_half
from fastcomposer.miniworld.scene_dataset import SceneBank, SceneBatch
from fastcomposer.miniworld.scenes import bounding_box
from fastcomposer.models.conditioning import ReferenceNormalizer
from fastcomposer.training.base_module import OptimizerFactory
from fastcomposer.utils.ranges import Amount, Count, Fraction


def contrastive_loss(a: Tensor, b: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over cosine similarities (Radford et al. 2021, figure 3).

    Row i of ``a`` (B, d) belongs to row i of ``b``; the scale is the logarithm of the inverse temperature.
    """
    logits = logit_scale.exp() * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class CLIPModule(PartModule):
    """Contrast of scenes with captions, and of two portraits of one person with those of others.

    The second term makes the vision tower represent identity, as faces and names of web-scale data do.

    Args:
        clip: Text and vision towers; the projection must be as wide as the text tower.
        tokenizer: Tokenizer of the base.
        optimizer: Makes the optimizer.
        rich_share: Fraction of captions that name hair, skin and beard.
        identity_weight: Weight of the portrait term.
        num_portraits: Pairs of portraits in a step.
        **recipe: Further arguments of :class:`RecipeModule`.
    """

    PART = "clip"
    LOGGED = ("train/loss", "train/caption", "train/identity", "val/top1_of_16_1", "val/top1_of_16_2")

    def __init__(
        self,
        clip: Any,
        tokenizer: Any,
        optimizer: OptimizerFactory,
        rich_share: Fraction = 0.7,
        identity_weight: Amount = 0.5,
        num_portraits: Count = 48,
        **recipe: Any,
    ) -> None:
        super().__init__(optimizer, **recipe)
        self.clip, self.tokenizer = clip, tokenizer
        self.rich_share, self.identity_weight, self.num_portraits = rich_share, identity_weight, num_portraits
        self.normalize = ReferenceNormalizer()
        self.identity_scale = nn.Parameter(torch.tensor(np.log(10.0), dtype=torch.float32))
        side = clip.config.vision_config.image_size
        self.reference = ReferenceTransform(
            side, ReferenceAugmentation(max_zoom=1.4, degrees=15.0, jitter=0, grey=0, elastic=0)
        )

    def setup(self, stage: str) -> None:
        """Tokenize all captions once and list the scenes of each person."""
        self.train_ids = self._tokenize(self.scenes.train)
        self.test_ids = self._tokenize(self.scenes.test)
        self.seen = positions_by_identity(self.scenes.train)

    def training_step(self, batch: SceneBatch, batch_idx: int) -> Tensor:
        """Both contrasts."""
        plain, rich = (ids[batch.index.cpu()].to(self.device) for ids in self.train_ids)
        draw = torch.rand(len(batch), 1, generator=self.step_generator(), device=self.device)
        chosen = draw < self.rich_share
        caption_loss = contrastive_loss(
            self.embed_images((batch.pixel_values + 1) / 2),
            self.embed_texts(torch.where(chosen, rich, plain)),
            self.clip.logit_scale.clamp(max=4.6),
        )
        first, second = self.portraits(self.global_step)
        first, second = self.embed_images(torch.cat([first, second]).to(self.device)).chunk(2)
        identity_loss = contrastive_loss(first, second, self.identity_scale.clamp(max=4.6))
        loss = caption_loss + self.identity_weight * identity_loss
        self.log_dict({"train/loss": loss, "train/caption": caption_loss, "train/identity": identity_loss})
        return loss

    def portraits(self, step: int) -> tuple[Tensor, Tensor]:
        """Two images each of randomly drawn people: twice (P, 3, R, R) in [0, 1]."""
        rng = np.random.default_rng([11, step])
        people = rng.choice(len(self.seen), min(self.num_portraits, len(self.seen)), replace=False)
        pairs = [rng.choice(len(self.seen[p]), 2, replace=False) for p in people]
        crops = []
        for side in (0, 1):
            for person, pair in zip(people, pairs, strict=True):
                row, slot = self.seen[person][pair[side]]
                portrait = cut_portrait(self.scenes.train, row, slot, rng)
                crops.append(self.reference(portrait, int(rng.integers(2**31))))
        first, second = torch.stack(crops).chunk(2)
        return first, second

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Project images (B, 3, R, R) in [0, 1] to (B, d)."""
        pooled = self.clip.vision_model(pixel_values=self.normalize(pixels)).pooler_output
        return self.clip.visual_projection(pooled)

    def embed_texts(self, input_ids: Tensor) -> Tensor:
        """Project token ids (B, T) to (B, d)."""
        return self.clip.text_projection(self.clip.text_model(input_ids=input_ids).pooler_output)

    def validation_step(self, batch: SceneBatch, batch_idx: int) -> None:
        """Fraction of held-out scenes whose own caption scores highest among 16 of as many people."""
        counts = batch.present.sum(1)
        with self.averaged_weights():
            images = F.normalize(self.embed_images((batch.pixel_values + 1) / 2), dim=-1)
            texts = F.normalize(self.embed_texts(self.test_ids[1][batch.index.cpu()].to(self.device)), dim=-1)
        for count in (1, 2):
            rows = torch.nonzero(counts == count).flatten()[:16]
            if len(rows) == 16:
                right = (images[rows] @ texts[rows].T).argmax(1) == torch.arange(16, device=self.device)
                self.log(f"val/top1_of_16_{count}", right.float().mean(), batch_size=16, prog_bar=True)

    def _tokenize(self, bank: SceneBank) -> tuple[Tensor, Tensor]:
        """Ids of the plain and of the rich captions, (N, T) each, with T the longest caption's length."""
        captions = [*bank.captions, *bank.rich_captions]
        ids = self.tokenizer(captions, padding="longest", truncation=True, return_tensors="pt").input_ids
        plain, rich = ids.chunk(2)
        return plain, rich

    def write(self, folder: Path) -> None:
        """Write ``clip/``, ``text_encoder/`` and ``image_encoder/`` of a base folder."""
        super().write(folder)
        config = self.clip.config
        text = CLIPTextModel(CLIPTextConfig(**config.text_config.to_dict()))
        text.load_state_dict(self.clip.text_model.state_dict())
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**config.vision_config.to_dict()))
        vision.vision_model.load_state_dict(self.clip.vision_model.state_dict())
        vision.visual_projection.load_state_dict(self.clip.visual_projection.state_dict())
        save_half(text, folder / "text_encoder")
        save_half(vision, folder / "image_encoder")


def positions_by_identity(bank: SceneBank) -> list[list[tuple[int, int]]]:
    """For each identity seen at least twice, its (row, slot) positions in the bank."""
    found: dict[int, list[tuple[int, int]]] = {}
    for row, slot in torch.nonzero(bank.identities >= 0).tolist():
        found.setdefault(int(bank.identities[row, slot]), []).append((row, slot))
    return [positions for positions in found.values() if len(positions) > 1]


def cut_portrait(bank: SceneBank, row: int, slot: int, rng: np.random.Generator) -> Tensor:
    """Cut one person out of a scene on noise, (3, h, w) uint8."""
    segment_map = bank.maps[row].numpy()
    box = bounding_box(segment_map == slot + 1)
    return cut_out(bank.images[row].permute(1, 2, 0).numpy(), segment_map, slot + 1, box, rng)


def tiny_clip(
    tokenizer: Any, width: int = 128, layers: int = 3, image_size: int = 64, patch_size: int = 8
) -> CLIPModel:
    """Build an untrained CLIP whose projection is as wide as its text tower."""
    shared = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    shared |= {"num_attention_heads": 4, "projection_dim": width}
    text = shared | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = shared | {"image_size": image_size, "patch_size": patch_size}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))
