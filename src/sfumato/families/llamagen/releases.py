"""LlamaGen's published checkpoints."""

from sfumato.families.family import Release
from sfumato.settings import Settings

# The authors published XL, XXL and 3B at 384 pixels only; the other names are for weights of your own.
_SIZES = {
    "B": (12, 12, 64, 2048),
    "L": (24, 16, 64, 2816),
    "XL": (36, 20, 64, 3584),
    "XXL": (48, 24, 64, 4096),
    "3B": (24, 32, 100, 8704),
}
"""Depth, heads, channels per head, and hidden width of the feed-forward network."""
_CLASSES = {
    f"llamagen-{size.lower()}-{pixels}": Release(
        repository="FoundationVision/LlamaGen",
        weights=f"c2i_{size}_{pixels}.pt",
        tokenizer="vq_ds16_c2i.pt",
        needed={"num_heads": heads, "grid_size": pixels // 16},
        # L and 3B have the same depth; only the width distinguishes them.
        facts={"depth": depth, "width": heads * head_width, "condition": "class"},
        shape={
            "transformer": {
                "depth": depth,
                "width": heads * head_width,
                "num_heads": heads,
                "feed_forward_width": feed_forward_width,
            },
            "tokenizer": {"grid_size": pixels // 16},
        },
        settings=Settings(guidance=2.0),  # from the README
    )
    for size, (depth, heads, head_width, feed_forward_width) in _SIZES.items()
    for pixels in (256, 384)
}
_TEXT = {
    name: Release(
        repository="peizesun/llamagen_t2i",
        weights=weights,
        tokenizer="vq_ds16_t2i.pt",
        needed={"num_heads": 20, "grid_size": pixels // 16},
        facts={"depth": 36, "width": 1280, "condition": "text"},
        shape={
            "transformer": {
                "depth": 36,
                "width": 1280,
                "num_heads": 20,
                "feed_forward_width": 3584,
                "num_classes": 0,
                "caption_width": 2048,
                "text_encoder": "google/flan-t5-xl",
            },
            "tokenizer": {"grid_size": pixels // 16},
        },
        settings=Settings(guidance=7.5, top_k=1000),  # from `sample_t2i_ddp.py`
        class_names=tuple,
    )
    for name, weights, pixels in (
        ("llamagen-xl-t2i", "t2i_XL_stage1_256.pt", 256),
        ("llamagen-xl-t2i-512", "t2i_XL_stage2_512.pt", 512),
    )
}
RELEASES = {**_CLASSES, **_TEXT}
