"""The architectures of conf/model a few channels wide: the same classes, and layers of the same kinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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


def narrow(name: str, folder: Path) -> Path:
    """Write an architecture (``sd15``, ``sd21``, ``sdxl`` or ``sd3``) with few channels."""
    shutil.copytree(ARCHITECTURES / name, folder)
    for part, changes in {"image_encoder": _VISION, "vae": _VAE, **_NARROW[name]}.items():
        file = folder / part / "config.json"
        config = json.loads(file.read_text())
        assert changes.keys() <= config.keys()
        file.write_text(json.dumps(config | changes))
    return folder
