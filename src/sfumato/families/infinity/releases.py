"""Infinity's published checkpoints, for each of their aspect ratios."""

from collections.abc import Mapping
from typing import Any

from sfumato.families.family import Release
from sfumato.families.infinity.schedules import SCHEDULES, schedule
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


_PATCHED_FILE = "infinity_vae_d56_f8_14_patchify.pth"


def _release(
    size: str, scales: int, files: tuple[str, str], tokenizer: Mapping[str, Any], own: Settings, ratio: str
) -> Release:
    shape, sizes, rotary_grid = _SIZES[size], schedule(ratio, scales), schedule(ratio)[-1]
    bits = tokenizer["latent_channels"] * tokenizer.get("token_patch", 1) ** 2
    return Release(
        repository="FoundationVision/Infinity",
        weights=files[0],
        tokenizer=files[1],
        needed={"num_heads": shape["num_heads"], "scales": sizes, "rotary_grid": rotary_grid},
        facts={"depth": shape["depth"], "width": shape["width"], "bits": bits},
        shape={
            "transformer": {**shape, "rotary_grid": rotary_grid},
            "tokenizer": {"scales": sizes, **tokenizer},
        },
        settings=own,
        class_names=tuple,
        listed=ratio == "1.0",
    )


def _releases(ratio: str) -> dict[str, Release]:
    """Return the published models as they draw images of this height over width."""
    d16, d32 = {"latent_channels": 16}, {"latent_channels": 32}
    return {
        "infinity-125m-256": _release(
            "125m", 7, ("infinity_125M_256x256.pth", "infinity_vae_d16.pth"), d16, _SMALL, ratio
        ),
        "infinity-2b-1024": _release("2b", 13, ("infinity_2b_reg.pth", "infinity_vae_d32reg.pth"), d32, _SMALL, ratio),
        "infinity-8b-512": _release("8b", 10, ("infinity_8b_512x512_weights/", _PATCHED_FILE), _PATCHED, _LARGE, ratio),
        "infinity-8b-1024": _release("8b", 13, ("infinity_8b_weights/", _PATCHED_FILE), _PATCHED, _LARGE, ratio),
    }


RELEASES = {
    **_releases("1.0"),
    **{
        f"{name}-{ratio}": release
        for ratio in SCHEDULES
        if ratio != "1.0"
        for name, release in _releases(ratio).items()
    },
}
"""Square images by the name of the model; those of other aspect ratios have height over width at the end of the name,
such as `infinity-2b-1024-0.75`. The files are the same: no weight depends on the size."""
