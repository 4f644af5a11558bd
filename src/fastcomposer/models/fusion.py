"""Composed conditioning: a subject's image embedding fused into the embedding of its word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from fastcomposer.models.resampler import PatchStates, Resampler
from fastcomposer.models.routing import SubjectRouter
from fastcomposer.utils.ranges import Count

Mode = Literal["mlp", "add", "replace"]
Pooling = Literal["mean", "attention"]


@dataclass(frozen=True)
class FusionConfig:
    """The kind of a fusion; the defaults are the paper's.

    With the word's embedding c and the subject's e, a fusion gives ``LN(MLP2(x))``.

    Attributes:
        mode: ``mlp``: x = MLP1([c ; e]) + c; ``add``: x = c + e; ``replace``: x = e, the word is not seen.
        pooling: How several references of one subject become e: their ``mean``, or ``attention``
            (:class:`ReferenceAttention`). One reference is e itself either way.
        num_tokens: Tokens of each subject: its fused word, and ``num_tokens - 1`` further ones of a
            :class:`~fastcomposer.models.resampler.Resampler`, which take positions of the prompt's padding.
        routing: Whether each position of the image sees the tokens of one subject alone, see
            :class:`~fastcomposer.models.routing.SubjectRouter`.

    Raises:
        ValueError: If one of them is unknown or out of range.
    """

    mode: Mode = "mlp"
    pooling: Pooling = "mean"
    num_tokens: Count = 1
    routing: bool = False

    def __post_init__(self) -> None:
        for name, kinds in (("mode", Mode), ("pooling", Pooling)):
            if getattr(self, name) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise ValueError(f"method.model.fusion.{name}={getattr(self, name)!r}: one of {known}")
        if self.num_tokens < 1:
            raise ValueError(f"method.model.fusion.num_tokens={self.num_tokens}: at least 1, the word's")

    def metadata(self) -> dict[str, Any]:
        """Plain values for a file of weights; what goes beyond the paper is named where it is on."""
        values = asdict(self)
        further = {name for name in ("num_tokens", "routing") if values[name] == getattr(FusionConfig, name)}
        return {name: value for name, value in values.items() if name not in further}


class _Mlp(nn.Module):
    """``fc2(GELU(fc1(LN(x))))``, plus ``x`` where ``residual``."""

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int, *, residual: bool) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(in_dim)
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, out_dim)
        self.activation = nn.GELU()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_dim) to (..., out_dim)."""
        out = self.fc2(self.activation(self.fc1(self.layernorm(x))))
        return out + x if self.residual else out


