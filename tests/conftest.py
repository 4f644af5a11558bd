"""Fixtures of all tests: a tiny random model in the diffusers folder layout, and the reference numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Nothing in the fast suite may wait for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from command_line import called
from safetensors.torch import load_file
from small_training import small_training
from tiny_networks import write_clip
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

GOLDEN = Path(__file__).parent / "golden"


def tiny_tokenizer_files(folder: Path) -> None:
    """Write a CLIP tokenizer of 500 entries (bos 498, eos 499), with merges for a few words."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters = list(bytes_to_unicode().values())
    words = ("man", "woman", "person", "a", "and", "the", "photo", "of", "beach", "on", "with", "smiling")
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    # What the merges build comes first; single characters fill the vocabulary up to the model's 500 entries.
    entries = dict.fromkeys([*characters, *(c + "</w>" for c in characters)])
    needed = dict.fromkeys(left + right for left, right in merges)
    vocabulary = [*needed, *(entry for entry in entries if entry not in needed)][:498]
    ids = {entry: index for index, entry in enumerate(vocabulary)}
    ids |= {"<|startoftext|>": 498, "<|endoftext|>": 499}
    merges = [(a, b) for a, b in merges if a in ids and b in ids and a + b in ids]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in merges) + "\n")
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_base(
    folder: Path, *, tokenizer: bool = True, prediction_type: str = "epsilon", **changes: Any
) -> Path:
    """Write a random base model; its configuration is that of the reference numbers, with ``changes``."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = json.loads((GOLDEN / "expected.json").read_text())["config"]
    config = {part: {**values, **changes.get(part, {})} for part, values in config.items()}
    torch.manual_seed(0)
    AutoencoderKL(**config["vae"]).save_pretrained(folder / "vae")
    UNet2DConditionModel(**config["unet"]).save_pretrained(folder / "unet")
    CLIPTextModel(CLIPTextConfig(**config["text"])).save_pretrained(folder / "text_encoder")
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**config["vision"]))
    vision.save_pretrained(folder / "image_encoder")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.0",
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        **{part: [None, None] for part in ("tokenizer", "safety_checker", "feature_extractor")},
        "requires_safety_checker": False,
    }
    if tokenizer:
        tiny_tokenizer_files(folder / "tokenizer")
        index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


@dataclass(frozen=True)
class Golden:
    """What the published implementation computes on a small random model (tests/golden/README.md)."""

    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]
    expected: dict[str, Any]

    def batch(self) -> Any:
        """The reference batch as a SubjectBatch."""
        from fastcomposer import SubjectBatch

        return SubjectBatch(
            pixel_values=self.tensors["batch.pixel_values"],
            input_ids=self.tensors["batch.input_ids"],
            subject_pixel_values=self.tensors["batch.object_pixel_values"],
            subject_token_idx=self.tensors["batch.image_token_idx"],
            subject_present=self.tensors["batch.image_token_idx_mask"],
            subject_masks=self.tensors["batch.object_segmaps"],
        )

    def drawn(self) -> dict[str, Tensor]:
        """The latents, noise and timesteps that were drawn."""
        return {name: self.tensors[f"batch.{name}"] for name in ("latents", "noise", "timesteps")}


@pytest.fixture(scope="session")
def write_base() -> Callable[..., Path]:
    """Write a random base model into a folder."""
    return _write_base


@pytest.fixture(scope="session")
def golden() -> Golden:
    tensors, weights = (load_file(GOLDEN / f"{name}.safetensors") for name in ("tensors", "weights"))
    return Golden(tensors, weights, json.loads((GOLDEN / "expected.json").read_text())["expected"])


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base model with tokenizer and image encoder, in the diffusers folder layout."""
    return _write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def published_checkpoint(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the layout of the released ``pytorch_model.bin``."""
    path = tmp_path_factory.mktemp("published") / "pytorch_model.bin"
    torch.save(golden.weights, path)
    return path


@pytest.fixture(scope="module")
def v_base(write_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose scheduler says that the U-Net predicts velocity."""
    return write_base(tmp_path_factory.mktemp("v") / "base", prediction_type="v_prediction", tokenizer=False)


@pytest.fixture
def golden_model(tiny_base: Path, published_checkpoint: Path) -> Any:
    """The model of the reference numbers, through the public API."""
    from fastcomposer import FastComposer

    return FastComposer.from_published_checkpoint(published_checkpoint, base=tiny_base)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four scenes to train on and eight held out."""
    return write_world(tmp_path_factory.mktemp("world"))


def write_world(root: Path, num_train: int = 24, num_test: int = 8) -> Path:
    """Render a small world."""
    from fastcomposer.miniworld.render import prepare_avatars
    from fastcomposer.miniworld.scenes import AvatarScenes

    scenes = AvatarScenes(size=64, num_identities=8)
    prepare_avatars(root, scenes, num_train, num_test, num_workers=0, reference_size=56)
    return root


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base small enough for hundreds of steps."""
    return write_small_base(tmp_path_factory.mktemp("base"))


def write_small_base(folder: Path) -> Path:
    """Write that base."""
    blocks = {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    sizes = {"block_out_channels": [8, 8], "norm_num_groups": 4, "attention_head_dim": 2}
    return _write_base(folder, unet=blocks | sizes)


# --- of the commands ---------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Call a command in this process, in an empty folder; returns status, output and errors."""
    monkeypatch.chdir(tmp_path)
    return called


@pytest.fixture
def settings(world: Path, small_base: Path) -> list[str]:
    """A training of seconds."""
    return small_training(
        small_base,
        world,
        "callbacks.samples.scores=null",
        "data.module.batch_size=2",
        "trainer.max_steps=3",
        "trainer.val_check_interval=2",
        "trainer.limit_val_batches=1",
        "+sampler.height=32",
        "+sampler.width=32",
        "sampler.num_inference_steps=2",
    )


@pytest.fixture(scope="session")
def astronaut() -> Image.Image:
    """A woman, (512, 512)."""
    import skimage
    from PIL import Image

    return Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB")


@pytest.fixture(scope="session")
def admiral() -> Image.Image:
    """Another woman, (512, 512)."""
    from matplotlib import cbook
    from PIL import Image

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB").resize((512, 606)).crop((0, 0, 512, 512))


@pytest.fixture(scope="session")
def paper_metrics(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings that give the networks by path: random ones, but for MTCNN, which comes with its weights."""
    from facenet_pytorch import InceptionResnetV1

    folder = tmp_path_factory.mktemp("metrics")
    torch.manual_seed(0)
    torch.save(InceptionResnetV1().state_dict(), folder / "inception.pt")
    write_clip(folder / "clip", tiny_base / "tokenizer")
    files = f"metrics.faces.weights={folder / 'inception.pt'}", f"metrics.image_text.model={folder / 'clip'}"
    return ["metrics=paper", *files]
