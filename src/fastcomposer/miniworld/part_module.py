"""What the trainings of the embedded base's parts share."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from fastcomposer.miniworld.scene_dataset import SceneDataModule
from fastcomposer.training.base_module import RecipeModule


class PartModule(RecipeModule):
    """Training of a part of the embedded base on the scenes of a :class:`SceneDataModule`."""

    PART: ClassVar[str]
    """Attribute that holds the trained network, and its folder in the base."""

    @property
    def scenes(self) -> SceneDataModule:
        """The scenes that the trainer was given."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @torch.no_grad()
    def export(self, folder: str | Path) -> None:
        """Write the averaged weights of the part into a base folder, in float16."""
        with self.averaged_weights():
            self.write(Path(folder))

    def write(self, folder: Path) -> None:
        """Write the part's own folder; parts with more than one network or other files override this."""
        save_half(getattr(self, self.PART), folder / self.PART)


def save_half(model: nn.Module, folder: Path) -> None:
    """Save a diffusers or transformers model in float16 without changing the model itself."""
    deepcopy(model).half().save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
