"""ImageReward (Xu et al. 2023): BLIP's text encoder with cross-attention to the image, and five linear layers."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.data.preprocessing import crop_square, normalize
from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards import needs
from sfumato.rewards.aesthetic import build_head
from sfumato.rewards.sharing import OncePerBatch, inference

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Published mean and standard deviation of the raw scores, which normalize the reward to mean 0 and deviation 1."""
LONGEST = 35
"""Number of text tokens that captions are truncated or padded to."""


@dataclass(frozen=True, kw_only=True)
class ImageReward:
    """Human preference for the image given its caption, about -2 to 2 and 0 on average."""

    weights: str = "zai-org/ImageReward/ImageReward.pt"
    """published checkpoint: a file, or owner/repository/file on the hub"""
    tokenizer: str = "google-bert/bert-base-uncased"
    """hub id or folder of the tokenizer"""

    def __post_init__(self):
        load_imagereward(self.weights, self.tokenizer)

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        return load_imagereward(self.weights, self.tokenizer).scores(images, words.captions)


class Loaded:
    """The three networks with the tokenizer."""

    def __init__(self, vision: nn.Module, text: nn.Module, head: nn.Module, tokenizer: Any):
        self.networks = nn.ModuleDict({"vision": vision, "text": text, "head": head}).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._last: OncePerBatch[Tensor] = OncePerBatch()

    @torch.no_grad()
    def scores(self, images: Float[Tensor, "B 3 H W"], captions: Sequence[str]) -> Float[Tensor, " B"]:
        """Return the reward of each image and its caption, as published."""
        networks = self.networks.to(images.device)
        features = self._last(images, lambda: self._features(images))
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=LONGEST, return_tensors="pt"
        ).to(images.device)
        with inference(images.device):
            read = networks["text"](
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                encoder_hidden_states=features,
                encoder_attention_mask=torch.ones(features.shape[:2], dtype=torch.long, device=images.device),
            )
        return (networks["head"](read.last_hidden_state[:, 0].float()).squeeze(1) - MEAN) / STD

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        vision: Any = self.networks["vision"]
        pixels = normalize(crop_square(images, vision.config.image_size))
        with inference(images.device):
            return vision(pixel_values=pixels).last_hidden_state


@functools.cache
def load_imagereward(weights: str, tokenizer: str) -> Loaded:
    """Load the model from a published checkpoint; later calls return the same object.

    The size of the model follows from the shapes of the weights.

    Raises:
        UserError: transformers is missing, or the model cannot be loaded.
    """
    needs.package("transformers", "clip")
    from transformers import AutoTokenizer, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.configuration_blip import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    words = needs.pretrained(AutoTokenizer, tokenizer)
    tensors = needs.weights(weights)
    try:
        vision_tensors, text_tensors, head_tensors = split_names(tensors)
        vision = BlipVisionModel(BlipVisionConfig(**vision_shape(vision_tensors)))
        text = BlipTextModel(BlipTextConfig(**text_shape(text_tensors)), add_pooling_layer=False)
        vision.load_state_dict(vision_tensors)
        text.load_state_dict(text_tensors)
        head = build_head(head_tensors)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"weights: {weights} are not those of ImageReward ({reason}); give ImageReward.pt") from error
    return Loaded(vision, text, head, words)


NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)
"""Patterns for the names of BLIP's image encoder and their replacements in transformers. The names of its text encoder
are the same in both."""


def split_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Split a published state dict into those of the image encoder, the text encoder and the linear layers."""
    vision, text, head = {}, {}, {}
    for name, tensor in tensors.items():
        if name.startswith("blip.visual_encoder."):
            short = name.removeprefix("blip.visual_encoder.")
            for pattern, replacement in NAMES:
                short = re.sub(pattern, replacement, short)
            vision[short] = tensor.float()
        elif name.startswith("blip.text_encoder.") and not name.endswith("embeddings.position_ids"):
            text[name.removeprefix("blip.text_encoder.")] = tensor.float()
        elif name.startswith("mlp.layers."):
            head[name.removeprefix("mlp.layers.")] = tensor.float()
    return vision, text, head


def vision_shape(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of the image encoder's config; heads have width 64 in every published size."""
    width, _, patch, _ = tensors["embeddings.patch_embedding.weight"].shape
    side = round((tensors["embeddings.position_embedding"].shape[1] - 1) ** 0.5) * patch
    return {
        "hidden_size": width,
        "intermediate_size": len(tensors["encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in tensors if ".layers." in name),
        "num_attention_heads": width // 64,
        "image_size": side,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
    }


def text_shape(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of the text encoder's config; heads have width 64 in every published size."""
    words, width = tensors["embeddings.word_embeddings.weight"].shape
    return {
        "vocab_size": words,
        "hidden_size": width,
        "encoder_hidden_size": tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        "intermediate_size": len(tensors["encoder.layer.0.intermediate.dense.weight"]),
        "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in tensors if ".layer." in name),
        "num_attention_heads": width // 64,
        "max_position_embeddings": len(tensors["embeddings.position_embeddings.weight"]),
        "layer_norm_eps": 1e-12,
    }
