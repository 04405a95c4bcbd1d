"""VAR's published checkpoints."""

from sfumato.families.family import Release
from sfumato.settings import Settings

_SCALES_256, _SCALES_512 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)

RELEASES = {
    f"var-d{depth}": Release(
        repository="FoundationVision/var",
        weights=f"var_d{depth}.pth",
        tokenizer="vae_ch160v4096z32.pth",
        needed={"patch_nums": _SCALES_512 if depth == 36 else _SCALES_256, "num_heads": depth},
        facts={"depth": depth, "width": 64 * depth},
        shape={
            "transformer": {"depth": depth, "width": 64 * depth, "num_heads": depth, "shared_adaln": depth == 36},
            "tokenizer": {"scales": _SCALES_512 if depth == 36 else _SCALES_256},
        },
        settings=Settings(guidance=1.5, top_k=900, top_p=0.96),  # from the README, where they are used for FID
    )
    for depth in (16, 20, 24, 30, 36)
}
