"""SimpleAR's published checkpoints."""

from sfumato.families.family import Release
from sfumato.settings import Settings

_SIZES = {"0.5B": (24, 896, 14, 4864), "1.5B": (28, 1536, 12, 8960)}
"""Depth, width, heads, and hidden width of the feed-forward network."""
RELEASES = {
    f"simplear-{size.lower()}-{stage.lower()}": Release(
        repository=f"Daniel0724/SimpleAR-{size}-{stage}",
        weights="model.safetensors",
        tokenizer="",  # NVIDIA's, which has to be given
        needed={"num_heads": heads, "text_tokenizer": f"Daniel0724/SimpleAR-{size}-{stage}"},
        facts={"depth": depth, "width": width},
        shape={
            "transformer": {
                "depth": depth,
                "width": width,
                "num_heads": heads,
                "feed_forward_width": feed_forward_width,
                "text_tokenizer": f"Daniel0724/SimpleAR-{size}-{stage}",
            },
            "tokenizer": {},
        },
        settings=Settings(guidance=6.0),  # from the published generation script
        class_names=tuple,
    )
    for size, (depth, width, heads, feed_forward_width) in _SIZES.items()
    for stage in ("SFT", "RL")
}
