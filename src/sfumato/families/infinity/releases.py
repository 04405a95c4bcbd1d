"""Infinity's published checkpoints."""

from collections.abc import Mapping
from typing import Any

from sfumato.families.family import Release
from sfumato.families.infinity.schedules import schedule
from sfumato.settings import Settings

_SIZES: dict[str, dict[str, int]] = {
    "125m": {"depth": 12, "width": 768, "num_heads": 8, "feed_forward_width": 3072, "block_chunks": 4},
    "2b": {"depth": 32, "width": 2048, "num_heads": 16, "feed_forward_width": 8192, "block_chunks": 8},
    "8b": {"depth": 40, "width": 3584, "num_heads": 28, "feed_forward_width": 14336, "block_chunks": 8},
}
_PATCHED = {"latent_channels": 14, "channel_multipliers": (1, 2, 4, 4), "token_patch": 2}
"""Tokenizer of the 8B: half as deep, with tokens of four positions."""
# From `scripts/infer.sh`, and for the 8B from the notebooks. The nucleus is that of `gen_one_img`, for each bit.
_SMALL, _LARGE = Settings(guidance=4.0, temperature=0.5, top_p=0.97), Settings(guidance=3.0, top_p=0.97)


def _release(size: str, scales: int, files: tuple[str, str], tokenizer: Mapping[str, Any], own: Settings) -> Release:
    shape, sizes = _SIZES[size], schedule("1.0", scales)
    bits = tokenizer["latent_channels"] * tokenizer.get("token_patch", 1) ** 2
    return Release(
        repository="FoundationVision/Infinity",
        weights=files[0],
        tokenizer=files[1],
        needed={"num_heads": shape["num_heads"], "scales": sizes, "rotary_grid": (64, 64)},
        facts={"depth": shape["depth"], "width": shape["width"], "bits": bits},
        shape={"transformer": shape, "tokenizer": {"scales": sizes, **tokenizer}},
        settings=own,
        class_names=tuple,
    )


_PATCHED_FILE = "infinity_vae_d56_f8_14_patchify.pth"
RELEASES = {
    "infinity-125m-256": _release(
        "125m", 7, ("infinity_125M_256x256.pth", "infinity_vae_d16.pth"), {"latent_channels": 16}, _SMALL
    ),
    "infinity-2b-1024": _release(
        "2b", 13, ("infinity_2b_reg.pth", "infinity_vae_d32reg.pth"), {"latent_channels": 32}, _SMALL
    ),
    "infinity-8b-512": _release("8b", 10, ("infinity_8b_512x512_weights/", _PATCHED_FILE), _PATCHED, _LARGE),
    "infinity-8b-1024": _release("8b", 13, ("infinity_8b_weights/", _PATCHED_FILE), _PATCHED, _LARGE),
}