class ReferenceAttention(nn.Module):
    """Weighted sum of a subject's references.

    ``e = Σ_n w_n · e_n`` with ``w = softmax_n(q · W LN(e_n) / √d)``. The query q starts at zero, so an
    untrained module gives the mean. The values are the embeddings themselves: one reference stays as it is.

    Args:
        embed_dim: Width d of the embeddings.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.query = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, embeds: Tensor, present: Tensor) -> Tensor:
        """Pool (..., N, d), of which (..., N) are present, to (..., d)."""
        scores = self.key(self.layer_norm(embeds)) @ (self.query * self.query.shape[0] ** -0.5)
        # The lowest number instead of -inf, which would give NaN where no reference is present.
        scores = scores.float().masked_fill(~present, torch.finfo(torch.float32).min)
        weights = scores.softmax(dim=-1).to(embeds.dtype)
        return (embeds * weights.unsqueeze(-1)).sum(-2)


class SubjectFusion(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Writes each subject's image embedding into the text embedding of its word (docs/method.md, eq. 2).

    ``c'_j = LN(MLP2(MLP1([c_j ; e]) + c_j))`` at the subject's token j; every other token stays as it is, bit
    for bit. Parameter names are those of ``postfuse_module`` in the released checkpoint. Saved pipelines name
    this class by its module, so neither can be renamed. Other kinds of fusion are for ablations, and have
    only the parameters that they use.

    Args:
        embed_dim: Width d of the text encoder.
        max_subjects: Most subjects in one prompt that the model was trained for; ``None`` for no limit.
        mode: See :class:`FusionConfig`.
        pooling: See :class:`FusionConfig`.
        image_dim: Width e of the image encoder's embedding, where it is another: it then goes through a
            projection from e to d of the fusion's own, which the released model has no need of.
        num_tokens: See :class:`FusionConfig`.
        patches: Number P and width w of the image encoder's states, which more tokens than one are made of.
        routed: Widths of the U-Net's cross-attention layers that are routed; none by default.

    Raises:
        ValueError: If a setting is out of range, or ``num_tokens`` has no ``patches``.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        embed_dim: int = 768,
        max_subjects: int | None = 4,
        mode: Mode = "mlp",
        pooling: Pooling = "mean",
        image_dim: int | None = None,
        num_tokens: int = 1,
        patches: tuple[int, int] | None = None,
        routed: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.kind = FusionConfig(mode, pooling, num_tokens, bool(routed))
        self.image_projection: nn.Linear | None = None
        if image_dim not in (None, embed_dim):
            self.image_projection = nn.Linear(image_dim, embed_dim, bias=False)
        if mode == "mlp":
            self.mlp1 = _Mlp(2 * embed_dim, embed_dim, embed_dim, residual=False)
        self.mlp2 = _Mlp(embed_dim, embed_dim, embed_dim, residual=True)
        self.layer_norm = nn.LayerNorm(embed_dim)
        self.reference_attention = (
            ReferenceAttention(image_dim or embed_dim) if pooling == "attention" else None
        )
        self.resampler: Resampler | None = None
        if num_tokens > 1:
            if patches is None:
                raise ValueError(f"num_tokens={num_tokens} needs the number and width of patches")
            self.resampler = Resampler(embed_dim, num_tokens - 1, patches)
        self.router = SubjectRouter(embed_dim, routed) if routed else None

    @property
    def text_dims(self) -> tuple[int, ...]:
        """Width of each text encoder whose states this fuses: (d,)."""
        return (self.config.embed_dim,)

    @property
    def image_dim(self) -> int:
        """Width e of the image embeddings that this takes."""
        return self.config.image_dim or self.config.embed_dim

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a saved fusion, as every diffusers model does."""
        return _with_own_memory(super().from_pretrained(*args, **kwargs))

    def fuse(self, word_embeds: Tensor, subject_embeds: Tensor) -> Tensor:
        """Fuse word embeddings (..., d) with subject embeddings (..., e) into (..., d)."""
        if self.image_projection is not None:
            subject_embeds = self.image_projection(subject_embeds)
        if self.kind.mode == "mlp":
            fused = self.mlp1(torch.cat([word_embeds, subject_embeds], dim=-1)) + word_embeds
        else:
            fused = subject_embeds + word_embeds if self.kind.mode == "add" else subject_embeds
        return self.layer_norm(self.mlp2(fused))

    @apply_forward_hook  # what is offloaded is fetched for a call, which this may be the first of
    def pool(self, embeds: Tensor, present: Tensor) -> Tensor:
        """Make one embedding of the references of each subject.

        Args:
            embeds: (..., N, d) projected image embeddings of N references.
            present: (..., N) bool; at least one where there is a subject.

        Returns:
            (..., d): with one reference its embedding, bit for bit.
        """
        return _pooled(embeds, present, self.reference_attention)

    def forward(
        self,
        text_embeds: Tensor,
        subject_embeds: Tensor,
        subject_token_idx: Tensor,
        subject_present: Tensor,
        patches: PatchStates | None = None,
        subject_token_idx_3: Tensor | None = None,
    ) -> Tensor:
        """Replace the word embedding of every subject, and add its further tokens to the padding.

        Args:
            text_embeds: (B, T, d) hidden states of the text encoder.
            subject_embeds: (B, K, e) projected image embeddings.
            subject_token_idx: (B, K) long, position of each subject's word; ignored in empty slots.
            subject_present: (B, K) bool, which slots hold a subject.
            patches: What further tokens are made of, where there are any.
            subject_token_idx_3: Ignored: there is no T5.

        Returns:
            (B, T, d) embeddings in the dtype of ``text_embeds``.
        """
        if subject_token_idx.shape[1] == 0:
            return text_embeds
        width = text_embeds.shape[-1]
        words = text_embeds.gather(1, subject_token_idx.unsqueeze(-1).expand(-1, -1, width))
        fused = self.fuse(words, subject_embeds.to(text_embeds.dtype)).to(text_embeds.dtype)
        found = _written(text_embeds, fused, subject_token_idx, subject_present)
        if self.resampler is None or patches is None:
            return found
        flat = (value.flatten(0, 1) for value in (words, patches.states.to(words.dtype), patches.present))
        tokens = self.resampler(*flat).unflatten(0, words.shape[:2]).flatten(1, 2).to(found.dtype)
        columns = patches.columns[..., 1 : self.kind.num_tokens].flatten(1)
        return found + _written(torch.zeros_like(found), tokens, columns, columns >= 0)


