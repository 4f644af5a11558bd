"""SubjectBatch: the one typed record that crosses from data to model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class SubjectBatch:
    """Training samples with their subjects.

    B samples, K subject slots, image H×W, reference R×R. Of up to N references of a subject, the first is in
    ``subject_pixel_values`` and the others in ``extra_pixel_values``, which is left out for N = 1. A dataset
    yields samples with B = 1; :meth:`collate` joins them.

    Attributes:
        pixel_values: (B, 3, H, W) float in [-1, 1].
        input_ids: (B, 77) long; of a base with T5 (B, 77 + L), T5's ids after CLIP's.
        subject_pixel_values: (B, K, 3, R, R) float in [0, 1].
        subject_token_idx: (B, K) long, position of each subject's word in ``input_ids``; 0 in empty slots.
        subject_present: (B, K) bool, which slots hold a subject.
        subject_masks: (B, K, H, W) float, 0 or 1.
        subject_face_boxes: Optional (B, K, 4) float, x1, y1, x2, y2 of each subject's face in pixels of the
            target; zeros where none is annotated.
        extra_pixel_values: Optional (B, K, N − 1, 3, R, R) float in [0, 1]: further references.
        extra_present: (B, K, N − 1) bool, which of those are present; with ``extra_pixel_values``.
        latent_moments: Optional (B, 2C, h, w): mean and log-variance of the VAE posterior.
        text_embeds: Optional (B, T, d): hidden states of the text encoders for T ``input_ids``.
        pooled_text_embeds: Optional (B, p): pooled embeddings of the second text encoder, where there is one.
        size_conditions: Optional (B, 6) long, in pixels: height and width of the image as it was, top and
            left of the crop at the size it was resized to, height and width of the crop. Conditions models
            with a second text encoder; (H, W, 0, 0, H, W) where it is left out.
        subject_token_idx_3: Optional (B, K) long, of a base with T5: position of each subject's word among
            T5's ids in ``input_ids``; 0 in empty slots.
        record_ids: Names of the records, for messages.
    """

    pixel_values: Tensor
    input_ids: Tensor
    subject_pixel_values: Tensor
    subject_token_idx: Tensor
    subject_present: Tensor
    subject_masks: Tensor
    subject_face_boxes: Tensor | None = None
    extra_pixel_values: Tensor | None = None
    extra_present: Tensor | None = None
    latent_moments: Tensor | None = None
    text_embeds: Tensor | None = None
    pooled_text_embeds: Tensor | None = None
    size_conditions: Tensor | None = None
    subject_token_idx_3: Tensor | None = None
    record_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def references(self) -> tuple[Tensor, Tensor]:
        """All references of all subjects, and which of them are present.

        Returns:
            (B, K, N, 3, R, R) float in [0, 1], and (B, K, N) bool, nothing of which is set in empty slots.
        """
        pixels, present = self.subject_pixel_values.unsqueeze(2), self.subject_present.unsqueeze(2)
        if self.extra_pixel_values is None or self.extra_present is None:
            return pixels, present
        return (
            torch.cat([pixels, self.extra_pixel_values], dim=2),
            torch.cat([present, self.extra_present & present], dim=2),
        )

    def annotated_faces(self) -> Tensor:
        """Which slots (B, K) hold a subject whose face is annotated.

        Raises:
            ValueError: If there are no ``subject_face_boxes``.
        """
        boxes = self.subject_face_boxes
        if boxes is None:
            raise ValueError(
                "faces are compared where they are annotated: this batch has no subject_face_boxes"
            )
        return self.subject_present & (boxes[..., 2] > boxes[..., 0])

    def replace(self, **changes: Any) -> SubjectBatch:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)

    def select(self, rows: Tensor) -> SubjectBatch:
        """The samples at (n,) indices, without names: the host would wait for the indices."""
        return self._map(lambda tensor: tensor[rows]).replace(record_ids=())

    def to(self, device: torch.device | str) -> SubjectBatch:
        """Move every tensor to a device, without waiting for copies from pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> SubjectBatch:
        """Copy every tensor into pinned memory (called by the data loader)."""
        return self._map(Tensor.pin_memory)

    def _map(self, function) -> SubjectBatch:  # type: ignore[no-untyped-def]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: function(v) for k, v in values.items() if isinstance(v, Tensor)})

    @staticmethod
    def collate(samples: Sequence[SubjectBatch]) -> SubjectBatch:
        """Join samples along B.

        Raises:
            ValueError: If samples differ in shape, or only some carry an optional field.
        """
        joined: dict[str, Tensor | None] = {}
        for field in fields(SubjectBatch):
            if field.name == "record_ids":
                continue
            values = [getattr(sample, field.name) for sample in samples]
            if all(value is None for value in values):
                joined[field.name] = None
                continue
            shapes = {None if value is None else tuple(value.shape[1:]) for value in values}
            if len(shapes) > 1:
                raise ValueError(f"samples of one batch differ in {field.name}: {shapes}")
            joined[field.name] = torch.cat(values)
        return SubjectBatch(**joined, record_ids=tuple(i for s in samples for i in s.record_ids))  # type: ignore[arg-type]
