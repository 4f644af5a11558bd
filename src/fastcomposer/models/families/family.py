"""The interface of a family of denoising networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from fastcomposer.utils.rng import Source


@dataclass(frozen=True)
class Family(ABC):
    """A denoising network and the process that it is trained on.

    Attributes:
        backbone: The denoising network.
        scheduler: Of the class ``SCHEDULER``; its configuration is the base's.
        settings: The base's ``model_index.json``.

    Raises:
        ValueError: If the scheduler's configuration is not one that the network can be trained with.
    """

    NAME: ClassVar[str]
    """Of the network's folder and component, and the prefix of its weights."""
    NETWORK: ClassVar[Any]
    """Class of the network."""
    SCHEDULER: ClassVar[Any]
    """Class of the scheduler that adds noise in training."""
    LORA_TARGETS: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Last parts of the names of the layers that a LoRA adapts by default: the projections of attention."""

    BLOCKS: ClassVar[tuple[type[nn.Module], ...]]
    """Classes of the blocks that are compiled, each for itself."""
    ROUTES: ClassVar[bool]
    """Whether the network's attention takes the mask of ``fusion.routing``."""
    T5: ClassVar[bool] = False
    """Whether T5's states, or zeros in their place, follow those of CLIP."""

    backbone: Any
    scheduler: Any
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:  # noqa: B027, families that take every scheduler keep it
        """Refuse a scheduler that does not fit."""

    @property
    @abstractmethod
    def latent_factor(self) -> int:
        """Number that height and width of the latents must be multiples of."""

    @property
    @abstractmethod
    def text_dims(self) -> tuple[int, int]:
        """Widths of the prompt's states and of the pooled embedding, which is 0 where none is taken."""

    @property
    @abstractmethod
    def stages(self) -> list[nn.Module]:
        """Parts of the network, in order, that are sharded one by one."""

    @abstractmethod
    def predict(
        self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor, added: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Call the network.

        Args:
            noisy: (B, C, h, w) latents.
            timesteps: (B,).
            prompt_embeds: (B, T, d) states of the text encoders with the subjects fused in.
            added: Of :meth:`~fastcomposer.models.text.TextConditioner.added_condition`.

        Returns:
            (B, C, h, w).
        """

    @abstractmethod
    def timesteps_at(self, timestep: float, count: int, device: Any) -> Tensor:
        """(count,) equal timesteps; ``ValueError`` if the process has no such timestep."""

    @abstractmethod
    def draw_timesteps(self, count: int, device: Any, source: Source) -> Tensor:
        """Draw (count,) timesteps as the base is trained."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents (B, C, h, w) at timesteps (B,)."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is trained to predict, (B, C, h, w)."""

    @abstractmethod
    def clean_latents(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """Scaled latents x̂₀ (B, C, h, w) in float32 that a prediction from noisy latents amounts to."""

    def denoise(self, noisy: Tensor, clean: Tensor, timesteps: Tensor, following: Tensor) -> Tensor:
        """Take a deterministic step (DDIM, Euler) from timesteps (B,) to the lower ones that follow.

        What is in ``noisy`` beside the predicted latents x̂₀, ``clean``, is the noise that is added to these.
        """
        zeros = clean.new_zeros(())
        signal = self.add_noise(clean, zeros.expand_as(clean), timesteps)
        unit = self.add_noise(zeros.expand_as(clean), clean.new_ones(()).expand_as(clean), timesteps)
        # Without noise, at t = 0 of a flow, there is nothing to divide.
        return self.add_noise(clean, (noisy - signal) / unit.clamp(min=1e-6), following)
