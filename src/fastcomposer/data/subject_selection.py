"""Which of a record's segments become the subjects of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastcomposer.data.records import Record, Segment
from fastcomposer.prompt import ParsedPrompt, PromptError, parse_prompt, place_markers

DROPPED = ("empty_mask", "same_word", "beyond_tokens", "over_max_subjects")
"""Why segments are left out."""


@dataclass(frozen=True)
class Subject:
    """A subject of a sample.

    Attributes:
        segment: Its segment.
        end: Character offset in the caption just after its word.
        mask: (H, W) bool, where the target shows it.
    """

    segment: Segment
    end: int
    mask: Tensor


@dataclass(frozen=True)
class Choice:
    """The subjects of a sample.

    Attributes:
        subjects: In the order of their words.
        prompt: The caption with them.
        dropped: How many segments were left out, for each reason of :data:`DROPPED`.
    """

    subjects: list[Subject]
    prompt: ParsedPrompt
    dropped: tuple[int, ...]


def choose_subjects(
    record: Record, candidates: Sequence[Segment], masks: Tensor, tokenizer: Any, max_subjects: int
) -> Choice:
    """Choose the subjects of a sample: the largest, each with a word of its own that the tokenizer keeps.

    Args:
        record: The record.
        candidates: Its segments that may be subjects.
        masks: (len(candidates), H, W) bool, where the target shows them.
        tokenizer: CLIP tokenizer.
        max_subjects: Most subjects.

    Raises:
        PromptError: If the caption alone cannot be parsed.
    """
    areas = masks.sum(dim=(1, 2)).tolist()
    order = sorted(range(len(candidates)), key=lambda i: (-areas[i], candidates[i].id))
    dropped = dict.fromkeys(DROPPED, 0)
    by_end: dict[int, Subject] = {}  # the largest first
    for number in order:
        segment = candidates[number]
        end = len(record.caption[: segment.end].rstrip())  # two offsets around a space are one word
        if not areas[number]:
            dropped["empty_mask"] += 1
        elif end in by_end:
            dropped["same_word"] += 1
        else:
            by_end[end] = Subject(segment, end, masks[number])
    while True:
        subjects = sorted(list(by_end.values())[:max_subjects], key=lambda s: s.end)
        caption = place_markers(record.caption, [subject.end for subject in subjects])
        try:
            prompt = parse_prompt(caption, tokenizer, num_references=len(subjects))
            break
        except PromptError:
            if not subjects:
                raise
            # Beyond the tokenizer's limit: the last one at least. The next in size may take its slot.
            del by_end[subjects[-1].end]
            dropped["beyond_tokens"] += 1
    dropped["over_max_subjects"] = len(by_end) - len(subjects)
    return Choice(subjects, prompt, tuple(dropped.values()))
