"""LlamaGen's published checkpoints."""

from sfumato.families.family import Release
from sfumato.settings import Settings

# The authors published XL, XXL and 3B at 384 pixels only; the other names are for weights of your own.
_SIZES = {"B": (12, 12), "L": (24, 16), "XL": (36, 20), "XXL": (48, 24), "3B": (24, 32)}  # depth, heads
_CLASSES = {
    f"llamagen-{size.lower()}-{pixels}": Release(
        repository="FoundationVision/LlamaGen",
        weights=f"c2i_{size}_{pixels}.pt",
        tokenizer="vq_ds16_c2i.pt",
        needed={"num_heads": heads, "grid_size": pixels // 16},
        # L and 3B have the same depth; only the width distinguishes them.
        facts={"depth": depth, "width": heads * (100 if size == "3B" else 64), "condition": "class"},
        settings=Settings(guidance=2.0),  # from the README
    )
    for size, (depth, heads) in _SIZES.items()
    for pixels in (256, 384)
}
_TEXT = {
    name: Release(
        repository="peizesun/llamagen_t2i",
        weights=weights,
        tokenizer="vq_ds16_t2i.pt",
        needed={"num_heads": 20, "grid_size": pixels // 16},
        facts={"depth": 36, "width": 1280, "condition": "text"},
        settings=Settings(guidance=7.5, top_k=1000),  # from `sample_t2i_ddp.py`
        class_names=tuple,
    )
    for name, weights, pixels in (
        ("llamagen-xl-t2i", "t2i_XL_stage1_256.pt", 256),
        ("llamagen-xl-t2i-512", "t2i_XL_stage2_512.pt", 512),
    )
}
RELEASES = {**_CLASSES, **_TEXT}
