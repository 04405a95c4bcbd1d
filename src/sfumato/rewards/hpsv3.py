"""HPSv3 (Ma et al. 2025, arXiv 2508.03789): Qwen2-VL-7B trained on human preferences. The score is read at a special
token in an instruction. Its wording is part of the model, and is taken from the authors' package.
"""

import ast
import functools
import importlib.util
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.data.preprocessing import normalize, resize
from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards import needs

TOKEN, IMAGE = "<|Reward|>", "<|image_pad|>"
"""The token at which the score is read, and that which stands for a part of the image."""
PIXELS, MULTIPLE = 256 * 28 * 28, 28
"""Number of pixels that images are resized to, about, and the number that their sides are multiples of."""
HEAD = (1024, 16, 2)
"""Output widths of the linear layers; the two outputs are the mean and the log of the deviation of the preference."""
IMAGES_AT_ONCE = 8
"""Number of images per forward pass, each with about 900 tokens."""


@dataclass(frozen=True, kw_only=True)
class HpsV3:
    """Human preference for the image given its caption, about 10 for good images."""

    weights: str = "MizzenAI/HPSv3/HPSv3.safetensors"
    """published checkpoint: a file, or owner/repository/file on the hub"""
    base: str = "Qwen/Qwen2-VL-7B-Instruct"
    """config and tokenizer of the model that it was trained from: hub id or folder"""

    def __post_init__(self):
        load(self.weights, self.base)

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        loaded = load(self.weights, self.base)
        parts = torch.arange(len(images)).split(IMAGES_AT_ONCE)
        return torch.cat([loaded.scores(images[part.to(images.device)], words[part].captions) for part in parts])


class Loaded:
    """The network without its language head, the linear layers, and the tokenizer."""

    def __init__(self, network: Any, head: nn.Module, tokenizer: Any, instruction: str):
        self.network, self.head = network.eval().requires_grad_(False), head.eval().requires_grad_(False)
        self.tokenizer, self.instruction = tokenizer, instruction
        self.token: int = tokenizer.convert_tokens_to_ids(TOKEN)

    @torch.no_grad()
    def scores(self, images: Float[Tensor, "B 3 H W"], captions: Sequence[str]) -> Float[Tensor, " B"]:
        """Return the mean preference of each image."""
        network, device, config = self.network.to(images.device), images.device, self.network.config
        patches, grid = patches_of(images, config.vision_config)
        count = grid.prod() // config.vision_config.spatial_merge_size**2
        texts = [self.text(caption, int(count)) for caption in captions]
        inputs = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(device)
        seen = network.get_image_features(patches, grid.expand(len(images), 3).to(device))
        seen = torch.cat(list(getattr(seen, "pooler_output", seen)))  # a tuple before transformers 5
        tokens = inputs["input_ids"]
        embeddings = network.get_input_embeddings()(tokens)
        places = (tokens == config.image_token_id)[..., None].expand_as(embeddings)
        # HPSv3 was trained with positions that simply count, not with Qwen2-VL's positions in the image.
        positions = torch.arange(tokens.shape[1], device=device).expand(3, *tokens.shape)
        states = network.language_model(
            inputs_embeds=embeddings.masked_scatter(places, seen.to(embeddings)),
            attention_mask=inputs["attention_mask"],
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return self.head.to(device)(states[tokens == self.token].float())[:, 0]

    def text(self, caption: str, count: int) -> str:
        """Return what the model reads about a caption and an image of this number of tokens."""
        for special in (TOKEN, IMAGE):
            caption = caption.replace(special, "")
        content = [{"type": "image"}, {"type": "text", "text": self.instruction.format(text_prompt=caption)}]
        message = {"role": "user", "content": content}
        text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        return text.replace(IMAGE, IMAGE * count)


def patches_of(images: Float[Tensor, "B 3 H W"], config: Any) -> tuple[Float[Tensor, "N P"], Int[Tensor, " 3"]]:
    """Return resized and normalized images in patches as Qwen2-VL's processor does, and the number of patches in time,
    height and width. Patches that are merged to one token are adjacent; images are repeated to make a short film."""
    pixels = normalize(resize(images, *sides(*images.shape[-2:])))
    side, merged = config.patch_size, config.spatial_merge_size
    tall, wide = pixels.shape[-2] // side, pixels.shape[-1] // side
    blocks = pixels.view(len(images), 3, tall // merged, merged, side, wide // merged, merged, side)
    patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, 3, 1, side, side)
    film = patches.expand(-1, -1, config.temporal_patch_size, -1, -1)
    return film.flatten(1), torch.tensor([1, tall, wide])


def sides(height: int, width: int) -> tuple[int, int]:
    """Return the sides that images are resized to: multiples of 28 of about the same shape, with about 448² pixels."""
    near = [max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE) for side in (height, width)]
    scale, area = math.sqrt(PIXELS / (height * width)), near[0] * near[1]
    if area == PIXELS:
        return near[0], near[1]
    whole = math.floor if area > PIXELS else math.ceil
    tall, wide = (whole(side * scale / MULTIPLE) * MULTIPLE for side in (height, width))
    return tall, wide


@functools.cache
def load(weights: str, base: str) -> Loaded:
    """Load the model from a published checkpoint; later calls return the same object.

    Raises:
        UserError: transformers or hpsv3 is missing, or the model cannot be loaded.
    """
    transformers = needs.package("transformers", "clip")
    instruction = published_instruction()
    config = needs.pretrained(transformers.AutoConfig, base)
    tokenizer = needs.pretrained(transformers.AutoTokenizer, base)
    tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
    network_tensors, head_tensors = split_names(needs.weights(weights))
    head = build_head(config.get_text_config().hidden_size)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    network = transformers.AutoModel.from_config(config, dtype=dtype)
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    try:
        network.load_state_dict(network_tensors)
        head.load_state_dict(head_tensors)
    except RuntimeError as error:
        raise UserError(f"weights: {weights} do not fit {base} ({' '.join(str(error).split())[:200]})") from error
    return Loaded(network, head, tokenizer, instruction)


def build_head(width: int) -> nn.Sequential:
    """Build the linear layers, whose names are 0, 3 and 5."""
    first, second, last = HEAD
    layers = [nn.Linear(width, first), nn.ReLU(), nn.Dropout(0.05), nn.Linear(first, second), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(second, last))


NAMES = (
    (r"^model\.(language_model|visual)\.", r"\1."),
    (r"^model\.", "language_model."),
)
"""Patterns for the checkpoint's names, in old and new versions of transformers, and their replacements."""


def split_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a published state dict into those of the network and of the linear layers, without the language head."""
    network, head = {}, {}
    for name, tensor in tensors.items():
        if name.startswith("rm_head."):
            head[name.removeprefix("rm_head.")] = tensor.float()
        elif not name.startswith("lm_head."):
            for pattern, replacement in NAMES:
                name = re.sub(pattern, replacement, name)
            network[name] = tensor
    return network, head


def published_instruction() -> str:
    """Read the instruction from the source of the authors' package, which is not run: it would need their versions of
    several libraries.

    Raises:
        UserError: the package is not installed, or does not have it.
    """
    spec = importlib.util.find_spec("hpsv3")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("hpsv3 is not installed; pip install --no-deps hpsv3")
    file = Path(next(iter(spec.submodule_search_locations))) / "dataset/data_collator_qwen.py"
    texts = {}
    if file.is_file():
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                texts |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    try:
        return texts["INSTRUCTION"] + texts["prompt_with_special_token"]
    except KeyError as error:
        raise UserError(f"hpsv3: {file} has no {error}; pip install --no-deps hpsv3==1.0.0") from error
