from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor

from fastcomposer.models.attention_capture import (
    AttentionAverage,
    AttentionCapture,
    SubjectAttnProcessor,
    explicit_attention,
    fused_attention,
    select_blocks,
)

GOLDEN = Path(__file__).parents[1] / "golden"

MIDDLE = ["down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.1", "up_blocks.2"]


def make_unet(**changes: Any) -> UNet2DConditionModel:
    config = json.loads((GOLDEN / "expected.json").read_text())["config"]["unet"]
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**config, **changes})


def small_unet(**changes: Any) -> UNet2DConditionModel:
    """Two stages, attention in the inner one and in the middle."""
    settings = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "sample_size": 8,
    }
    return make_unet(**{**settings, **changes})


def call(unet: UNet2DConditionModel, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = unet.config.sample_size
    return (
        torch.randn(batch, 4, size, size, generator=generator),
        torch.tensor([10, 700])[:batch],
        torch.randn(batch, 77, 32, generator=generator),
    )


POSITIONS = torch.tensor([[3, 9, 0], [5, 0, 76]])


def test_default_blocks_are_the_five_in_the_middle() -> None:
    unet = make_unet()
    assert select_blocks(unet) == MIDDLE
    assert select_blocks(unet, num_blocks=1) == ["mid_block"]
    assert select_blocks(unet, num_blocks=3) == ["down_blocks.2", "mid_block", "up_blocks.1"]
    assert len(select_blocks(unet, num_blocks=99)) == 7
    assert select_blocks(unet, num_blocks=0) == []
    assert select_blocks(small_unet()) == ["down_blocks.1", "mid_block", "up_blocks.0"]
    assert select_blocks(small_unet(mid_block_type=None)) == ["down_blocks.1", "up_blocks.0"]


def test_blocks_by_name() -> None:
    unet = make_unet()
    assert select_blocks(unet, ["up_blocks.3", "mid_block"]) == ["mid_block", "up_blocks.3"]
    with pytest.raises(
        ValueError, match=r"\['up_blocks.0', 'middle'\] are no .*'down_blocks.0'.*'up_blocks.3'"
    ):
        select_blocks(unet, ["up_blocks.0", "mid_block", "middle"])


def test_processors_are_set_on_chosen_layers_only_and_put_back() -> None:
    unet = make_unet()
    before = dict(unet.attn_processors)
    capture = AttentionCapture(unet, ["mid_block"])
    with pytest.raises(KeyboardInterrupt), capture.record(POSITIONS):
        ours = [name for name, p in unet.attn_processors.items() if isinstance(p, SubjectAttnProcessor)]
        raise KeyboardInterrupt
    assert ours == ["mid_block.attentions.0.transformer_blocks.0.attn2.processor"]
    assert unet.attn_processors == before


def test_processors_that_compute_something_else_are_not_replaced() -> None:
    class Doubled(AttnProcessor2_0):
        def __call__(self, *args: Any, **options: Any) -> Any:
            return 2 * super().__call__(*args, **options)

    unet = small_unet()
    capture = AttentionCapture(unet, ["mid_block"])
    for processor in (AttnProcessor(), SlicedAttnProcessor(1), AttnProcessor2_0()):
        unet.set_attn_processor(processor)
        with torch.no_grad(), capture.record(POSITIONS) as maps:
            unet(*call(unet))
        assert len(maps) == 1
    unet.set_attn_processor(Doubled())
    with (
        pytest.raises(RuntimeError, match=r"attention of mid_block\..*attn2 cannot be captured: a Doubled"),
        capture.record(POSITIONS),
    ):
        pass
    assert all(type(processor) is Doubled for processor in unet.attn_processors.values())


def test_unet_computes_the_same_with_and_without_capture() -> None:
    unet = small_unet()
    plain = unet(*call(unet)).sample
    capture = AttentionCapture(unet, select_blocks(unet))
    assert torch.equal(unet(*call(unet)).sample, plain)
    with capture.record(POSITIONS):
        assert torch.equal(unet(*call(unet)).sample, plain)


def test_a_compiled_unet_is_watched_as_it_is() -> None:
    unet = small_unet()
    found = []
    for each in (unet, torch.compile(unet, backend="eager")):
        assert select_blocks(each) == select_blocks(unet)
        with torch.no_grad(), AttentionCapture(each, ["mid_block"]).record(POSITIONS) as maps:
            output = each(*call(unet)).sample
        found.append((output, maps))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys() and len(found[0][1]) == 1
    torch.testing.assert_close(found[0][1], found[1][1])


def test_maps_are_columns_of_the_softmax() -> None:
    unet = small_unet()
    capture = AttentionCapture(unet, ["mid_block"])
    with capture.record(torch.arange(77).expand(2, -1)) as maps:
        unet(*call(unet))
    (everything,) = maps.values()
    heads = unet.get_submodule(capture.layers[0]).heads
    assert everything.shape == (2, heads, 16, 77)
    torch.testing.assert_close(everything.sum(-1), torch.ones(2, heads, 16))
    with capture.record(POSITIONS) as maps:
        unet(*call(unet))
    (some,) = maps.values()
    for row in range(2):
        torch.testing.assert_close(some[row], everything[row][..., POSITIONS[row]])


def test_gradient_checkpointing_collects_once_and_gives_the_same_gradients() -> None:
    results = []
    for checkpointed in (False, True):
        unet = small_unet()
        capture = AttentionCapture(unet, select_blocks(unet))
        if checkpointed:
            unet.enable_gradient_checkpointing(capture.checkpoint)
        unet.train()
        # Two forward passes before one backward pass, with different subjects.
        recorded, loss = [], torch.zeros(())
        for positions in (POSITIONS, POSITIONS + 1 - 2 * (POSITIONS > 70)):
            with capture.record(positions) as maps:
                output = unet(*call(unet)).sample
            recorded.append((maps, dict(maps)))
            loss = loss + output.mean() + sum(m[..., 0].square().mean() for m in maps.values())
        loss.backward()
        for maps, before in recorded:
            assert maps.keys() == before.keys() == set(capture.layers)
            assert all(maps[name] is before[name] for name in maps)
        results.append({name: p.grad for name, p in unet.named_parameters()})
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_detached_maps_carry_no_gradient() -> None:
    unet = small_unet()
    for implementation in ("fused", "explicit"):
        capture = AttentionCapture(unet, ["mid_block"], implementation)  # type: ignore[arg-type]
        with capture.record(POSITIONS, detach=True) as maps:
            output = unet(*call(unet)).sample
        assert output.requires_grad and not any(m.requires_grad for m in maps.values())


def test_average_is_the_mean_over_heads_layers_and_steps() -> None:
    unet = small_unet()
    present = torch.tensor([[True, True, False], [True, False, True]])
    average = AttentionAverage(unet, POSITIONS, present, (8, 8), num_calls=3, num_groups=2)
    noise, timesteps, text = call(unet)
    with torch.no_grad():
        for index in range(3):
            with average.step(index, 4):  # twice the images: guidance first
                unet(torch.cat([noise, noise]), timesteps.repeat(2) + index, torch.cat([text * 0, text]))
    assert not any(isinstance(p, SubjectAttnProcessor) for p in unet.attn_processors.values())
    result = average.result()
    assert result.shape == (2, 2, 3, 8, 8)
    assert torch.equal(result.sum(dim=(1, 3, 4)) > 0, present)
    capture = AttentionCapture(unet, select_blocks(unet))
    with torch.no_grad(), capture.record(POSITIONS) as maps:
        unet(noise, timesteps + 2, text)
    expected = torch.zeros(2, 3, 8, 8)
    for layer in maps.values():
        grid = layer.mean(1).transpose(1, 2).unflatten(-1, (4, 4))
        expected += torch.nn.functional.interpolate(grid, size=(8, 8), mode="bilinear") / len(maps)
    # Calls 0 and 1 of 3 make the first of two groups, call 2 the second.
    torch.testing.assert_close(result[:, 1], expected * present[..., None, None], rtol=1e-4, atol=1e-6)


# --- the fused attention and its explicit twin ------------------------------------------------------------

COLUMNS = torch.tensor([[3, 9, 0, 0], [5, 0, 76, 76]])


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 3, size, 16, generator=generator) for size in (64, 77, 77)]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def results(attend: object, mask: Tensor | None, dtype: torch.dtype, which: str) -> list[Tensor]:
    """Both outputs, then the gradients of a sum over one of them or both."""
    tensors = inputs(dtype)
    output, maps = attend(*tensors, mask, COLUMNS)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(1)
    parts = {"output": output.float(), "maps": maps}
    weights = {name: torch.randn(part.shape, generator=generator) for name, part in parts.items()}
    torch.stack([(parts[name] * weights[name]).sum() for name in parts if name in which]).sum().backward()
    return [output.detach(), maps.detach(), *(torch.zeros(()) if t.grad is None else t.grad for t in tensors)]


