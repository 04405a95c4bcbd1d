"""A tiny generator that reads captions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import LLAMAGEN_TEXT, VQ_TOKENIZER

from sfumato.families.library import save_model
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.vq import VQModel
from sfumato.policy import Card


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny generator that reads captions with the bundled word vectors."""
    folder = tmp_path_factory.mktemp("text-model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = replace(LLAMAGEN_TEXT, caption_width=64, text_encoder="word-vectors")
        save_model(folder, LlamaGen(config, VQModel(VQ_TOKENIZER), Card(family="llamagen")))
    return folder
