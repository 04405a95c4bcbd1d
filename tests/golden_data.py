"""Access to the measurements in tests/golden."""

import functools
import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from sfumato.models.checkpoints import load_var
from sfumato.models.var import VAR

GOLDEN = Path(__file__).parent / "golden"
META = json.loads((GOLDEN / "var_meta.json").read_text())
VARIANTS = ("a", "b", "c")


@functools.cache
def tokenizer_weights() -> dict[str, Tensor]:
    """The tokenizer's published state dict."""
    parts = (load_file(GOLDEN / f"var_vqvae_{half}_weights.safetensors") for half in ("encoder", "decoder"))
    return {key: tensor for part in parts for key, tensor in part.items()}


@functools.cache
def transformer_weights(variant: str) -> dict[str, Tensor]:
    """A variant's published state dict."""
    return load_file(GOLDEN / f"var_{variant}_weights.safetensors")


@functools.cache
def outputs(variant: str) -> dict[str, Tensor]:
    """What the reference implementation computed."""
    return load_file(GOLDEN / f"var_{variant}.safetensors")


def golden_var(variant: str, guidance: float = 0.0) -> VAR:
    """A fresh generator with a variant's weights."""
    shape = META["variants"][variant]
    return load_var(
        transformer_weights(variant),
        tokenizer_weights(),
        patch_nums=shape["patch_nums"],
        num_heads=shape["heads"],
        guidance=guidance,
    )
