"""Tiny random networks of the classes that preparation uses, in folders as the hub has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

WORDS = ("a", "man", "woman", "and")
_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_blip(folder: Path, seed: int = 0) -> None:
    """A BLIP that knows four words."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        BlipTextConfig,
        BlipVisionConfig,
    )

    folder.mkdir(parents=True, exist_ok=True)
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary = {word: number for number, word in enumerate(entries)}
    tokenizer = BertTokenizerFast(vocab=vocabulary, do_lower_case=True)
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    more = {"encoder_hidden_size": 16, "projection_dim": 16, "max_position_embeddings": 64}
    text = BlipTextConfig(vocab_size=len(vocabulary), **_SIZES, **more, **special)
    vision = BlipVisionConfig(**_SIZES, image_size=32)
    torch.manual_seed(seed)
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    network = BlipForConditionalGeneration(config)
    _only_words(network.text_decoder.cls.predictions.bias, vocabulary)
    network.save_pretrained(folder)
    processor = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(processor, tokenizer).save_pretrained(folder)


def write_blip2(folder: Path, seed: int = 0) -> None:
    """A BLIP-2 with an OPT that knows four words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
        PreTrainedTokenizerFast,
    )

    folder.mkdir(parents=True, exist_ok=True)
    entries = ["<s>", "<pad>", "</s>", "<unk>", "<image>", *WORDS]
    vocabulary = {word: number for number, word in enumerate(entries)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = Blip2VisionConfig(**_SIZES, image_size=28, patch_size=14)
    qformer = Blip2QFormerConfig(**_SIZES, vocab_size=30, encoder_hidden_size=16, cross_attention_frequency=1)
    layers = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    layers |= {"word_embed_proj_dim": 16, "max_position_embeddings": 64}
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    text = OPTConfig(vocab_size=len(vocabulary), **layers, **special)
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=4,
    )
    torch.manual_seed(seed)
    network = Blip2ForConditionalGeneration(config)
    with torch.no_grad():  # the embeddings are the output layer, too: words win over what is no word
        network.get_input_embeddings().weight[-len(WORDS) :] *= 50
    network.save_pretrained(folder)
    processor = BlipImageProcessor(size={"height": 28, "width": 28})
    Blip2Processor(processor, tokenizer, num_query_tokens=4).save_pretrained(folder)


def write_mask2former(folder: Path, seed: int = 0) -> None:
    """A Mask2Former on a Swin backbone, of two classes."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    depths = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
    backbone = SwinConfig(image_size=64, embed_dim=8, window_size=4, out_features=stages, **depths)
    widths = ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward")
    config = Mask2FormerConfig(
        backbone_config=backbone,
        **dict.fromkeys(widths, 32),
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        id2label={0: "person", 1: "wall"},
        label2id={"person": 0, "wall": 1},
    )
    torch.manual_seed(seed)
    network = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # random classes would nearly all be the same; and none is "nothing"
        network.class_predictor.weight.mul_(20)
        network.class_predictor.bias.copy_(torch.tensor([3.0, 2.0, -9.0]))
    network.save_pretrained(folder)
    size = {"height": 64, "width": 64}
    Mask2FormerImageProcessor(size=size, size_divisor=0, ignore_index=255).save_pretrained(folder)


def write_clip(folder: Path, tokenizer: Path, seed: int = 0) -> None:
    """A CLIP with the tokenizer of another folder."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    shutil.copytree(tokenizer, folder)
    text = CLIPTextConfig(**_SIZES, vocab_size=500, bos_token_id=498, eos_token_id=499, pad_token_id=499)
    vision = CLIPVisionConfig(**_SIZES, image_size=32, patch_size=16)
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    CLIPModel(config).save_pretrained(folder)


def _only_words(bias: torch.Tensor, vocabulary: dict[str, int]) -> None:
    """Make everything but the words most unlikely."""
    with torch.no_grad():
        bias.fill_(-50.0)
        bias[[vocabulary[word] for word in WORDS]] = 0.0
