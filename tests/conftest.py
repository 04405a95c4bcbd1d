import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes and types of public signatures are checked at run time by jaxtyping and beartype, under pytest only.
install_import_hook("sfumato", "typechecker.check")

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a network
torch.set_num_threads(1)  # the models are tiny, and more threads would only wait for one another


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tiny generator; tests only read it."""
    from tiny import tiny_var

    from sfumato.families.library import save_model

    folder = tmp_path_factory.mktemp("tiny-model")
    save_model(folder, tiny_var())
    return folder
