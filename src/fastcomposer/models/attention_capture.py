"""Capture of the attention that the subjects' words receive from the image, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    AttnProcessorNPU,
    FusedAttnProcessor2_0,
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from fastcomposer.losses import Keys, map_size


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, subject_token_idx: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend by the fused kernel, and keep of the softmax map the subjects' columns alone.

    The backward pass computes the map again, for both results together; in between, nothing of the T columns
    is held.

    Args:
        query: (B, heads, positions, d).
        key: (B, heads, T, d).
        value: (B, heads, T, d).
        mask: Added to the logits, or ``None``.
        subject_token_idx: (B, K) long, the columns; or (B, K, M), whose sum is a subject's, -1 for none.

    Returns:
        The output (B, heads, positions, d), and the probabilities (B, heads, positions, K) in float32.
    """
    return _FusedAttention.apply(query, key, value, mask, subject_token_idx)


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, subject_token_idx: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend with the full softmax map, as the paper writes it: twin of :func:`fused_attention`."""
    with torch.autocast(query.device.type, enabled=False):
        probabilities = _logits(query, key, mask).softmax(dim=-1)
    output = probabilities.to(value.dtype) @ value
    return output, _subject_maps(probabilities, subject_token_idx)


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, subject_token_idx: Tensor
    ) -> tuple[Tensor, Tensor]:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        with torch.autocast(query.device.type, enabled=False):
            probabilities = _logits(query, key, mask).softmax(dim=-1)
        maps = _subject_maps(probabilities, subject_token_idx)
        ctx.save_for_backward(query, key, value, mask, subject_token_idx, output, maps)
        ctx.set_materialize_grads(False)
        return output, maps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None, grad_maps: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, mask, subject_token_idx, output, maps = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            probabilities = _logits(query, key, mask).softmax(dim=-1)
            # A softmax gives p·(g − Σ p·g) of the gradient g of its map, whose sum needs no map.
            grad_value = None
            if grad_output is None:
                gradient = torch.zeros_like(probabilities)
            else:
                grad_output = grad_output.float()
                grad_value = (probabilities.transpose(-1, -2) @ grad_output).to(value.dtype)
                gradient = grad_output @ value.float().transpose(-1, -2)
                gradient.sub_((grad_output * output.float()).sum(dim=-1, keepdim=True))
            if grad_maps is None:
                gradient.mul_(probabilities)
            else:
                columns = grad_maps * maps
                gradient.sub_(columns.sum(dim=-1, keepdim=True)).mul_(probabilities)
                if subject_token_idx.ndim == 3:
                    index, there = _summed_columns(probabilities, subject_token_idx)
                    columns = probabilities.gather(-1, index) * there
                    columns = columns * grad_maps.repeat_interleave(subject_token_idx.shape[2], dim=-1)
                else:
                    index = _columns(gradient, subject_token_idx)
                gradient.scatter_add_(-1, index, columns)
            grad_mask = None
            if ctx.needs_input_grad[3]:
                grad_mask = gradient.clone().sum_to_size(mask.shape).to(mask.dtype)
            gradient.mul_(query.shape[-1] ** -0.5)
            grad_query = (gradient @ key.float()).to(query.dtype)
            grad_key = (gradient.transpose(-1, -2) @ query.float()).to(key.dtype)
        return grad_query, grad_key, grad_value, grad_mask, None


def _logits(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    # In float32: columns far below the maximum vanish in half precision, and with them their gradient.
    logits = query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5
    return logits if mask is None else logits + mask.float()


def _columns(scores: Tensor, subject_token_idx: Tensor) -> Tensor:
    """Index of the subjects' columns of (B, heads, positions, T)."""
    return subject_token_idx[:, None, None, :].expand(*scores.shape[:3], -1)


