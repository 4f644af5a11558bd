"""A model's weights under the names of Stability AI's single files: the inverse of what diffusers reads."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
_RESNET |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
_UNET = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
_UNET |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
_UNET |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_CLIP = {"embeddings.token_embedding.weight": "token_embedding.weight", "final_layer_norm": "ln_final"}
_CLIP |= {"embeddings.position_embedding.weight": "positional_embedding"}
_CLIP |= {"encoder.layers": "transformer.resblocks", "layer_norm": "ln_", "self_attn": "attn"}
_CLIP |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def single_file_state(model: Any) -> dict[str, Tensor]:
    """Weights of the U-Net, VAE and text encoders of a model; nothing else is in such a file."""
    state = {f"model.diffusion_model.{k}": v for k, v in _unet(model.unet).items()}
    state |= {f"first_stage_model.{k}": v for k, v in _vae(model.vae).items()}
    first, second = model.text_encoder, model.text_encoder_2
    if second is not None:
        state |= _clip(first, "conditioner.embedders.0.transformer.text_model.")
        state |= _open_clip(second.text_model, "conditioner.embedders.1.model.")
        projection = second.text_projection.weight.T.contiguous()
        state["conditioner.embedders.1.model.text_projection"] = projection
    elif first.config.hidden_act == "gelu":
        state |= _open_clip(first, "cond_stage_model.model.")
    else:
        state |= _clip(first, "cond_stage_model.transformer.text_model.")
    return state


def _renamed(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        name = re.sub(rf"(^|\.){re.escape(ours)}(?=\.|$|\d)", rf"\g<1>{theirs}", name)
    return name


def _unet(unet: Any) -> dict[str, Tensor]:
    group = unet.config.layers_per_block + 1
    state = {}
    for name, value in unet.state_dict().items():
        found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.*)", name)
        if found is None:
            middle = name.removeprefix("mid_block.")
            if middle != name:
                rest = _renamed(middle, _MIDDLE)
                state["middle_block." + (_renamed(rest, _RESNET) if rest[0] in "02" else rest)] = value
            else:
                state[_renamed(name, _UNET)] = value
            continue
        way, block, kind, number, rest = found.groups()
        if way == "down":
            place = (
                group * int(block) + int(number) + 1 if kind != "downsamplers" else group * (int(block) + 1)
            )
            prefix = f"input_blocks.{place}."
        else:
            place = group * int(block) + (int(number) if kind != "upsamplers" else group - 1)
            prefix = f"output_blocks.{place}."
        if kind == "resnets":
            rest = "0." + _renamed(rest, _RESNET)
        elif kind == "attentions":
            rest = "1." + rest
        elif kind == "downsamplers":
            rest = "0." + rest.replace("conv", "op")
        else:
            rest = ("2." if hasattr(unet.up_blocks[int(block)], "attentions") else "1.") + rest
        state[prefix + rest] = value
    return state


def _vae(vae: Any) -> dict[str, Tensor]:
    last = len(vae.config.block_out_channels) - 1
    state = {}
    for name, value in vae.state_dict().items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if "mid_block.attentions.0." in name:
            name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
            name = name.replace("to_out.0", "proj_out").replace("to_", "")
            value = value[..., None, None] if value.ndim == 2 else value  # a convolution there
        state[name] = value
    return state


def _clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in encoder.state_dict().items()}


def _open_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    state, joined = {}, {}
    for name, value in encoder.state_dict().items():
        found = re.match(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
        if found is not None:
            joined.setdefault((found[1], found[3]), {})[found[2]] = value
            continue
        for ours, theirs in _CLIP.items():
            name = name.replace(ours, theirs)
        state[prefix + name] = value
    for (layer, kind), parts in joined.items():
        name = f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{kind}"
        state[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return state
