from __future__ import annotations

from typing import Any

import pytest
import torch

from fastcomposer import FastComposer


@pytest.fixture
def model(tiny_base: Any) -> FastComposer:
    return FastComposer.from_pretrained(tiny_base)


@pytest.fixture
def batch(golden: Any) -> Any:
    found = golden.batch()
    boxes = torch.zeros(*found.subject_present.shape, 4)
    boxes[:, 0] = torch.tensor([4.0, 4.0, 24.0, 24.0])
    return found.replace(subject_face_boxes=boxes)