class PairedFusion(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A fusion for each of two CLIP text encoders, whose states lie side by side, and for T5 if there is one.

    A subject's word has the same position in both; each encoder's state of it is fused with the same image
    embedding. T5's states follow those of CLIP (Stable Diffusion 3), and the word has its own position there.
    Saved pipelines name this class by its module, so neither can be renamed.

    Args:
        embed_dims: Widths d₁ and d₂ of the CLIP text encoders, and d₃ of T5.
        max_subjects: See :class:`SubjectFusion`.
        mode: See :class:`FusionConfig`.
        pooling: See :class:`FusionConfig`; both take the pooled embedding.
        image_dim: Width e of the image encoder's embedding.
        num_tokens: See :class:`FusionConfig`; both CLIP encoders' parts of a token have a resampler each. Of
            T5's states the word's alone changes.
        patches: See :class:`SubjectFusion`.
        routed: See :class:`SubjectFusion`.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        embed_dims: Sequence[int] = (768, 1280),
        max_subjects: int | None = 4,
        mode: Mode = "mlp",
        pooling: Pooling = "mean",
        image_dim: int = 768,
        num_tokens: int = 1,
        patches: tuple[int, int] | None = None,
        routed: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.kind = FusionConfig(mode, pooling, num_tokens, bool(routed))
        self.first, self.second = (
            SubjectFusion(
                width,
                max_subjects,
                mode,
                image_dim=None if width == image_dim else image_dim,
                num_tokens=num_tokens,
                patches=patches,
            )
            for width in embed_dims[:2]
        )
        self.third: SubjectFusion | None = None
        if len(embed_dims) > 2:
            width = embed_dims[2]
            self.third = SubjectFusion(
                width, max_subjects, mode, image_dim=None if width == image_dim else image_dim
            )
        self.reference_attention = ReferenceAttention(image_dim) if pooling == "attention" else None
        self.router = SubjectRouter(sum(embed_dims), routed) if routed else None

    @property
    def text_dims(self) -> tuple[int, ...]:
        """Width of each text encoder whose states this fuses: (d₁, d₂), or (d₁, d₂, d₃)."""
        return tuple(self.config.embed_dims)

    @property
    def image_dim(self) -> int:
        """Width e of the image embeddings that this takes."""
        return self.config.image_dim

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a saved fusion, as every diffusers model does."""
        return _with_own_memory(super().from_pretrained(*args, **kwargs))

    @apply_forward_hook  # what is offloaded is fetched for a call, which this may be the first of
    def pool(self, embeds: Tensor, present: Tensor) -> Tensor:
        """Make one embedding of the references of each subject: :meth:`SubjectFusion.pool`."""
        return _pooled(embeds, present, self.reference_attention)

    def forward(
        self,
        text_embeds: Tensor,
        subject_embeds: Tensor,
        subject_token_idx: Tensor,
        subject_present: Tensor,
        patches: PatchStates | None = None,
        subject_token_idx_3: Tensor | None = None,
    ) -> Tensor:
        """Replace the word embedding of every subject in each encoder's states.

        Args:
            text_embeds: (B, T, d₁ + d₂); with zeros beside, or with T5's states after them, (B, T, d₃).
            subject_embeds: See :meth:`SubjectFusion.forward`.
            subject_token_idx: See :meth:`SubjectFusion.forward`.
            subject_present: See :meth:`SubjectFusion.forward`.
            patches: See :meth:`SubjectFusion.forward`.
            subject_token_idx_3: (B, K) long, position of each subject's word among T5's states, where there
                are some.
        """
        first, second = self.text_dims[:2]
        rest = text_embeds.shape[-1] - first - second
        parts = text_embeds.split((first, second, rest), dim=-1)
        fused = [
            fusion(part, subject_embeds, subject_token_idx, subject_present, patches)
            for fusion, part in zip((self.first, self.second), parts, strict=False)
        ]
        joined = torch.cat([*fused, parts[2]], dim=-1)
        if self.third is None or subject_token_idx_3 is None:
            return joined
        return self.third(joined, subject_embeds, subject_token_idx_3, subject_present)


Fusion = SubjectFusion | PairedFusion


def _written(text_embeds: Tensor, values: Tensor, positions: Tensor, present: Tensor) -> Tensor:
    """Replace states (B, T, d) at positions (B, S) by values (B, S, d), where these are present."""
    # Each token looks up its slot instead of each slot writing its token: empty slots then need no position
    # to write to, and no shape depends on values that the host would have to wait for.
    tokens = torch.arange(text_embeds.shape[1], device=text_embeds.device)
    owners = (tokens[None, :, None] == positions[:, None, :]) & present[:, None, :]
    slot = owners.int().argmax(dim=-1, keepdim=True)
    found = values.gather(1, slot.expand(-1, -1, text_embeds.shape[-1]))
    return found.where(owners.any(-1, keepdim=True), text_embeds)


def _pooled(embeds: Tensor, present: Tensor, attention: ReferenceAttention | None) -> Tensor:
    if attention is not None:
        return attention(embeds, present)
    if embeds.shape[-2] == 1:
        return embeds.squeeze(-2)
    weights = present.unsqueeze(-1).to(embeds.dtype)
    return (embeds * weights).sum(-2) / weights.sum(-2).clamp(min=1)


def _with_own_memory(loaded: Any) -> Any:
    """Copy the weights that ``from_pretrained`` has mapped from a file.

    At a file's odd addresses, products with a single row round differently from those of the saved model.
    """
    for parameter in (loaded[0] if isinstance(loaded, tuple) else loaded).parameters():
        parameter.data = parameter.data.clone()
    return loaded
