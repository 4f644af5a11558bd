"""The one marker parser: a caption with ``<|image|>`` markers becomes token ids and subject positions."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MARKER = "<|image|>"


class PromptError(ValueError):
    """A caption whose subjects cannot be located; the message names the caption and the position."""


@dataclass(frozen=True)
class ParsedPrompt:
    """A caption ready for the text encoders.

    Attributes:
        text: The caption without markers.
        input_ids: Token ids padded to the tokenizer's limit (77 for CLIP); the end token is always kept.
        subject_token_idx: Position in ``input_ids`` of the last token of each subject's word.
        truncated: Whether words after the last subject were cut to fit the limit.
        input_ids_3: T5's token ids, where a :class:`JointTokenizer` has read the caption.
        subject_token_idx_3: Position of the last of T5's tokens of each subject's word in :attr:`all_ids`.
    """

    text: str
    input_ids: list[int]
    subject_token_idx: list[int]
    truncated: bool
    input_ids_3: list[int] = field(default_factory=list)
    subject_token_idx_3: list[int] = field(default_factory=list)

    @property
    def all_ids(self) -> list[int]:
        """Token ids of the sequence that the backbone attends to: CLIP's, then T5's where there is one."""
        return [*self.input_ids, *self.input_ids_3]

    @property
    def num_subjects(self) -> int:
        """Number of markers in the caption."""
        return len(self.subject_token_idx)


@dataclass(frozen=True)
class JointTokenizer:
    """Tokenizers of a base whose transformer attends to CLIP's states and, after them, to T5's.

    Attributes:
        clip: CLIP's tokenizer.
        t5: T5's tokenizer, a fast one: it reports character offsets.
        length: Number of T5's tokens.

    Raises:
        ValueError: If there is no tokenizer of T5.
    """

    clip: Any
    t5: Any
    length: int = 256

    def __post_init__(self) -> None:
        if self.t5 is None:
            raise ValueError("there is no tokenizer_3, which T5 needs to read prompts")


def strip_markers(caption: str) -> str:
    """Return the caption without markers and without the space before each.

    Two words that only a marker stood between stay two words.
    """
    return split_markers(caption)[0]


def split_markers(caption: str) -> tuple[str, list[int]]:
    """Take the markers out of a caption; :func:`place_markers` puts them back.

    Args:
        caption: Text with markers.

    Returns:
        The caption without markers, and in it the character offset where each marker stood.
    """
    first, *others = caption.split(MARKER)
    kept, length, ends = [first], len(first), []
    for piece in others:
        while kept:  # take the space before the marker away, however many pieces it fills
            last = kept.pop()
            stripped = last.rstrip()
            length -= len(last) - len(stripped)
            if stripped:
                kept.append(stripped)
                break
        ends.append(length)
        apart = bool(kept) and kept[-1][-1].isalnum() and piece[:1].isalnum()
        kept.append(f" {piece}" if apart else piece)
        length += len(kept[-1])
    return "".join(kept), ends


def place_markers(caption: str, ends: Sequence[int]) -> str:
    """Insert a marker after each character offset.

    Args:
        caption: Text without markers.
        ends: Offsets just after each subject's word, ascending, as in the record format (docs/method.md).

    Raises:
        PromptError: If an offset lies outside the caption or the offsets are not ascending.
    """
    pieces, start = [], 0
    for end in ends:
        if not 0 < end <= len(caption):
            raise PromptError(f"end {end} lies outside the caption of {len(caption)} characters: {caption!r}")
        if end <= start:
            raise PromptError(f"end {end} does not come after the previous subject in caption {caption!r}")
        pieces += [caption[start:end], f" {MARKER}"]
        start = end
    return "".join([*pieces, caption[start:]])


def check_references(caption: str, num_references: int) -> None:
    """Refuse a caption with another number of subjects than there are references; needs no tokenizer.

    Args:
        caption: Text with markers.
        num_references: Number of subjects with references.

    Raises:
        PromptError: If the numbers differ.
    """
    num_markers = caption.count(MARKER)
    if num_markers != num_references:
        raise PromptError(
            f"{num_references} reference image(s) for {num_markers} marker(s) {MARKER} in prompt "
            f"{caption!r}; put one directly after the class word of each subject (several images of one "
            "subject are a list of their own, and count once)"
        )


def parse_prompt(
    caption: str, tokenizer: Any, *, num_references: int | None = None, max_subjects: int | None = None
) -> ParsedPrompt:
    """Tokenize a caption and find the token of every subject's word.

    The ids are those of the caption without markers; a subject's token is found by its offset in the text.

    Args:
        caption: Text with ``<|image|>`` directly after each subject's class word.
        tokenizer: A CLIP tokenizer that reports character offsets, as transformers' own does, or a
            :class:`JointTokenizer`.
        num_references: Number of subjects that there are references of; ``None`` skips that check.
        max_subjects: Number of subject slots of the model; ``None`` skips that check.

    Raises:
        PromptError: Markers without a word before them, a count that does not match the references, more
            subjects than slots, or a subject beyond the tokenizer's limit.
    """
    num_markers = caption.count(MARKER)
    if num_references is not None:
        check_references(caption, num_references)
    if max_subjects is not None and num_markers > max_subjects:
        raise PromptError(
            f"{num_markers} subjects in prompt {caption!r}; the model takes {max_subjects} at most"
        )
    clip = tokenizer.clip if isinstance(tokenizer, JointTokenizer) else tokenizer
    _check_positions(caption, clip)
    text, ends = split_markers(caption)
    ids, positions, truncated = _tokenize(caption, text, ends, clip, int(clip.model_max_length))
    if not isinstance(tokenizer, JointTokenizer):
        return ParsedPrompt(text, ids, positions, truncated)
    ids_3, positions_3, cut = _tokenize(caption, text, ends, tokenizer.t5, tokenizer.length)
    after = [len(ids) + position for position in positions_3]
    return ParsedPrompt(text, ids, positions, truncated or cut, ids_3, after)


def _tokenize(
    caption: str, text: str, ends: Sequence[int], tokenizer: Any, limit: int
) -> tuple[list[int], list[int], bool]:
    """Padded ids, the position of the last token of each word that ends there, and whether ids were cut."""
    # No truncation here, so that a subject cut off is seen below instead of being lost in silence.
    encoded = tokenizer(
        text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
    )
    ids: list[int] = encoded.input_ids
    starts = [start for start, _ in encoded.offset_mapping]
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]  # T5 has no start token
    room = max(0, limit - len(first) - 1)
    # The last token that starts before the end of the word, counted from 1.
    numbers = [bisect_left(starts, end) for end in ends]
    if numbers and numbers[-1] > room:
        beyond = next(i for i, number in enumerate(numbers) if number > room)
        raise PromptError(
            f"subject {beyond + 1} is token {numbers[beyond]} of prompt {caption!r}; "
            f"the tokenizer keeps {room} words' tokens: shorten the text before it"
        )
    padded = [*first, *ids[:room], tokenizer.eos_token_id]
    padded += [tokenizer.pad_token_id] * (limit - len(padded))
    return padded[:limit], [len(first) + number - 1 for number in numbers], len(ids) > room


def ends_in_word(text: str) -> bool:
    """Whether text, without trailing space, ends in a digit or in a letter with its marks."""
    # Marks are accents written apart, and vowels of Devanagari, Thai and other scripts.
    marks = {character for character in text if unicodedata.category(character).startswith("M")}
    return re.search(r"\w$", text.rstrip().rstrip("".join(marks))) is not None


def divided_word(text: str, end: int) -> str | None:
    """The word that a character offset divides; ``None`` where it lies between words.

    Scripts without letter case are left out: some write their words without spaces.
    """
    joined = text[end - 1 : end + 1]
    if len(joined) < 2 or not all(one.isdigit() or one.lower() != one.upper() for one in joined):
        return None
    return re.split(r"[\W_]", text[:end])[-1] + re.split(r"[\W_]", text[end:], maxsplit=1)[0]


def _check_positions(caption: str, tokenizer: Any) -> None:
    """Refuse markers without a word before them; words that textual inversion has added are words, too."""
    pieces = caption.split(MARKER)
    for number, piece in enumerate(pieces[:-1]):
        if ends_in_word(piece):
            continue
        added = tokenizer.get_added_vocab().keys() - {*tokenizer.all_special_tokens}
        if not any(map(piece.rstrip().endswith, added)):
            offset = len(MARKER.join(pieces[: number + 1]))
            raise PromptError(
                f"marker {number + 1} at character {offset} has no word before it in prompt {caption!r}; "
                "it belongs directly after the subject's class word"
            )
