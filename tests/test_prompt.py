from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastcomposer.prompt import MARKER, PromptError, parse_prompt, place_markers, split_markers, strip_markers

M = "<|image|>"


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")


@pytest.mark.parametrize(
    "caption",
    [
        f"a man {M} and a woman {M} on the beach",
        f"a man{M} and a woman{M}",
        f"a  man \t{M}\n and\n\n a woman   {M}  ",
        f"a photo of a man {M}, smiling; a woman {M}!!! (on the beach)",
        f"A MAN {M} And A WoMaN {M} On The Beach",
        f"a man {M}'s beach",
        f"a man {M}and a woman",
        f"a naïve man {M} 人 {M}",
        f"{'photo ' * 50}man {M} {'beach ' * 60}",
        "a man and a woman",
        "",
    ],
)
def test_ids_are_those_of_the_stripped_caption(caption: str, tokenizer: Any) -> None:
    parsed = parse_prompt(caption, tokenizer)
    expected = tokenizer(
        strip_markers(caption), padding="max_length", max_length=77, truncation=True
    ).input_ids
    assert parsed.input_ids == expected
    assert parsed.num_subjects == caption.count(M)


def test_subject_token_is_the_last_token_of_its_word(tokenizer: Any) -> None:
    parsed = parse_prompt(f"A  Man {M}, and a woman{M}'s 人 {M}", tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(parsed.input_ids)
    words = "a</w> man</w> ,</w> and</w> a</w> wo man</w> ' s</w>"
    assert tokens[:10] == ["<|startoftext|>", *words.split()]
    assert parsed.subject_token_idx == [2, 7, 12]  # the third subject's one character is three tokens
    assert tokens[13] == "<|endoftext|>"


@pytest.mark.parametrize("word", ["cafe\u0301", "आदमी", "ผู้"])
def test_words_may_end_in_marks(word: str, tokenizer: Any) -> None:
    parsed = parse_prompt(f"a {word} {M} on the beach", tokenizer)
    last = len(tokenizer(word, add_special_tokens=False).input_ids)
    assert parsed.subject_token_idx == [1 + last]
    with pytest.raises(PromptError, match="no word before it"):
        parse_prompt(f"a {word}, {M}", tokenizer)


def test_words_of_textual_inversion_are_words(tiny_base: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    with pytest.raises(PromptError, match="no word before it"):
        parse_prompt(f"a <cat> {M}", tokenizer)
    tokenizer.add_tokens("<cat>")
    parsed = parse_prompt(f"a <cat> {M} on", tokenizer)
    assert tokenizer.convert_ids_to_tokens(parsed.input_ids)[parsed.subject_token_idx[0]] == "<cat>"
    with pytest.raises(PromptError, match="no word before it"):
        parse_prompt(f"a man<|endoftext|> {M}", tokenizer)


def test_truncation_warns_and_keeps_the_end_token(tokenizer: Any) -> None:
    parsed = parse_prompt(f"a man {M} " + "beach " * 100, tokenizer)
    assert parsed.truncated and len(parsed.input_ids) == 77 and parsed.input_ids[-1] == 499
    assert not parse_prompt(f"a man {M}", tokenizer).truncated


def test_last_place_for_a_subject_is_the_last_word_before_the_end_token(tokenizer: Any) -> None:
    assert parse_prompt("a " * 74 + f"man {M}", tokenizer).subject_token_idx == [75]
    with pytest.raises(PromptError, match=r"subject 2 is token 76 of prompt .* keeps 75 words"):
        parse_prompt(f"man {M} " + "a " * 74 + f"man {M}", tokenizer)


@pytest.mark.parametrize(
    ("caption", "options", "message"),
    [
        (f"a man {M}", {"num_references": 2}, r"2 reference image\(s\) for 1 marker"),
        ("a man", {"num_references": 1}, r"1 reference image\(s\) for 0 marker"),
        (f"a man {M} {M}", {}, "marker 2 at character 16 has no word before it"),
        (f"{M} a man", {}, "marker 1 at character 0 has no word before it"),
        (f"a man, {M}", {}, "marker 1 at character 7 has no word before it"),
        (f"a man {M} and a man {M}", {"max_subjects": 1}, "2 subjects .* the model takes 1 at most"),
    ],
)
def test_errors_name_the_caption_and_the_place(
    caption: str, options: dict[str, int], message: str, tokenizer: Any
) -> None:
    with pytest.raises(PromptError, match=message) as error:
        parse_prompt(caption, tokenizer, **options)
    assert repr(caption) in str(error.value)


def test_place_markers_inverts_strip_markers() -> None:
    caption = "a man and a woman on the beach"
    marked = place_markers(caption, [5, 17])
    assert marked == f"a man {M} and a woman {M} on the beach"
    assert strip_markers(marked) == caption


@pytest.mark.parametrize(("ends", "message"), [([40], "outside the caption"), ([5, 5], "after the previous")])
def test_place_markers_refuses_bad_offsets(ends: list[int], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        place_markers("a man and a woman", ends)


def test_many_markers_take_no_time() -> None:
    text, ends = split_markers(f"a man {MARKER} " * 100_000)
    assert len(ends) == 100_000 and len(text) == 600_000 and ends[-1] == len(text) - 1
