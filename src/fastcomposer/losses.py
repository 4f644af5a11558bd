"""Training losses: denoising and cross-attention localization, as small pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcomposer.utils.ranges import Amount, Fraction, Whole

_EPSILON = 1e-5

Localization = Literal["balanced_l1", "cross_entropy", "token_compose", "dice", "disentangle"]
"""Kinds of localization loss; each has a function below."""
Keys = Literal["text", "all"]
"""What attention sums to 1 over: the text's tokens, or in joint attention those of the image as well."""
LayerLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From maps (B, heads, P, K), masks (B, K, P) and presence (B, K) of one layer to a scalar."""


@dataclass(frozen=True)
class LossConfig:
    """Settings of the training loss; the defaults are the paper's.

    Attributes:
        localization_weight: Weight of the localization loss in the total, at least 0. At 0 it is still
            measured, without gradients.
        num_localized_blocks: How many of the blocks that attend to the text, counted from the middle, are
            localized; 0 leaves the localization loss out altogether.
        localization_blocks: Names of the localized blocks, such as ``("down_blocks.1", "mid_block")``, in
            place of ``num_localized_blocks``.
        localization: ``balanced_l1`` (the paper's), ``cross_entropy`` over subjects, ``token_compose``,
            ``dice``, ``disentangle``, or a :data:`LayerLoss` of one's own.
        localization_keys: What the localized attention of a position sums to 1 over: ``text`` tokens, or
            ``all``, text and image, which only a transformer's joint attention has.
        normalize_localization: Divide each map by its maximum over positions first; ``balanced_l1`` only.
        pixel_weight: Weight of the pixels' cross-entropy relative to the ratio's, at least 0;
            ``token_compose`` only. TokenCompose weighs them 5e-5 and 1e-3.
        mask_loss_probability: Probability in [0, 1] that the denoising loss sees subject pixels only.
        mask_loss_per_sample: Mask each sample with this probability on its own. The published code masks all
            samples of a batch on a process or none, so that a step divided into other batches differs.
        mask_loss_skip_unconditional: Never mask samples without subjects, which would contribute exactly 0.
        routing_weight: Weight of the routing loss in the total, at least 0; only with ``fusion.routing``.

    Raises:
        ValueError: If a value is out of its range.
    """

    localization_weight: Amount = 0.001
    num_localized_blocks: Whole = 5
    localization_blocks: tuple[str, ...] | None = None
    localization: Localization | LayerLoss = "balanced_l1"
    localization_keys: Keys = "text"
    normalize_localization: bool = False
    pixel_weight: Amount = 0.05
    mask_loss_probability: Fraction = 0.5
    mask_loss_per_sample: bool = False
    mask_loss_skip_unconditional: bool = False
    routing_weight: Amount = 0.1

    def __post_init__(self) -> None:
        if not self.localization_weight >= 0:
            raise ValueError(f"localization_weight must be at least 0, not {self.localization_weight}")
        if not self.routing_weight >= 0:
            raise ValueError(f"routing_weight must be at least 0, not {self.routing_weight}")
        if self.num_localized_blocks < 0:
            raise ValueError(f"num_localized_blocks must be at least 0, not {self.num_localized_blocks}")
        if not callable(self.localization) and self.localization not in get_args(Localization):
            known = ", ".join(get_args(Localization))
            what = f"not one of {known} nor a function (localization.localization)"
            raise ValueError(f"localization {self.localization!r} is {what}")
        if self.localization_keys not in get_args(Keys):
            raise ValueError(f"localization_keys must be text or all, not {self.localization_keys!r}")
        if self.normalize_localization and self.localization != "balanced_l1":
            raise ValueError(
                f"normalize_localization is for balanced_l1, not for {self.localization}: its maps are "
                "probabilities (localization.normalize_localization)"
            )
        if not self.pixel_weight >= 0:
            raise ValueError(f"pixel_weight must be at least 0, not {self.pixel_weight}")
        if not 0 <= self.mask_loss_probability <= 1:
            raise ValueError(f"mask_loss_probability must lie in [0, 1], not {self.mask_loss_probability}")
        if isinstance(self.localization_blocks, str):
            raise ValueError(
                f"localization_blocks is a list of names, not the name {self.localization_blocks!r}"
            )
        if self.localization_blocks is not None:
            object.__setattr__(self, "localization_blocks", tuple(self.localization_blocks))

    @property
    def layer_loss(self) -> LayerLoss:
        """The localization loss of one layer, with its settings."""
        if callable(self.localization):
            return self.localization
        if self.localization == "cross_entropy":
            return subject_cross_entropy
        if self.localization == "token_compose":
            return partial(token_compose, pixel_weight=self.pixel_weight)
        if self.localization in ("dice", "disentangle"):
            return {"dice": dice, "disentangle": disentangle}[self.localization]
        return partial(balanced_l1, normalize=self.normalize_localization)


def subject_union(subject_masks: Tensor, subject_present: Tensor, size: tuple[int, int]) -> Tensor:
    """Union of the subjects' masks at latent size (docs/method.md, eq. 3).

    Args:
        subject_masks: (B, K, H, W), 0 or 1.
        subject_present: (B, K) bool.
        size: Latent height and width.

    Returns:
        (B, 1, h, w) float in [0, 1], resized bilinearly; all zero for a sample without subjects.
    """
    if not subject_masks.shape[1]:
        return subject_masks.new_zeros(len(subject_masks), 1, *size, dtype=torch.float32)
    present = subject_present[:, :, None, None]
    union = (subject_masks.float() * present).amax(dim=1, keepdim=True)
    return F.interpolate(union, size=size, mode="bilinear", align_corners=False)


def denoising_loss(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """``mean((m · prediction − m · target)²)`` over **all** elements (docs/method.md, eq. 3).

    Args:
        prediction: (B, C, h, w) output of the backbone.
        target: (B, C, h, w) noise, or velocity where that is predicted.
        mask: Optional (B, 1, h, w) in [0, 1] that both are multiplied by; the mean stays over all elements.
        weight: Optional (B,) factor of each sample's loss.

    Returns:
        Scalar in float32.
    """
    error = prediction.float() - target.float()
    if mask is not None:
        error = error * mask
    if weight is not None:
        return (error.square().flatten(1).mean(dim=1) * weight).mean()
    return error.square().mean()


def map_size(num_positions: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an attention map, from the number of its positions.

    Args:
        num_positions: Positions of the layer, the latent size halved (rounding up) some number of times.
        latent_size: Latent height and width.

    Raises:
        ValueError: If no halving of the latent size has that many positions.
    """
    height, width = latent_size
    while height * width > num_positions:
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != num_positions:
        raise ValueError(f"an attention map of {num_positions} positions does not fit a {latent_size} latent")
    return height, width


def resize_masks(subject_masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (B, K, H, W) at the size of an attention map, (B, K, h, w) in [0, 1] (docs/method.md, eq. 4)."""
    masks = subject_masks.float()
    if not masks.shape[1]:  # interpolation takes no empty batch
        return masks.new_zeros(*masks.shape[:2], *size)
    return F.interpolate(masks, size=size, mode="bilinear", align_corners=False, antialias=True)


def balanced_l1(maps: Tensor, masks: Tensor, subject_present: Tensor, *, normalize: bool = False) -> Tensor:
    """Balanced L1 localization of one layer (docs/method.md, eq. 4).

    ``L_i = Σ(a_i · (1 − m_i)) / Σ(1 − m_i) − Σ(a_i · m_i) / Σ m_i``, mean over a sample's subjects, then over
    heads and batch.

    Args:
        maps: (B, heads, P, K) softmax columns of the subjects' tokens over P positions.
        masks: (B, K, P) subject masks at the layer's size, in [0, 1].
        subject_present: (B, K) bool.
        normalize: Divide each map by its maximum over positions first.

    Returns:
        Scalar in float32, in [-1, 1] where not normalized; 0 where no sample has a subject.
    """
    attention = maps.float()
    if normalize:
        attention = attention / (attention.amax(dim=2, keepdim=True) + _EPSILON)
    inside = masks.transpose(1, 2).unsqueeze(1)  # (B, 1, P, K)
    outside = 1 - inside
    loss = (attention * outside).sum(2) / (outside.sum(2) + _EPSILON)
    loss = loss - (attention * inside).sum(2) / (inside.sum(2) + _EPSILON)  # (B, heads, K)
    return _mean_over_subjects(loss, subject_present.unsqueeze(1)).mean()


def subject_cross_entropy(maps: Tensor, masks: Tensor, subject_present: Tensor) -> Tensor:
    """Cross-entropy of one layer over the subjects at each position.

    ``L = −Σ_p Σ_i m_i(p) · log(a_i(p) / Σ_j a_j(p)) / Σ_p Σ_i m_i(p)``: attention divided among the subjects
    alone, compared with the mask at the positions that belong to one; mean over heads and batch. After the
    attention loss of DreamCreature (Ng et al. 2023, arXiv 2311.15477), there over parts of one creature. It
    only separates subjects: a single subject has loss 0 wherever its attention lies.

    Args:
        maps: (B, heads, P, K) softmax columns of the subjects' tokens over P positions.
        masks: (B, K, P) subject masks at the layer's size, in [0, 1].
        subject_present: (B, K) bool.

    Returns:
        Scalar in float32, at least 0; 0 where no sample has a subject or a mask has no pixel.
    """
    present = subject_present[:, None, None, :]
    # Added before dividing, so that a position no subject attends to counts as evenly divided.
    attention = (maps.float() + _EPSILON) * present
    fraction = attention / (attention.sum(-1, keepdim=True) + (~present).all(-1, keepdim=True))
    surprise = -torch.where(present, fraction, 1.0).log()  # (B, heads, P, K)
    inside = masks.transpose(1, 2).unsqueeze(1) * present  # (B, 1, P, K)
    loss = (surprise * inside).sum((2, 3)) / (inside.sum((2, 3)) + _EPSILON)
    return loss.mean()


def token_compose(
    maps: Tensor, masks: Tensor, subject_present: Tensor, *, pixel_weight: float = 0.05
) -> Tensor:
    """TokenCompose's losses of one layer (Wang et al. 2024, arXiv 2312.03626, section 3).

    Token loss ``(1 − Σ_p a_i·m_i / Σ_p a_i)²``: all of a word's attention should lie in its mask, wherever in
    it. Pixel loss ``−mean_p(m_i·log a_i + (1 − m_i)·log(1 − a_i))``: every position of the mask should
    attend. Both are of averages over heads; mean over a sample's subjects, then over the batch.
    TokenCompose averages maps over the layers of a size, too, and makes resized masks 0 or 1 again.

    Args:
        maps: (B, heads, P, K) softmax columns of the subjects' tokens over P positions.
        masks: (B, K, P) subject masks at the layer's size, in [0, 1].
        subject_present: (B, K) bool.
        pixel_weight: Weight of the pixel loss beside the token loss.

    Returns:
        Scalar in float32, at least 0; 0 where no sample has a subject. Where a mask has no pixel, the token
        loss is 1 without gradient and the pixel loss still pushes attention down.
    """
    attention = maps.float()
    inside = masks.transpose(1, 2)  # (B, P, K)
    ratio = (attention * inside.unsqueeze(1)).sum(2) / (attention.sum(2) + _EPSILON)  # (B, heads, K)
    mean = attention.mean(1)  # (B, P, K)
    right = inside * (mean + _EPSILON).log() + (1 - inside) * (1 - mean + _EPSILON).log()
    pixel = -right.mean(1)  # (B, K)
    loss = (1 - ratio.mean(1)).square() + pixel_weight * pixel
    return _mean_over_subjects(loss, subject_present).mean()


def dice(maps: Tensor, masks: Tensor, subject_present: Tensor) -> Tensor:
    """Dice loss of one layer, as MultiCrafter localizes (2025, arXiv 2509.21953).

    ``1 − 2·Σ m_i·a_i / (Σ m_i + Σ a_i)`` on maps divided by their maximum; mean over a sample's
    subjects, then over heads and batch.

    Args:
        maps: (B, heads, P, K) softmax columns of the subjects' tokens over P positions.
        masks: (B, K, P) subject masks at the layer's size, in [0, 1].
        subject_present: (B, K) bool.

    Returns:
        Scalar in float32, in [0, 1]; 0 where no sample has a subject.
    """
    attention = maps.float()
    attention = attention / (attention.amax(dim=2, keepdim=True) + _EPSILON)
    inside = masks.transpose(1, 2).unsqueeze(1)  # (B, 1, P, K)
    overlap = 2 * (attention * inside).sum(2)
    loss = 1 - overlap / (attention.sum(2) + inside.sum(2) + _EPSILON)  # (B, heads, K)
    return _mean_over_subjects(loss, subject_present.unsqueeze(1)).mean()


def disentangle(maps: Tensor, masks: Tensor, subject_present: Tensor) -> Tensor:
    """Minus the Jensen–Shannon divergence between the subjects' maps of one layer, after MOSAIC.

    ``−(H(mean_i a_i) − mean_i H(a_i)) / log n`` of maps divided by their sum over positions, n subjects
    (2025, arXiv 2509.01977); mean over heads and batch. It pushes the subjects of a sample apart
    and does not look at masks: a single subject has loss 0.

    Args:
        maps: (B, heads, P, K) softmax columns of the subjects' tokens over P positions.
        masks: Not used.
        subject_present: (B, K) bool.

    Returns:
        Scalar in float32, in [-1, 0].
    """
    present = subject_present[:, None, :].float()  # (B, 1, K)
    count = present.sum(-1)
    shares = maps.float() / (maps.float().sum(2, keepdim=True) + _EPSILON)
    weights = present / count.clamp(min=1)[..., None]
    mixture = (shares * weights[:, :, None]).sum(-1)  # (B, heads, P)
    divergence = _entropy(mixture) - (_entropy(shares.transpose(2, 3)) * weights).sum(-1)
    several = count > 1
    return (-divergence / count.clamp(min=2).log() * several).mean()


def routing(choices: Tensor, masks: Tensor, subject_present: Tensor) -> Tensor:
    """Routing loss of one layer (docs/method.md, eq. 13).

    ``‖W ⊙ (ψ − M)‖² / P`` with W the positions of any subject's mask, mean over the batch.

    Args:
        choices: (B, 1, P, K) ψ, 1 for the subject that a position sees.
        masks: (B, K, P) subject masks at the layer's size, in [0, 1].
        subject_present: (B, K) bool.

    Returns:
        Scalar in float32, at least 0; 0 where no sample has a subject.
    """
    present = subject_present[:, None].float()
    inside = masks.transpose(1, 2) * present  # (B, P, K)
    wrong = inside.amax(-1, keepdim=True) * present * (choices[:, 0].float() - inside)
    return wrong.square().sum(-1).mean()


def _entropy(shares: Tensor) -> Tensor:
    """Entropy over the last dimension."""
    return -(shares * (shares + torch.finfo(torch.float32).tiny).log()).sum(-1)


def _mean_over_subjects(loss: Tensor, present: Tensor) -> Tensor:
    """Mean over the last dimension of those present, 0 where nobody is."""
    weight = present.float()
    return (loss * weight).sum(-1) / (weight.sum(-1) + _EPSILON)


def localization_loss(
    maps: Mapping[str, Tensor],
    subject_masks: Tensor,
    subject_present: Tensor,
    latent_size: tuple[int, int],
    layer_loss: LayerLoss = balanced_l1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over layers of a localization loss.

    Args:
        maps: Layer name to (B, heads, P, K) attention of the subjects' tokens.
        subject_masks: (B, K, H, W), 0 or 1.
        subject_present: (B, K) bool.
        latent_size: Latent height and width, which give the shape of the P positions.
        layer_loss: The loss of one layer.

    Returns:
        The scalar loss (0 without layers) and each layer's own, in float32.
    """
    per_layer: dict[str, Tensor] = {}
    resized: dict[int, Tensor] = {}
    for name, layer_maps in maps.items():
        positions = layer_maps.shape[2]
        if positions not in resized:
            size = map_size(positions, latent_size)
            resized[positions] = resize_masks(subject_masks, size).flatten(2)
        per_layer[name] = layer_loss(layer_maps, resized[positions], subject_present)
    if not per_layer:
        return subject_masks.new_zeros((), dtype=torch.float32), per_layer
    return torch.stack(list(per_layer.values())).mean(), per_layer
