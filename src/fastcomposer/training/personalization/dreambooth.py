"""DreamBooth: the whole U-Net for one person."""

from __future__ import annotations

from typing import Any, ClassVar

from fastcomposer.data.portraits import ReferenceSet
from fastcomposer.training.personalization.fine_tuning import PersonalizationModule


class DreamBooth(PersonalizationModule):
    """Trains the U-Net, if wanted also the text encoder, on a rare word before the class word.

    With prior preservation: every batch holds as many class images, drawn by the base itself.

    Source: Ruiz et al., *DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven
    Generation*, CVPR 2023.

    Args:
        *settings: See :class:`PersonalizationModule`.
        rare_token: A word that the base has hardly any idea of.
        train_text_encoder: Whether the text encoder is trained too.
        **more: See :class:`PersonalizationModule`.

    Raises:
        ValueError: If several people are to be learned, who would share the one rare word; or see
            :class:`PersonalizationModule`.
    """

    method: ClassVar[str] = "dreambooth"

    def __init__(
        self, *settings: Any, rare_token: str = "sks", train_text_encoder: bool = False, **more: Any
    ) -> None:
        if not rare_token.strip():
            raise ValueError("method.rare_token: a word is wanted")
        super().__init__(*settings, **more)
        self.rare_token, self.train_text_encoder = rare_token.strip(), train_text_encoder

    def token(self, person: ReferenceSet) -> str:
        """The rare word, whoever it is."""
        return self.rare_token

    def choose_trained(self) -> None:
        """Train whole networks."""
        if len(self.people) > 1:
            raise ValueError(f"data.people: dreambooth learns one person at a time, not {len(self.people)}")
        self.unet.requires_grad_(True).train()
        if self.train_text_encoder:
            self.text_encoder.requires_grad_(True).train()
