"""The share of attention that lies inside the masks."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from fastcomposer.composer import FastComposer
from fastcomposer.data.datamodule import SubjectDataModule
from fastcomposer.evaluation.attention_share import attention_share
from fastcomposer.models.loading import load_tokenizer


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
