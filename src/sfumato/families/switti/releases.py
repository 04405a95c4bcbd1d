"""Switti's published checkpoints."""

from sfumato.families.family import Release
from sfumato.settings import Settings

_SCALES = {
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
_GUIDED = {512: 8, 1024: 11}
"""Number of guided scales, `turn_off_cfg_start_si` in the README. The later ones are drawn at a low temperature."""


def readme_settings(pixels: int) -> Settings:
    """Return the sampling settings of the README, apart from its smoothing, which mixes codes."""
    scales, guided = len(_SCALES[pixels]), _GUIDED[pixels]
    return Settings(
        guidance=tuple(6.0 * scale / (scales - 1) if scale < guided else 0.0 for scale in range(scales)),
        temperature=tuple(1.0 if scale < guided else 0.1 for scale in range(scales)),
        top_k=400,
        top_p=0.95,
    )


RELEASES = {
    f"switti-{'ar-' if causal else ''}{pixels}": Release(
        repository=f"yresearch/{repository}",
        weights="model.safetensors",
        tokenizer="model.safetensors",
        tokenizer_repository="yresearch/VQVAE-Switti",
        needed={"patch_nums": _SCALES[pixels], "num_heads": 30, "causal": causal},
        facts={"depth": 30, "width": 1920, "scales": len(_SCALES[pixels])},
        shape={"transformer": {"causal": causal}, "tokenizer": {"scales": _SCALES[pixels]}},
        settings=readme_settings(pixels),
        class_names=tuple,
    )
    for repository, pixels, causal in (
        ("Switti", 512, False),
        ("Switti-AR", 512, True),
        ("Switti-1024", 1024, False),
        ("Switti-1024-AR", 1024, True),
    )
}
