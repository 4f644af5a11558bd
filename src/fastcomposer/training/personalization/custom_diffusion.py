"""Custom Diffusion: the cross-attention's keys and values, and one new word for each person."""

from __future__ import annotations

from typing import Any, ClassVar

from fastcomposer.data.portraits import ReferenceSet
from fastcomposer.models.attention_capture import cross_attention_layers
from fastcomposer.training.personalization.fine_tuning import PersonalizationModule
from fastcomposer.training.personalization.tokens import entry_embedding, word_embedding


class CustomDiffusion(PersonalizationModule):
    """Trains the key and value projections of the cross-attention, and a new token before the class word.

    Several people may be learned at once, their batches taking turns. The class images, against forgetting,
    are drawn by the base itself; the original retrieves real ones whose captions are like the prompt, which
    needs a large collection of captioned images.

    Source: Kumari et al., *Multi-Concept Customization of Text-to-Image Diffusion*, CVPR 2023.

    Args:
        *settings: See :class:`PersonalizationModule`.
        initial_word: Entry of the tokenizer's vocabulary whose embedding the tokens start from, a rare one in
            the original; a word whose tokens' mean is taken where there is no such entry. ``None`` for the
            class word.
        **more: See :class:`PersonalizationModule`.

    Raises:
        ValueError: See :class:`PersonalizationModule`.
    """

    method: ClassVar[str] = "custom_diffusion"

    def __init__(self, *settings: Any, initial_word: str | None = "ktn", **more: Any) -> None:
        super().__init__(*settings, **more)
        self.initial_word = initial_word

    def token(self, person: ReferenceSet) -> str:
        """The person's new token, which comes before the class word."""
        return f"<{person.name.lower()}>"

    def choose_trained(self) -> None:
        """Train the new tokens, and keys and values of the attention to the text."""
        parts = (self.tokenizer, self.text_encoder)
        self.add_tokens(
            [
                word_embedding(*parts, person.word)
                if self.initial_word is None
                else entry_embedding(*parts, self.initial_word)
                for person in self.people
            ]
        )
        for layers in cross_attention_layers(self.unet).values():
            for layer in layers:
                attention = self.unet.get_submodule(layer)
                attention.to_k.requires_grad_(True)
                attention.to_v.requires_grad_(True)
