"""Read-out loss: does what conditions the backbone say whose face it is?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcomposer.batch import SubjectBatch
from fastcomposer.models.resampler import subject_states
from fastcomposer.training.face_losses.face_loss import FaceLoss, mean_over
from fastcomposer.utils.ranges import Positive, Whole

if TYPE_CHECKING:
    from fastcomposer.composer import FastComposer, TrainingLosses


class ReadOutLoss(FaceLoss):
    """``1 − cos(W·c', f(x))`` of a subject's states c' and its face in the target x (docs/method.md, eq. 10).

    A linear map, which is trained and not exported, reads the states of a subject's word and further tokens,
    side by side, as the backbone gets them.

    Args:
        embedder: See :class:`FaceLoss`.
        weight: See :class:`FaceLoss`.
        warmup_steps: See :class:`FaceLoss`.

    Raises:
        ValueError: If a setting is out of range.
    """

    KEY = "readout"

    def __init__(self, embedder: Any, weight: Positive = 0.3, warmup_steps: Whole = 0) -> None:
        super().__init__(embedder, weight, warmup_steps=warmup_steps)
        self.head: nn.Module = nn.Identity()

    def make_head(self, model: FastComposer, width: int) -> None:
        """Make the linear map for a model whose prompts have states of ``width``."""
        columns = model.fusion.kind.num_tokens + (model.text.third is not None)
        face = self.embed(torch.zeros(1, 3, 64, 64), torch.tensor([[[8.0, 8.0, 56.0, 56.0]]]))
        self.head = nn.Linear(columns * width, face.shape[-1])

    def forward(self, model: FastComposer, batch: SubjectBatch, losses: TrainingLosses, *_: Any) -> Tensor:
        """Mean over all faces; see :class:`FaceLoss`."""
        faces = batch.annotated_faces()
        states = subject_states(losses.prompt_embeds, model.subject_columns(batch)).float()
        found = F.normalize(self.head(states.flatten(2)), dim=-1)
        with torch.no_grad():
            boxes: Any = batch.subject_face_boxes
            wanted = self.embed(batch.pixel_values.float() / 2 + 0.5, boxes)
        return mean_over(1 - (found * wanted).sum(-1), faces)
