"""Textual Inversion: one new word for one person."""

from __future__ import annotations

from typing import Any, ClassVar

from fastcomposer.data.portraits import ReferenceSet
from fastcomposer.training.personalization.fine_tuning import PersonalizationModule
from fastcomposer.training.personalization.tokens import word_embedding


class TextualInversion(PersonalizationModule):
    """Learns the embedding of a new token that stands for the class word; all networks stay frozen.

    Source: Gal et al., *An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual
    Inversion*, ICLR 2023.

    Args:
        *settings: See :class:`PersonalizationModule`.
        initial_word: Word whose embedding the token starts from; ``None`` for the class word.
        **more: See :class:`PersonalizationModule`; without class images.
    """

    method: ClassVar[str] = "textual_inversion"

    def __init__(self, *settings: Any, initial_word: str | None = None, **more: Any) -> None:
        if more.get("class_images") is not None:
            raise ValueError("method.class_images: textual_inversion changes nothing that could be forgotten")
        super().__init__(*settings, **more)
        self.initial_word = initial_word

    def phrase(self, person: ReferenceSet) -> str:
        """The token alone: it stands for the class word."""
        return self.token(person)

    def choose_trained(self) -> None:
        """Train the new tokens."""
        words = [self.initial_word or person.word for person in self.people]
        self.add_tokens([word_embedding(self.tokenizer, self.text_encoder, word) for word in words])
