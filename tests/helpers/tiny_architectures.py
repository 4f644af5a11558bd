"""The architectures of conf/model a few channels wide: the same classes, and layers of the same kinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tiny_pipeline import reference
from transformers import T5Config, T5Tokenizer

from fastcomposer import FastComposer, SubjectBatch
from fastcomposer.prompt import parse_prompt

PROMPT = "a man <|image|> and a woman <|image|> on the beach"
REFERENCES = [reference(0), reference(1)]
ARCHITECTURES = Path(__file__).parents[2] / "data" / "architectures"
_VISION = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_VISION |= {"image_size": 28, "projection_dim": 32}
_VAE = {"block_out_channels": [4, 4, 8, 8], "norm_num_groups": 4, "layers_per_block": 1}
_FIRST: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_FOUR: dict[str, Any] = {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4, "sample_size": 8}
_NARROW: dict[str, dict[str, Any]] = {
    "sd15": {
        "unet": {**_FOUR, "attention_head_dim": 2, "cross_attention_dim": 32},
        "text_encoder": {**_FIRST, "hidden_size": 32, "projection_dim": 32},
    },
    "sd21": {
        "unet": {**_FOUR, "attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 48},
        "text_encoder": {**_FIRST, "hidden_size": 48, "projection_dim": 16},
    },
    "sdxl": {
        "unet": {
            "block_out_channels": [8, 16, 16],
            "norm_num_groups": 4,
            "sample_size": 8,
            "attention_head_dim": [1, 2, 4],
            "transformer_layers_per_block": [1, 2, 3],
            "cross_attention_dim": 80,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 40 + 6 * 8,
        },
        "text_encoder": {**_FIRST, "hidden_size": 32, "projection_dim": 32},
        "text_encoder_2": {**_FIRST, "hidden_size": 48, "projection_dim": 40, "num_hidden_layers": 3},
    },
    "sd3": {
        "transformer": {
            "sample_size": 8,
            "num_layers": 3,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 96,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 32 + 40,
            "pos_embed_max_size": 8,
            "dual_attention_layers": [0],
        },
        "text_encoder": {**_FIRST, "hidden_size": 32, "projection_dim": 32},
        "text_encoder_2": {**_FIRST, "hidden_size": 48, "projection_dim": 40, "num_hidden_layers": 3},
    },
}


def add_t5(folder: Path, length: int = 12) -> Path:
    """Add a T5 encoder and its tokenizer to a narrow ``sd3``, and let a prompt have so many of its tokens."""
    words = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁man", "▁wo", "man", "▁and", "▁on", "▁the", "▁bea", "ch"]
    T5Tokenizer(vocab=[(word, -float(i)) for i, word in enumerate(words)], extra_ids=0).save_pretrained(
        folder / "tokenizer_3"
    )
    sizes = {"d_model": 96, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 2}
    T5Config(vocab_size=len(words), **sizes, tie_word_embeddings=True).save_pretrained(
        folder / "text_encoder_3"
    )
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder_3"] = ["transformers", "T5EncoderModel"]
    index["tokenizer_3"] = ["transformers", "T5TokenizerFast"]
    index["max_sequence_length"] = length
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def narrow(name: str, folder: Path) -> Path:
    """Write an architecture (``sd15``, ``sd21``, ``sdxl`` or ``sd3``) with few channels."""
    shutil.copytree(ARCHITECTURES / name, folder)
    for part, changes in {"image_encoder": _VISION, "vae": _VAE, **_NARROW[name]}.items():
        file = folder / part / "config.json"
        config = json.loads(file.read_text())
        assert changes.keys() <= config.keys()
        file.write_text(json.dumps(config | changes))
    return folder


def batch_of(model: FastComposer) -> SubjectBatch:
    """Two samples, the second with one subject of two slots."""
    rng = torch.Generator().manual_seed(0)
    parsed = [parse_prompt(text, model.prompt_tokenizer) for text in (PROMPT, "a man <|image|>")]
    words, words_3 = (
        torch.tensor([[*row, 0][:2] for row in rows]) if all(rows) else None
        for rows in ([p.subject_token_idx for p in parsed], [p.subject_token_idx_3 for p in parsed])
    )
    masks = torch.zeros(2, 2, 64, 64)
    masks[:, 0, 8:40, 4:30] = masks[0, 1, 10:60, 34:60] = 1
    return SubjectBatch(
        pixel_values=torch.rand(2, 3, 64, 64, generator=rng) * 2 - 1,
        input_ids=torch.tensor([prompt.all_ids for prompt in parsed]),
        subject_pixel_values=torch.rand(2, 2, 3, 28, 28, generator=rng),
        subject_token_idx=words,
        subject_token_idx_3=words_3,
        subject_present=torch.tensor([[True, True], [True, False]]),
        subject_masks=masks,
    )
