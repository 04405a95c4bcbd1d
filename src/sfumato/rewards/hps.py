"""HPSv2.1 (Wu et al. 2023): CLIP ViT-H/14 trained on human preferences. The weights have open_clip's names."""

import functools
import html
import re
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sfumato.data.preprocessing import pad_square
from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards import needs
from sfumato.rewards.backbone import Clip


@dataclass(frozen=True, kw_only=True)
class Hps:
    """Cosine of image and caption, -1 to 1; 0.2 to 0.35 in practice."""

    weights: str = "xswu/HPSv2/HPS_v2.1_compressed.pt"
    """checkpoint of open_clip: a file, or owner/repository/file on the hub"""
    base: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    """config and tokenizer of the same model in transformers' format: hub id or folder"""

    def __post_init__(self):
        load_hps(self.weights, self.base)

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        return load_hps(self.weights, self.base).cosines(images, [clean(caption) for caption in words.captions])


def clean(caption: str) -> str:
    """Clean a caption as open_clip's tokenizer does: wrongly decoded text, typographic characters, HTML, spaces, case.

    Raises:
        UserError: ftfy is not installed.
    """
    fixed = needs.package("ftfy", "clip").fix_text(caption)
    return " ".join(html.unescape(html.unescape(fixed)).split()).lower()


@functools.cache
def load_hps(weights: str, base: str) -> Clip:
    """Load the model from an open_clip checkpoint; later calls return the same object.

    Raises:
        UserError: transformers or ftfy is missing, or the model cannot be loaded.
    """
    transformers = needs.package("transformers", "clip")
    needs.package("ftfy", "clip")
    config = needs.pretrained(transformers.CLIPConfig, base)
    tokenizer = needs.pretrained(transformers.AutoTokenizer, base)
    checkpoint = needs.weights(weights)
    tensors = from_open_clip(checkpoint.get("state_dict", checkpoint))
    model = transformers.CLIPModel(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"weights: {weights} do not fit {base} ({' '.join(str(error).split())[:200]})") from error
    return Clip(model, tokenizer, pad_square)


NAMES = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""Patterns for open_clip's names and their replacements in transformers, applied in order."""


def from_open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of open_clip's CLIP to that of transformers' CLIPModel, in float32.

    Projections are transposed, and the matrix of queries, keys and values is split into three.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "attn_mask":  # constant
            continue
        tensor = tensor.float()
        if name in ("visual.proj", "text_projection"):
            tensor = tensor.T.contiguous()
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if ".self_attn.in_proj_" in name:
            for kind, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("in_proj_", f"{kind}_proj.")] = part.contiguous()
        else:
            renamed[name] = tensor
    return renamed
