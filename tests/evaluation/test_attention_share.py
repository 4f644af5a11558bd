"""The share of attention that lies inside the masks."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path

import lightning as L
import pytest
import torch

from fastcomposer.composer import FastComposer
from fastcomposer.data.datamodule import SubjectDataModule
from fastcomposer.evaluation.attention_share import attention_share
from fastcomposer.losses import LossConfig
from fastcomposer.models.loading import load_tokenizer
from fastcomposer.training.module import FastComposerModule


@pytest.fixture
def data(world: Path, small_base: Path) -> SubjectDataModule:
    return SubjectDataModule(
        world,
        load_tokenizer(str(small_base)),
        4,
        resolution=32,
        reference_size=56,
        max_subjects=3,
        augmentation=None,
    )


def test_even_attention_lies_inside_as_much_as_the_mask_covers(
    data: SubjectDataModule, small_base: Path
) -> None:
    model = FastComposer.from_pretrained(small_base)
    for name, parameter in model.unet.named_parameters():
        if name.endswith("attn2.to_q.weight"):
            torch.nn.init.zeros_(parameter)
    share = attention_share(model, islice(data.val_dataloader(), 2))
    assert share.inside == pytest.approx(share.area, rel=1e-5)
    assert 0.1 < share.area < 0.6
    assert share.subjects >= 8


def test_no_subjects_is_an_error(data: SubjectDataModule, small_base: Path) -> None:
    batch = next(iter(data.val_dataloader()))
    alone = batch.replace(subject_present=torch.zeros_like(batch.subject_present))
    with pytest.raises(ValueError, match="no record has a subject"):
        attention_share(FastComposer.from_pretrained(small_base), [alone])


def test_localization_moves_attention_into_the_masks(
    data: SubjectDataModule, small_base: Path, tmp_path: Path
) -> None:
    shares = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        loss = LossConfig(localization_weight=weight)
        module = FastComposerModule(
            partial(FastComposer.from_pretrained, small_base, loss_config=loss),
            partial(torch.optim.AdamW, lr=5e-3),
            vision_layers=0,
        )
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=100,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            gradient_clip_val=1.0,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, data)
        shares[weight] = attention_share(module.model, islice(data.val_dataloader(), 2)).inside
    assert shares[1.0] > 1.3 * shares[0.0]  # 1.41 with these random weights
