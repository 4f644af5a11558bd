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

_SD3 = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "proj_out": "final_layer.linear",
}
_SD3 |= {"time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0"}
_SD3 |= {"time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2"}
_SD3 |= {"time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0"}
_SD3 |= {"time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2"}
_SD3 |= {"norm_out.linear": "final_layer.adaLN_modulation.1", "transformer_blocks": "joint_blocks"}
_SD3_BLOCK = {"norm1.linear": "adaLN_modulation.1", "ff.net.0.proj": "mlp.fc1", "ff.net.2": "mlp.fc2"}
_SD3_BLOCK |= {"norm_added_": "ln_", "norm_": "ln_", "to_out.0": "proj", "to_add_out": "proj"}


def single_file_state(model: Any) -> dict[str, Tensor]:
    """Weights of the backbone, VAE and text encoders of a model; nothing else is in such a file."""
    if model.unet is None:
        state = {f"model.diffusion_model.{k}": v for k, v in _sd3(model.transformer).items()}
        state |= {f"first_stage_model.{k}": v for k, v in _vae(model.vae).items()}
        state |= _clip(model.text_encoder, "text_encoders.clip_l.transformer.")
        state |= _clip(model.text_encoder_2, "text_encoders.clip_g.transformer.")
        t5 = {} if model.text_encoder_3 is None else model.text_encoder_3.state_dict()
        t5.pop("encoder.embed_tokens.weight", None)  # it is shared.weight
        return state | {f"text_encoders.t5xxl.transformer.{name}": value for name, value in t5.items()}
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


def _sd3(transformer: Any) -> dict[str, Tensor]:
    last = len(transformer.transformer_blocks) - 1
    state, joined = {}, {}
    for name, value in transformer.state_dict().items():
        if name.startswith(("norm_out.", f"transformer_blocks.{last}.norm1_context.")):
            value = torch.cat([*reversed(value.chunk(2))])  # shift and scale
        for ours, theirs in _SD3.items():
            name = name.replace(ours, theirs)
        found = re.fullmatch(r"(.*)\.(attn2?)\.(to|add)_([qkv])(?:_proj)?\.(weight|bias)", name)
        if found is None:
            state[_stream(name)] = value
        else:
            stream = "context_block" if found[3] == "add" else "x_block"
            key = f"{found[1]}.{stream}.{found[2]}.qkv.{found[5]}"
            joined.setdefault(key, {})[found[4]] = value
    return state | {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in joined.items()}


def _stream(name: str) -> str:
    """Name of a block's tensor, in the stream of the image or of the text."""
    block = re.fullmatch(r"(joint_blocks\.\d+)\.(.*)", name)
    if block is None:
        return name
    of_text = re.search(r"_context\.|added_|to_add_out", block[2])
    rest = block[2].replace("_context.", ".")
    for ours, theirs in _SD3_BLOCK.items():
        rest = rest.replace(ours, theirs)
    return f"{block[1]}.{'context_block' if of_text else 'x_block'}.{rest}"


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