@pytest.mark.parametrize("which", ["output", "maps", "output and maps"])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_is_explicit_in_value_and_gradient(which: str, masked: bool) -> None:
    mask = torch.linspace(-3, 3, 2 * 77).view(2, 1, 1, 77) if masked else None
    found = [results(attend, mask, torch.float32, which) for attend in (fused_attention, explicit_attention)]
    for fused, explicit in zip(*found, strict=True):
        assert float((fused - explicit).abs().max()) < 1e-5


def test_columns_are_float32_in_half_precision_too() -> None:
    exact = results(explicit_attention, None, torch.float32, "output and maps")
    half = results(fused_attention, None, torch.bfloat16, "output and maps")
    assert half[1].dtype == torch.float32
    assert half[2].dtype == torch.bfloat16
    for rough, fine in zip(half, exact, strict=True):
        assert float((rough.float() - fine).abs().max() / fine.abs().max()) < 0.02


def test_no_map_of_all_tokens_is_held_for_the_backward_pass() -> None:
    def widest(attend: object) -> int:
        held: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t), t)[1], lambda t: t):
            attend(*inputs(), None, COLUMNS)  # type: ignore[operator]
        return max(tensor.shape[-1] for tensor in held if tensor.ndim == 4 and tensor.shape[2] == 64)

    assert widest(explicit_attention) == 77
    assert widest(fused_attention) == 16


def test_autocast_does_not_reach_the_columns() -> None:
    query, key, value = inputs()
    exact = fused_attention(query, key, value, None, COLUMNS)[1]
    with torch.autocast("cpu", torch.bfloat16):
        for attend in (fused_attention, explicit_attention):
            torch.testing.assert_close(attend(query, key, value, None, COLUMNS)[1], exact)
