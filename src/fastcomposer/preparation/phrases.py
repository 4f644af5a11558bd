"""Noun phrases that name subjects, and their offsets in the caption, by spaCy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcomposer.preparation.interfaces import NounPhrase, PhraseFinder

Words = Mapping[str, Sequence[str]]
"""Label of regions → words, in the singular, that name one of them.

A plural ("two men", "kids") is not found: one marker holds one subject. List it here to mark it all the same.
"""


@dataclass
class _ClassWords(PhraseFinder):
    """Phrases of the class words that a pipeline of spaCy finds."""

    words: Words

    def __post_init__(self) -> None:
        self._nlp: Any = None
        self._labels = {word.lower(): label for label, group in self.words.items() for word in group}
        if not self._labels:
            raise ValueError("data.phrases.words: names no word, so no phrase could name a subject")

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the phrases."""
        return {**super().settings, "words": dict(sorted(self._labels.items()))}

    def find(self, captions: Sequence[str]) -> list[tuple[NounPhrase, ...]]:
        """Find the phrases of each caption."""
        return [_phrases(doc, self._heads(doc), self._labels) for doc in self._nlp.pipe(captions)]

    def _match_in(self, nlp: Any) -> None:
        """Use a pipeline, and match the class words in its documents."""
        from spacy.matcher import PhraseMatcher

        self._nlp = nlp
        self._matcher = PhraseMatcher(nlp.vocab, attr="LOWER")
        self._matcher.add("subject", [nlp.make_doc(word) for word in self._labels])

    def _spans(self, doc: Any) -> list[Any]:
        """Class words in their order that are no part of a longer word or noun."""
        from spacy.util import filter_spans

        spans = sorted(filter_spans([doc[start:end] for _, start, end in self._matcher(doc)]))
        starts = {span.start for span in spans}
        found = []
        for span in spans:
            following = doc[span.end].lower_ if span.end < len(doc) else ""
            joined = following == "-" and not doc[span.end - 1].whitespace_
            # a man-made lake; a woman's hat; a baby boy
            if not (joined or following in _POSSESSIVES or span.end in starts):
                found.append(span)
        return found

    def _heads(self, doc: Any) -> Iterator[tuple[int, int]]:
        """First token and head of each phrase."""
        raise NotImplementedError


@dataclass
class ParsedPhrases(_ClassWords):
    """Noun chunks of a spaCy pipeline with a parser, whose head is one of the class words.

    Coordinated nouns are phrases of their own ("a bride and groom"). Nouns that modify another one are left
    out ("a baby carriage").

    Args:
        words: Class words.
        model: Package or folder of the pipeline.

    Raises:
        FileNotFoundError: If it is not installed, with how to get it.
        ValueError: If there are no words.
    """

    choice = "parsed"
    model: str = "en_core_web_sm"

    def __post_init__(self) -> None:
        import spacy

        super().__post_init__()
        if not (spacy.util.is_package(self.model) or Path(self.model).is_dir()):
            raise FileNotFoundError(
                f"data.phrases.model={self.model}: this spaCy pipeline is not installed; get it with "
                f"`python -m spacy download {self.model}`, name the folder of an unpacked one, or use "
                "data/phrases=words, which needs none"
            )

    def load(self) -> None:
        """Load the pipeline; refuses one without a parser."""
        import spacy

        self._match_in(spacy.load(self.model, exclude=["ner"]))
        if not self._nlp("a man").has_annotation("DEP"):
            raise ValueError(f"data.phrases.model={self.model}: phrases need a pipeline with a parser")

    def _heads(self, doc: Any) -> Iterator[tuple[int, int]]:
        named: list[Any] = []
        for span in reversed(self._spans(doc)):
            # Parsers take what people do for a noun: "a bride and groom [holding hands]".
            doing = doc[span.end : span.end + 1].text.lower().endswith("ing")
            joined = named and {token.pos_ for token in doc[span.end : named[-1].start]} <= _BETWEEN
            if span.root.pos_ in _NOUNS and (doing or joined or not _modifies(span.root)):
                named.append(span)
        starts = {token.i: chunk.start for chunk in doc.noun_chunks for token in chunk}
        done = 0
        for span in reversed(named):
            start = max(done, starts.get(span.start, span.start))
            while doc[start].pos_ in ("CCONJ", "PUNCT"):
                start += 1
            done = span.end
            yield start, span.end - 1


@dataclass
class WordPhrases(_ClassWords):
    """Class words wherever they occur, with the words before them back to an article; needs no model.

    Args:
        words: Class words, at least one.
    """

    choice = "words"

    def load(self) -> None:
        """Make tokenizer and matcher."""
        import spacy

        self._match_in(spacy.blank("en"))

    def _heads(self, doc: Any) -> Iterator[tuple[int, int]]:
        done = 0
        for span in self._spans(doc):
            articles = [i for i in range(done, span.start) if doc[i].lower_ in _ARTICLES]
            yield (articles[-1] if articles else span.start), span.end - 1
            done = span.end


_ARTICLES = frozenset(("a", "an", "the", "one", "another", "this", "that", "his", "her", "their"))
_POSSESSIVES = frozenset(("'s", "’s"))
_NOUNS = frozenset(("NOUN", "PROPN"))
_BETWEEN = frozenset(("CCONJ", "PUNCT", "DET", "PRON", "ADJ"))  # a bride and her young groom


def _modifies(noun: Any) -> bool:
    """Whether a noun, or the one that it is coordinated with, is part of another: a baby carriage."""
    return noun.dep_ in ("compound", "nmod", "amod") or (noun.dep_ == "conj" and _modifies(noun.head))


def _phrases(doc: Any, heads: Iterator[tuple[int, int]], labels: Mapping[str, str]) -> tuple[NounPhrase, ...]:
    """Make phrases of (first token, head): each ends before the next one, without trailing stop words."""
    tokens = list(heads)
    found = []
    for number, (start, head) in enumerate(tokens):
        stop = tokens[number + 1][0] if number + 1 < len(tokens) else len(doc)
        while stop - 1 > head and (doc[stop - 1].is_stop or doc[stop - 1].is_punct):
            stop -= 1
        # A class word may have several tokens; the longest one that ends here counts.
        word = next(
            text for i in range(start, head + 1) if (text := doc[i : head + 1].text.lower()) in labels
        )
        end = doc[head].idx + len(doc[head])
        found.append(NounPhrase(doc[start:stop].text, end, word, labels[word]))
    return tuple(found)
