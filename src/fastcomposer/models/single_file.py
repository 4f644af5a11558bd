"""Base models in one file, as Stability AI and others publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from diffusers.models.modeling_utils import ModelMixin
from transformers import CLIPTokenizer, CLIPVisionModelWithProjection

from fastcomposer.models.published_checkpoint import read_saved
from fastcomposer.models.source import ModelSource, refuse_missing, with_dtype

_SUFFIXES = (".safetensors", ".ckpt")


def is_single_file(base: str | Path) -> bool:
    """Whether a base is named as a single file, rather than as a folder or hub id."""
    return Path(base).suffix in _SUFFIXES and not Path(base).expanduser().is_dir()


class SingleFileSource(ModelSource):
    """A single file, whose parts' configurations are those of an architecture.

    Image encoder and tokenizer are not in such a file. CLIP ViT-L/14, which is the image encoder, comes with
    the tokenizer that Stable Diffusion's text encoders were trained with.
    """

    def load(self, cls: Any, subfolder: str, dtype: torch.dtype = torch.float32) -> Any:
        """Load a network with its weights.

        Raises:
            ValueError: If the file cannot be read or is of another architecture.
        """
        if cls is CLIPVisionModelWithProjection:
            return super().load(cls, subfolder, dtype)
        place: dict[str, Any] = {"config": self.configs, "subfolder": subfolder, "local_files_only": True}
        checkpoint = read_saved(Path(self.base), "base model")
        while "state_dict" in checkpoint:
            checkpoint = checkpoint["state_dict"]
        try:
            if issubclass(cls, ModelMixin):
                network = cls.from_single_file(checkpoint, **place)
            else:
                network = create_diffusers_clip_model_from_ldm(cls, checkpoint, **place)
        except NotImplementedError as error:  # what is missing has a shape and no numbers
            raise ValueError(
                f"{subfolder} of the file {self.base} lacks weights of architecture {self.configs}"
            ) from error
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{subfolder} of the file {self.base} does not fit architecture {self.configs}: {error}"
            ) from error
        missing = [name for name, value in network.state_dict().items() if value.is_meta]
        refuse_missing(cls, self.base, missing)
        return with_dtype(network, dtype)

    def safety_checker(self) -> tuple[None, None]:
        """Two times ``None``: such a file has none."""
        return None, None

    def tokenizer(self, subfolder: str = "tokenizer") -> CLIPTokenizer | None:
        """The tokenizer beside the image encoder, padded as the text encoder's configuration says.

        Raises:
            FileNotFoundError: If there is none, or another.
        """
        config = self.text_config_of(subfolder)
        if config is None:
            return None
        tokenizer = CLIPTokenizer.from_pretrained(self.image_encoder, **self.options)
        # Where there are no files, the library makes an empty one.
        if tokenizer.eos_token_id != config.eos_token_id:
            raise FileNotFoundError(
                f"no tokenizer of CLIP in {self.image_encoder}: a single file has none, so it must be there"
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)  # type: ignore[arg-type]
        return tokenizer
