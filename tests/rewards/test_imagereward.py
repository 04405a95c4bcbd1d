"""ImageReward's published names, on a small random model."""

import re
from pathlib import Path

import pytest
import torch
from errors import bad_input
from tiny import tiny_request

from sfumato.data.preprocessing import normalize, resize
from sfumato.rewards import build_reward
from sfumato.rewards.aesthetic import WIDTHS
from sfumato.rewards.imagereward import MEAN, STD, vision_shape

pytest.importorskip("transformers")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WORDS = tiny_request([0, 2]).words
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "ant", "bee", "cat")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module, torch.nn.Module]:
    """A folder with the checkpoint and the tokenizer, and the networks in the checkpoint."""
    from transformers import BertTokenizer, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.configuration_blip import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    folder = tmp_path_factory.mktemp("imagereward")
    BertTokenizer(vocab={word: n for n, word in enumerate(PIECES)}).save_pretrained(folder)
    small = {"num_hidden_layers": 1, "intermediate_size": 96, "initializer_range": 0.05}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=64, num_attention_heads=1, image_size=48, patch_size=16, layer_norm_eps=1e-6, **small
            )
        )
        text = BlipTextModel(
            BlipTextConfig(
                vocab_size=len(PIECES), hidden_size=768, encoder_hidden_size=64, num_attention_heads=12, bos_token_id=2,
                sep_token_id=3, pad_token_id=0, eos_token_id=3, **small,
            ),
            add_pooling_layer=False,
        )  # fmt: skip
        tensors = {f"blip.text_encoder.{name}": tensor for name, tensor in text.state_dict().items()}
        tensors |= {f"blip.visual_encoder.{published(name)}": t for name, t in vision.state_dict().items()}
        before = 768
        for number, width in zip((0, 2, 4, 6, 7), WIDTHS, strict=True):
            tensors[f"mlp.layers.{number}.weight"] = torch.randn(width, before) / before**0.5
            tensors[f"mlp.layers.{number}.bias"] = torch.randn(width)
            before = width
    torch.save(tensors, folder / "ImageReward.pt")
    return folder, vision.eval(), text.eval()


def published(name: str) -> str:
    """Return BLIP's name of a weight of the image encoder."""
    layer = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name)
    inner = {
        "self_attn.qkv": "attn.qkv", "self_attn.projection": "attn.proj", "layer_norm1": "norm1",
        "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    if layer:
        return f"blocks.{layer[1]}.{inner[layer[2]]}.{layer[3]}"
    return {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
        "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
        "post_layernorm.weight": "norm.weight",
        "post_layernorm.bias": "norm.bias",
    }[name]


def test_scores_are_those_of_the_networks(model: tuple[Path, torch.nn.Module, torch.nn.Module]):
    folder, vision, text = model
    scores = build_reward({f"imagereward?weights={folder}/ImageReward.pt&tokenizer={folder}": 1.0})(IMAGES, WORDS)
    ids = torch.zeros(2, 35, dtype=torch.long)
    ids[:, :3] = torch.tensor([[2, 4, 3], [2, 6, 3]])
    mask = (ids > 0).long()
    with torch.no_grad():
        features = vision(pixel_values=normalize(resize(IMAGES, 48, 48))).last_hidden_state
        hidden = text(input_ids=ids, attention_mask=mask, encoder_hidden_states=features).last_hidden_state[:, 0]
    tensors = torch.load(folder / "ImageReward.pt", weights_only=True)
    for number in (0, 2, 4, 6, 7):
        hidden = hidden @ tensors[f"mlp.layers.{number}.weight"].T + tensors[f"mlp.layers.{number}.bias"]
    torch.testing.assert_close(scores[0], (hidden[:, 0] - MEAN) / STD, rtol=0, atol=1e-4)
    assert scores[0].std() > 1e-3


def test_shape_of_the_published_model():
    shapes = {
        "embeddings.patch_embedding.weight": (1024, 3, 16, 16),
        "embeddings.position_embedding": (1, 197, 1024),
        "encoder.layers.0.mlp.fc1.weight": (4096, 1024),
        "encoder.layers.23.mlp.fc1.weight": (4096, 1024),
    }
    found = vision_shape({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert (found["image_size"], found["num_hidden_layers"], found["num_attention_heads"]) == (224, 24, 16)


def test_another_file(model: tuple[Path, torch.nn.Module, torch.nn.Module], tmp_path: Path):
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pt")
    with bad_input("reward", "weights: ", "x.pt", "ImageReward.pt"):
        build_reward({f"imagereward?weights={tmp_path}/x.pt&tokenizer={model[0]}": 1.0})
