import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# jaxtyping and beartype check shapes and types of public signatures at run time, only under pytest.
install_import_hook("sfumato", "typechecker.check")

os.environ["HF_HUB_OFFLINE"] = "1"  # tests must not use the network
os.environ["WANDB_MODE"] = "offline"  # read once per process, by the first run
torch.set_num_threads(1)  # the models are tiny; more threads would only wait for each other


@pytest.fixture(autouse=True)
def contacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the servers of earlier tests: one of this test may have the port of one that has answered, and a server
    that was there is waited for."""
    endpoint = sys.modules.get("sfumato.rewards.endpoint")
    if endpoint is not None:
        monkeypatch.setattr(endpoint, "CONTACTS", endpoint.Contacts())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder with a tiny generator; tests only read it."""
    from tiny import tiny_var

    from sfumato.families.library import save_model

    folder = tmp_path_factory.mktemp("tiny-model")
    save_model(folder, tiny_var())
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One chromium for all tests of a file."""
    from chromium import CHROMIUM
    from playwright.sync_api import sync_playwright  # not every environment of the tests has it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
