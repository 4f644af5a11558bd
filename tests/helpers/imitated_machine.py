"""Imitations of what the paper's scale needs: photos, people, and narrow networks in the true layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import skimage
import spacy
import torch
from matplotlib import cbook
from PIL import Image
from spacy.training import Example
from tiny_architectures import narrow
from tiny_networks import write_blip2, write_mask2former

from fastcomposer.evaluation.benchmark import read_definition

DATA = Path(__file__).parents[2] / "data"
PROTOCOL = DATA / "benchmarks" / "paper"
FACENET = "20180402-114759-vggface2.pt"


def write_ffhq(folder: Path, sides: tuple[int, ...] = (1024,)) -> int:
    """Photos in the layout of FFHQ in the wild, of images that packages ship; returns how many."""
    shipped = Path(skimage.__file__).parent / "data"
    images = [Image.open(shipped / f"{name}.png") for name in ("astronaut", "chelsea", "coffee")]
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        images.append(Image.open(file).copy())
    number = 0
    for image in images:
        for turned in (
            image.convert("RGB"),
            image.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        ):
            path = folder / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            side = sides[number % len(sides)]
            # Some are wider than tall, as photos in the wild are.
            turned.resize((side + 128 * (number % 3), side)).save(path, compress_level=1)
            number += 1
    (folder / "LICENSE.txt").write_text("whose photos they are")
    return number


def write_celeba(folder: Path, woman: Image.Image, man: Image.Image) -> None:
    """A folder of two images for each person of the published benchmark."""
    for name, word in (read_definition(PROTOCOL / "single_subject.json").subjects or {}).items():
        (folder / name).mkdir(parents=True)
        for number in (1, 2):
            (man if word == "man" else woman).save(folder / name / f"{number:06d}.jpg")


def write_hub(home: Path, architecture: Path) -> None:
    """Hugging Face's cache with every model of the guide under its id, SD 1.5 of a narrow architecture."""
    write_blip2(_snapshot(home, "Salesforce/blip2-opt-2.7b"))
    write_mask2former(_snapshot(home, "facebook/mask2former-swin-large-coco-panoptic"))
    _write_clip(_snapshot(home, "openai/clip-vit-large-patch14"), architecture)
    _write_base(_snapshot(home, "stable-diffusion-v1-5/stable-diffusion-v1-5"), architecture)


def write_narrow_sd15(folder: Path) -> Path:
    """The architecture of SD 1.5, narrow, for references of 224 pixels and images of 128."""
    narrow("sd15", folder)
    for part, size in (("image_encoder", {"image_size": 224}), ("unet", {"sample_size": 16})):
        file = folder / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | size))
    return folder


def write_facenet(home: Path) -> None:
    """Torch's cache with random weights of InceptionResnetV1."""
    from facenet_pytorch import InceptionResnetV1

    torch.manual_seed(0)
    (home / "checkpoints").mkdir(parents=True)
    torch.save(InceptionResnetV1().state_dict(), home / "checkpoints" / FACENET)


def write_english(site: Path, name: str = "en_core_web_sm") -> None:
    """An installed pipeline of spaCy whose parser has learned the captions of the imitated captioner."""
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("attribute_ruler")
    parser = nlp.add_pipe("parser")
    for label in ("ROOT", "det", "cc", "conj"):
        parser.add_label(label)
    examples = [
        Example.from_dict(nlp.make_doc(text), {"heads": heads, "deps": deps.split()})
        for text, heads, deps in (
            ("a man", [1, 1], "det ROOT"),
            ("a woman", [1, 1], "det ROOT"),
            ("a man and a woman", [1, 1, 1, 4, 1], "det ROOT cc det conj"),
            ("man and woman", [0, 0, 0], "ROOT cc conj"),
        )
    ]
    nlp.initialize(lambda: examples)
    for words, kind in ((("a",), "DET"), (("man", "woman"), "NOUN"), (("and",), "CCONJ")):
        ruler.add([[{"LOWER": {"IN": list(words)}}]], {"POS": kind})
    for _ in range(20):
        nlp.update(examples)
    package = site / name
    package.mkdir(parents=True)
    meta = nlp.meta | {"lang": "en", "name": name.removeprefix("en_"), "version": "3.8.0"}
    (package / "meta.json").write_text(json.dumps(meta))
    loads = "from spacy.util import load_model_from_init_py\n\n\ndef load(**options):\n"
    loads += "    return load_model_from_init_py(__file__, **options)\n"
    (package / "__init__.py").write_text(loads)
    nlp.to_disk(package / f"{name}-3.8.0")
    installed = site / f"{name}-3.8.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 3.8.0\n")


def _snapshot(home: Path, name: str) -> Path:
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    return snapshot


def _write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer in its old files: 49 408 entries, of which the embedded base's are words."""
    model = json.loads((DATA / "mini" / "tokenizer" / "tokenizer.json").read_text())["model"]
    words = {word: index for word, index in model["vocab"].items() if not word.startswith("<|")}
    free = set(range(49406)) - set(words.values())
    words |= {f"no word {index}": index for index in free}
    words |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(words))
    merges = [" ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_clip(folder: Path, architecture: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    text, vision = (
        json.loads((architecture / part / "config.json").read_text())
        for part in ("text_encoder", "image_encoder")
    )
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=vision["projection_dim"])
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    _write_tokenizer(folder)


def _write_base(folder: Path, architecture: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    for name, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        config = json.loads((architecture / name / "config.json").read_text())
        cls.from_config(config).save_pretrained(folder / name)
    config = CLIPTextConfig.from_pretrained(architecture, subfolder="text_encoder")
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    shutil.copytree(architecture / "scheduler", folder / "scheduler")
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")
    _write_tokenizer(folder / "tokenizer")
    index = json.loads((architecture / "model_index.json").read_text())
    del index["image_encoder"]
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
