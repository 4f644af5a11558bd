from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_architectures import narrow

from fastcomposer.batch import SubjectBatch
from fastcomposer.composer import FastComposer
from fastcomposer.models.compilation import compile_blocks
from fastcomposer.models.weights_io import load_trained_weights, save_trained_weights


@pytest.fixture(params=["unet", "transformer"])
def model(request: pytest.FixtureRequest, small_base: Path, tmp_path: Path) -> FastComposer:
    torch.manual_seed(0)
    if request.param == "unet":
        model = FastComposer.from_pretrained(small_base)
    else:
        folder = narrow("sd3", tmp_path / "sd3")
        model = FastComposer.from_pretrained("no/base", architecture=folder, weights="random")
    model.set_trainable(backbone=True, fusion=True, vision_layers=1)
    return model


def batch_for(model: FastComposer) -> SubjectBatch:
    generator = torch.Generator().manual_seed(0)
    side, masks = model.image_encoder.config.image_size, torch.zeros(2, 2, 32, 32)
    masks[:, 0, 8:, :16], masks[:, 1, 8:, 16:] = 1, 1
    return SubjectBatch(
        pixel_values=torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1,
        input_ids=torch.randint(0, 99, (2, 77), generator=generator),
        subject_pixel_values=torch.rand(2, 2, 3, side, side, generator=generator),
        subject_token_idx=torch.tensor([[2, 5], [3, 0]]),
        subject_present=torch.tensor([[True, True], [True, False]]),
        subject_masks=masks,
    )


def step(model: FastComposer) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    losses = model.training_losses(batch_for(model), generator=torch.Generator().manual_seed(1))
    losses.loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return losses.loss.detach(), found


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_blocks_compute_the_same(model: FastComposer, backend: str) -> None:
    plain = step(model)
    names = list(model.state_dict())
    compile_blocks(model.backbone, backend)
    seen = torch._dynamo.utils.counters["frames"]["ok"]
    for _ in range(2):  # compiled, then used again
        loss, gradients = step(model)
        torch.testing.assert_close(loss, plain[0], rtol=1e-6, atol=1e-6)
        assert gradients.keys() == plain[1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, plain[1][name], rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["frames"]["ok"] > seen
    assert list(model.state_dict()) == names


def test_compiled_models_are_saved_copied_and_drawn_with(model: FastComposer, tmp_path: Path) -> None:
    def draw() -> Any:
        pipeline = model.to_pipeline(safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        size = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "latent"}
        generator, reference = torch.Generator().manual_seed(0), torch.full((3, 32, 32), 0.5)
        return pipeline("a man <|image|>", references=[reference], generator=generator, **size).images

    plain = draw()
    compile_blocks(model.backbone, "eager")
    torch.testing.assert_close(draw(), plain, rtol=1e-5, atol=1e-5)
    assert copy.deepcopy(model.backbone).state_dict().keys() == model.backbone.state_dict().keys()
    file = save_trained_weights(model, tmp_path / "weights.safetensors")
    load_trained_weights(model, file)
