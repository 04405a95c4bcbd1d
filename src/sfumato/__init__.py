"""Sfumato: online reinforcement learning for autoregressive image generators."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato import testing as testing
    from sfumato.errors import UserError
    from sfumato.families import load, load_published
    from sfumato.policy import Card, Generator, Policy
    from sfumato.request import Request, Words
    from sfumato.rollout import Rollout
    from sfumato.settings import Settings

# Loaded when they are first used, so that `sfumato --help` need not wait for torch.
_PLACES = {
    "Card": "policy",
    "Generator": "policy",
    "Policy": "policy",
    "Request": "request",
    "Rollout": "rollout",
    "Settings": "settings",
    "UserError": "errors",
    "Words": "request",
    "load": "families",
    "load_published": "families",
}

__all__ = [
    "Card",
    "Generator",
    "Policy",
    "Request",
    "Rollout",
    "Settings",
    "UserError",
    "Words",
    "load",
    "load_published",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"sfumato.{_PLACES[name]}"), name)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("sfumato")
    if name == "testing":
        return importlib.import_module("sfumato.testing")
    raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
