"""Routing: each position of the image sees the tokens of one subject."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from fastcomposer.losses import map_size
from fastcomposer.models.attention_capture import cross_attention_layers
from fastcomposer.models.resampler import subject_states
from fastcomposer.utils.rng import Source, uniform

_HIDDEN = 1e-6  # odds of a token that another subject's position sees


@dataclass(frozen=True)
class RoutingPlan:
    """Whose tokens are where in one U-Net call.

    Attributes:
        columns: (B, K) long, positions of the subjects' words, or (B, K, M) of their tokens, -1 for none.
        present: (B, K) bool.
        size: Height h and width w of the latents.
        noise: (B, K, h, w) Gumbel noise of a training step; ``None`` takes the maximum.
    """

    columns: Tensor
    present: Tensor
    size: tuple[int, int]
    noise: Tensor | None = None

    def with_noise(self, generator: Source) -> RoutingPlan:
        """Draw the noise of a training step."""
        draws = uniform((*self.present.shape, *self.size), self.present.device, generator)
        return replace(self, noise=-(-draws.clamp(1e-6, 1 - 1e-6).log()).log())

    def last_of(self, rows: int) -> RoutingPlan:
        """The plan of a call of so many rows, of which the last B are these; the others route nothing."""
        before = rows - len(self.present)
        columns = torch.cat([self.columns.new_zeros(before, *self.columns.shape[1:]), self.columns])
        absent = self.present.new_zeros(before, self.present.shape[1])
        return replace(self, columns=columns, present=torch.cat([absent, self.present]))


class SubjectRouter(nn.Module):
    """Chooses a subject at each position of every cross-attention layer (docs/method.md, eq. 12).

    After the ID router of UniPortrait (He et al. 2024, arXiv 2408.05939), there over separate attentions.

    Args:
        token_dim: Width d of the prompt's states.
        layers: Width of the hidden states of each cross-attention layer, in the order of
            :func:`~fastcomposer.models.attention_capture.cross_attention_layers`.
        width: Width of queries and keys.
    """

    def __init__(self, token_dim: int, layers: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.query = nn.ModuleList(_mlp(hidden_dim, width) for hidden_dim in layers)
        self.key = nn.ModuleList(_mlp(token_dim, width) for _ in layers)

    @contextmanager
    def route(self, unet: Any, plan: RoutingPlan) -> Iterator[dict[str, Tensor]]:
        """Route the U-Net calls inside the ``with`` block, whatever processors are set.

        Yields:
            Layer name to (B, 1, positions, K), 1 for the subject that is seen, filled by the call; gradients
            are those of its probabilities.
        """
        choices: dict[str, Tensor] = {}
        names = [name for block in cross_attention_layers(unet).values() for name in block]
        unet = getattr(unet, "_orig_mod", unet)
        handles = [
            unet.get_submodule(name).register_forward_pre_hook(
                partial(self._mask, number, plan, partial(choices.__setitem__, name)), with_kwargs=True
            )
            for number, name in enumerate(names)
        ]
        try:
            yield choices
        finally:
            for handle in handles:
                handle.remove()

    def choose(self, layer: int, hidden: Tensor, tokens: Tensor, plan: RoutingPlan) -> tuple[Tensor, Tensor]:
        """Choose a subject for hidden states (B, P, C) and prompt states (B, T, d).

        Returns:
            (B, P, K), 1 for the subject and 0 for the others, with the gradients of their probabilities; and
            the logarithms of these.
        """
        columns = plan.columns if plan.columns.ndim == 3 else plan.columns[..., None]
        mean = subject_states(tokens, columns).sum(2) / (columns >= 0).sum(2, keepdim=True).clamp(min=1)
        query, key = self.query[layer](hidden).float(), self.key[layer](mean).float()
        logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        if plan.noise is not None:
            size = map_size(hidden.shape[1], plan.size)
            logits = logits + F.interpolate(plan.noise, size, mode="nearest").flatten(2).transpose(1, 2)
        logits = logits.masked_fill(~plan.present[:, None], torch.finfo(logits.dtype).min)
        soft = logits.softmax(-1)
        hard = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(soft)
        return hard + (soft - soft.detach()), logits.log_softmax(-1)

    def _mask(
        self,
        layer: int,
        plan: RoutingPlan,
        keep: Callable[[Tensor], Any],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Hide the tokens of the subjects that are not chosen, by the layer's attention mask."""
        hidden, tokens = args[0], kwargs["encoder_hidden_states"]
        choice, logarithms = self.choose(layer, hidden, tokens, plan)
        keep(choice[:, None])
        columns = plan.columns.flatten(2) if plan.columns.ndim == 3 else plan.columns[..., None]
        there = ((columns >= 0) & plan.present[..., None]).to(choice)
        owners = choice.new_zeros(*columns.shape[:2], tokens.shape[1])
        owners = owners.scatter_add(2, columns.clamp(min=0), there)  # (B, K, T)
        # Gradients are those of the logarithms: of the choice, log has a slope of 1 / _HIDDEN at 0.
        shown = (choice.detach() * (1 - _HIDDEN) + _HIDDEN).log() + (logarithms - logarithms.detach())
        mask = (shown @ owners).to(hidden.dtype)
        given = kwargs.get("attention_mask")
        return args, {**kwargs, "attention_mask": mask if given is None else mask + given}


def routed_widths(unet: Any) -> tuple[int, ...]:
    """Width of the hidden states of each cross-attention layer of a U-Net."""
    layers = cross_attention_layers(unet)
    unet = getattr(unet, "_orig_mod", unet)
    if not isinstance(unet, UNet2DConditionModel):
        raise ValueError("method.model.fusion.routing: for the cross-attention of a U-Net alone")
    return tuple(unet.get_submodule(name).query_dim for block in layers.values() for name in block)


def _mlp(in_dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, width), nn.GELU(), nn.Linear(width, width))
