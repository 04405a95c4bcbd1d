"""Janus-Pro's published checkpoints."""

from sfumato.families.family import Release
from sfumato.settings import Settings

_SIZES = {
    "1B": ("pytorch_model.bin", 24, 2048, 16, 5632),
    "7B": ("pytorch_model.bin.index.json", 30, 4096, 32, 11008),
}
"""File, depth, width, heads, and hidden width of the feed-forward network."""
RELEASES = {
    f"janus-pro-{size.lower()}": Release(
        repository=f"deepseek-ai/Janus-Pro-{size}",
        weights=file,
        tokenizer="",
        needed={"num_heads": heads, "text_tokenizer": f"deepseek-ai/Janus-Pro-{size}"},
        facts={"depth": depth, "width": width},
        shape={
            "transformer": {
                "depth": depth,
                "width": width,
                "num_heads": heads,
                "feed_forward_width": feed_forward_width,
                "text_tokenizer": f"deepseek-ai/Janus-Pro-{size}",
            },
            "tokenizer": {"grid_size": 24},
        },
        settings=Settings(guidance=5.0),  # from `generation_inference.py`
        class_names=tuple,
    )
    for size, (file, depth, width, heads, feed_forward_width) in _SIZES.items()
}