def _summed_columns(scores: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Index of columns (B, K, M) of (B, heads, positions, T), and which of them (B, 1, 1, K·M) there are."""
    flat = columns.flatten(1)
    return _columns(scores, flat.clamp(min=0)), (flat >= 0)[:, None, None, :]


def _subject_maps(probabilities: Tensor, subject_token_idx: Tensor) -> Tensor:
    """Columns (B, heads, positions, K) of the subjects, each the sum of those of its tokens."""
    if subject_token_idx.ndim == 2:
        return probabilities.gather(-1, _columns(probabilities, subject_token_idx))
    index, there = _summed_columns(probabilities, subject_token_idx)
    return (probabilities.gather(-1, index) * there).unflatten(-1, subject_token_idx.shape[1:]).sum(-1)


Implementation = Literal["fused", "explicit"]
# They differ in speed and memory alone, so that ours may replace them.
_PLAIN = (
    AttnProcessor,
    AttnProcessor2_0,
    AttnProcessorNPU,
    FusedAttnProcessor2_0,
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
_BLOCK = re.compile(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+|transformer_blocks\.\d+)\.")


def cross_attention_layers(backbone: Any) -> dict[str, list[str]]:
    """Names of the modules that attend from image to text by block, in the order of the blocks.

    Of a U-Net they are the cross-attention from the first down block to the last up block; of a transformer
    the joint attention.
    """
    backbone = getattr(backbone, "_orig_mod", backbone)  # torch.compile wraps it
    names = [
        name
        for part in ("down_blocks", "mid_block", "up_blocks", "transformer_blocks")
        for name, module in backbone.named_modules()
        if name.startswith(part) and isinstance(module, Attention)
        # A block with two self-attentions also calls its second one attn2.
        if (name.endswith(".attn2") and module.is_cross_attention) or _is_joint(module)
    ]
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(_BLOCK.match(name)[1], []).append(name)  # type: ignore[index]
    return layers


def _is_joint(module: Attention) -> bool:
    """Whether a module attends from and to image and text together."""
    return getattr(module, "add_q_proj", None) is not None


def select_blocks(backbone: Any, names: Sequence[str] | None = None, num_blocks: int = 5) -> list[str]:
    """Blocks to localize: those named, or the middle ones.

    Args:
        backbone: The U-Net or transformer.
        names: Blocks such as ``down_blocks.1``, ``mid_block`` or ``transformer_blocks.2``; ``None`` for the
            middle ``num_blocks``.
        num_blocks: How many of the blocks with cross-attention to take around the middle one; all where the
            model has fewer (docs/method.md, eq. 4: 5 of 7).

    Raises:
        ValueError: If a named block does not exist or has no cross-attention, or no block has any.
    """
    blocks = list(cross_attention_layers(backbone))
    if not blocks:
        raise ValueError("this model has no block with cross-attention")
    if names is None:
        count = min(num_blocks, len(blocks))
        start = (len(blocks) - count) // 2
        return blocks[start : start + count]
    unknown = [name for name in names if name not in blocks]
    if unknown:
        raise ValueError(
            f"localization_blocks {unknown} are no cross-attention blocks of this model: {blocks}"
        )
    return [block for block in blocks if block in names]


@dataclass(frozen=True)
class _Recording:
    """One backbone call whose maps are wanted; ``maps`` is ``None`` while activations are recomputed."""

    subject_token_idx: Tensor
    maps: dict[str, Tensor] | None
    detach: bool


class AttentionCapture:
    """Collects the attention that chosen layers pay to the subjects' tokens, for one backbone call at a time.

    Only the chosen layers get a processor of ours, and only while something is recorded: at other times the
    model is as it was. No map outlives the dictionary that :meth:`record` hands out.

    Args:
        backbone: The U-Net or transformer to watch.
        blocks: Names of blocks (see :func:`select_blocks`).
        implementation: ``fused`` takes the layer's output from fused attention and keeps, of the softmax map,
            the subjects' columns; ``explicit`` keeps all of it. Both give the same.
        keys: What the attention of an image's position sums to 1 over in joint attention: ``text`` tokens, as
            in cross-attention, or ``all``, which is the attention itself.

    Raises:
        ValueError: If a block, the implementation or the keys do not exist.
    """

    def __init__(
        self,
        backbone: Any,
        blocks: Sequence[str],
        implementation: Implementation = "fused",
        keys: Keys = "text",
    ) -> None:
        if keys not in get_args(Keys):
            raise ValueError(f"keys must be 'text' or 'all', not {keys!r}")
        if implementation not in ("fused", "explicit"):
            raise ValueError(f"implementation must be 'fused' or 'explicit', not {implementation!r}")
        layers = cross_attention_layers(backbone)
        self.layers = tuple(name for block in select_blocks(backbone, blocks) for name in layers[block])
        self.implementation, self.keys = implementation, keys
        backbone = getattr(backbone, "_orig_mod", backbone)
        self._modules = {name: cast(Attention, backbone.get_submodule(name)) for name in self.layers}
        if keys == "all" and not all(map(_is_joint, self._modules.values())):
            raise ValueError("localization.localization_keys=all: for joint attention alone")
        self._recording: _Recording | None = None

    @contextmanager
    def record(self, subject_token_idx: Tensor, *, detach: bool = False) -> Iterator[dict[str, Tensor]]:
        """Collect the maps of the backbone call inside the ``with`` block.

        Args:
            subject_token_idx: (B, K) long, positions of the subjects' words, B as in the backbone call; or
                (B, K, M), positions of their tokens, whose columns are added up, -1 for none.
            detach: Whether the maps are without gradients.

        Yields:
            Layer name to (B, heads, positions, K) attention in float32, filled by the call.

        Raises:
            RuntimeError: If a layer has a processor that computes something else, such as an IP-Adapter's.
        """
        for name, module in self._modules.items():
            processor: Any = module.processor
            plain = type(processor) in (*_PLAIN, SubjectAttnProcessor, JointSubjectAttnProcessor)
            # diffusers' fused joint attention leaves out the norms of query and key.
            unnormed = type(processor) is FusedJointAttnProcessor2_0 and module.norm_q is not None
            if not plain or unnormed:
                raise RuntimeError(
                    f"attention of {name} cannot be captured: a {type(processor).__name__} is set there, and "
                    "without it the model would compute something else: remove it first"
                )
        maps: dict[str, Tensor] = {}
        with self._active(_Recording(subject_token_idx, maps, detach)):
            yield maps

    @contextmanager
    def _active(self, recording: _Recording) -> Iterator[None]:
        outer, self._recording = self._recording, recording
        processors = {name: module.processor for name, module in self._modules.items()}
        try:
            for name, module in self._modules.items():
                processor: Any = SubjectAttnProcessor(name, recording, self.implementation)
                if _is_joint(module):
                    processor = JointSubjectAttnProcessor(name, recording, self.implementation, self.keys)
                module.set_processor(processor)
            yield
        finally:
            self._recording = outer
            for name, module in self._modules.items():
                module.set_processor(processors[name])

    def checkpoint(self, function: Callable[..., Any], *args: Any) -> Any:
        """Gradient checkpointing for ``backbone.enable_gradient_checkpointing`` that repeats recordings.

        The backward pass computes a block again after :meth:`record` has ended. It must then repeat the maps,
        whose gradients it needs, without collecting them a second time.
        """
        if self._recording is None:
            return checkpoint(function, *args, use_reentrant=False)
        repeated = replace(self._recording, maps=None)

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), self._active(repeated)

        return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


class SubjectAttnProcessor:
    """Cross-attention of a layer by name that also records the columns of the subjects' tokens."""

    def __init__(self, name: str, recording: _Recording, implementation: Implementation) -> None:
        self.name = name
        self.recording = recording
        self.attend: Callable[..., tuple[Tensor, Tensor]] = (
            fused_attention if implementation == "fused" else explicit_attention
        )

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend from (B, positions, C) to (B, T, d); returns (B, positions, C)."""
        if not isinstance(encoder_hidden_states, Tensor):
            raise RuntimeError(f"attention of {self.name} cannot be captured together with an IP-Adapter")
        if attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
        query, key, value = (
            projection.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if attention_mask is not None:
            batch, tokens = encoder_hidden_states.shape[:2]
            attention_mask = attn.prepare_attention_mask(attention_mask, tokens, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        output, maps = self.attend(query, key, value, attention_mask, self.recording.subject_token_idx)
        self.keep(maps)
        output = output.transpose(1, 2).flatten(2).to(query.dtype)
        output = attn.to_out[1](attn.to_out[0](output))
        if attn.residual_connection:
            output = output + hidden_states
        return output / attn.rescale_output_factor

    def keep(self, maps: Tensor) -> None:
        """Record maps (B, heads, positions, K), unless they are only repeated."""
        if self.recording.maps is not None:
            self.recording.maps[self.name] = maps.detach() if self.recording.detach else maps


class JointSubjectAttnProcessor(SubjectAttnProcessor):
    """Joint attention of a layer that also records what the image pays to the subjects' tokens."""

    def __init__(self, name: str, recording: _Recording, implementation: Implementation, keys: Keys) -> None:
        super().__init__(name, recording, implementation)
        self.keys = keys

    def __call__(  # type: ignore[override]
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **unused: Any
    ) -> tuple[Tensor, Tensor]:
        """Attend among (B, positions, C) of the image and (B, T, C) of the text; returns both."""
        if unused.get("attention_mask") is not None or "ip_hidden_states" in unused:
            raise RuntimeError(f"attention of {self.name} cannot be captured with a mask or an IP-Adapter")
        image = _heads(attn, hidden_states, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        added = ("norm_added_q", "norm_added_k")
        text = _heads(attn, encoder_hidden_states, ("add_q_proj", "add_k_proj", "add_v_proj"), added)
        query, key, value = (torch.cat(pair, dim=2) for pair in zip(image, text, strict=True))
        columns, positions = self.recording.subject_token_idx, hidden_states.shape[1]
        if self.keys == "text":
            output = F.scaled_dot_product_attention(query, key, value)
            maps = self.attend(image[0], *text[1:], None, columns)[1]
        else:
            columns = torch.where(columns < 0, columns, columns + positions)
            output, maps = self.attend(image[0], key, value, None, columns)
            output = torch.cat([output, F.scaled_dot_product_attention(text[0], key, value)], dim=2)
        self.keep(maps)
        output = output.transpose(1, 2).flatten(2).to(query.dtype)
        found, found_text = output[:, :positions], output[:, positions:]
        if not attn.context_pre_only:
            found_text = attn.to_add_out(found_text)
        return attn.to_out[1](attn.to_out[0](found)), found_text


def _heads(
    attn: Attention, states: Tensor, projections: Sequence[str], norms: Sequence[str]
) -> tuple[Tensor, ...]:
    """Query, key and value (B, heads, N, d) of states (B, N, C), the first two normalized where they are."""
    query, key, value = (
        getattr(attn, name)(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for name in projections
    )
    norm_query, norm_key = (getattr(attn, name) for name in norms)
    return (
        query if norm_query is None else norm_query(query),
        key if norm_key is None else norm_key(key),
        value,
    )


class AttentionAverage:
    """Attention to the subjects' words during sampling, averaged over groups of backbone calls.

    Args:
        backbone: The U-Net or transformer.
        subject_token_idx: (N, K) long, positions of the subjects' words of N images, or (N, K, M) of their
            tokens (see :meth:`AttentionCapture.record`).
        subject_present: (N, K) bool.
        latent_size: Height h and width w of the latents.
        num_calls: Number of backbone calls.
        num_groups: Number G of groups of consecutive calls.
    """

    def __init__(
        self,
        backbone: Any,
        subject_token_idx: Tensor,
        subject_present: Tensor,
        latent_size: tuple[int, int],
        num_calls: int,
        num_groups: int,
    ) -> None:
        self._capture = AttentionCapture(backbone, select_blocks(backbone))
        self._positions, self._present = subject_token_idx, subject_present
        self._latent_size, self._num_calls = latent_size, num_calls
        shape = (int(num_groups), *subject_present.shape, *latent_size)
        self._sums = torch.zeros(shape, device=subject_token_idx.device)
        self._counts = [0] * int(num_groups)

    @contextmanager
    def step(self, call: int, batch_size: int) -> Iterator[None]:
        """Add the maps of one backbone call.

        Args:
            call: Index of the call.
            batch_size: Rows of the call, a multiple of N; the last N are the images', others are guidance.
        """
        images = len(self._positions)
        repeats = (batch_size // images, *[1] * (self._positions.ndim - 1))
        with self._capture.record(self._positions.repeat(repeats), detach=True) as maps:
            yield
        resized = []
        for layer in maps.values():
            size = map_size(layer.shape[2], self._latent_size)
            mean = layer[-images:].mean(dim=1).transpose(1, 2).unflatten(-1, size)  # (N, K, h', w')
            resized.append(F.interpolate(mean, size=self._latent_size, mode="bilinear", align_corners=False))
        group = call * len(self._counts) // self._num_calls
        self._sums[group] += torch.stack(resized).mean(dim=0) * self._present[..., None, None]
        self._counts[group] += 1

    def result(self) -> Tensor:
        """(N, G, K, h, w) float32 on the CPU; zero in empty slots and in groups without a call."""
        counts = torch.tensor(self._counts).clamp(min=1)
        return (self._sums.cpu() / counts[:, None, None, None, None]).transpose(0, 1)
