"""Which of a record's segments become the subjects of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastcomposer.data.records import Record, Segment
from fastcomposer.prompt import ParsedPrompt, PromptError, parse_prompt, place_markers


@dataclass(frozen=True)
class SubjectCandidate:
    """A segment that may become a subject.

    Attributes:
        segment: The segment.
        end: Character offset in the caption just after its word.
        mask: (H, W) bool, its pixels in the target.
    """

    segment: Segment
    end: int
    mask: Tensor


def choose_subjects(
    record: Record, segments: Sequence[Segment], masks: Tensor, tokenizer: Any, max_subjects: int
) -> tuple[list[SubjectCandidate], ParsedPrompt]:
    """Choose the subjects of a sample: the largest, each with a word of its own that the tokenizer keeps.

    Args:
        record: The record.
        segments: Its segments that may be subjects.
        masks: (len(segments), H, W) bool, their pixels in the target.
        tokenizer: CLIP tokenizer.
        max_subjects: Most subjects.

    Returns:
        The subjects in the order of their words, and the caption with a marker for each.
    """
    areas = masks.sum(dim=(1, 2)).tolist()
    by_end: dict[int, SubjectCandidate] = {}  # the largest first
    for number in sorted(range(len(segments)), key=lambda i: (-areas[i], segments[i].id)):
        end = len(record.caption[: segments[number].end].rstrip())  # two offsets around a space are one word
        if areas[number] and end not in by_end:
            by_end[end] = SubjectCandidate(segments[number], end, masks[number])
    while True:
        subjects = sorted(list(by_end.values())[:max_subjects], key=lambda subject: subject.end)
        caption = place_markers(record.caption, [subject.end for subject in subjects])
        try:
            return subjects, parse_prompt(caption, tokenizer, num_references=len(subjects))
        except PromptError:
            if not subjects:
                raise
            # Beyond the tokenizer's limit: the last one at least. The next in size may take its slot.
            del by_end[subjects[-1].end]
