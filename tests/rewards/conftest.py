"""Photographs, and small models with random weights, saved as the released ones are."""

from pathlib import Path

import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Three photographs of different shapes."""
    data = pytest.importorskip("skimage.data")
    return [Image.fromarray(picture) for picture in (data.astronaut(), data.coffee(), data.chelsea())]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of 224-pixel images with random weights, its tokenizer and its processor."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(n) for n in range(33, 127)]
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    last = len(pieces) - 1
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": len(pieces), "bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    config = transformers.CLIPConfig(
        text_config={**shape, **text, "max_position_embeddings": 16, "hidden_act": "gelu"},
        vision_config={**shape, "image_size": 224, "patch_size": 32, "hidden_act": "gelu"},
        projection_dim=48,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name != "logit_scale":
                    parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
