"""Janus-Pro's published checkpoints, alone and with a text before the image."""

from sfumato.families.family import Release
from sfumato.settings import Settings

_SIZES = {
    "1B": ("pytorch_model.bin", 24, 2048, 16, 5632),
    "7B": ("pytorch_model.bin.index.json", 30, 4096, 32, 11008),
}
"""File, depth, width, heads, and hidden width of the feed-forward network."""
_LENGTHS = {"": {}, "-reasoning": {"num_prompt_tokens": 512, "num_reasoning_tokens": 512}}
"""Lengths by the end of a release's name; those of T2I-R1's prompts in training, and of its texts when it is used."""


def _release(size: str, lengths: dict[str, int]) -> Release:
    file, depth, width, heads, feed_forward_width = _SIZES[size]
    text_tokenizer = f"deepseek-ai/Janus-Pro-{size}"
    return Release(
        repository=f"deepseek-ai/Janus-Pro-{size}",
        weights=file,
        tokenizer="",
        needed={"num_heads": heads, "text_tokenizer": text_tokenizer, **lengths},
        facts={"depth": depth, "width": width},
        shape={
            "transformer": {
                "depth": depth,
                "width": width,
                "num_heads": heads,
                "feed_forward_width": feed_forward_width,
                "text_tokenizer": text_tokenizer,
                **lengths,
            },
            "tokenizer": {"grid_size": 24},
        },
        settings=Settings(guidance=5.0),  # from `generation_inference.py`
        class_names=tuple,
    )


RELEASES = {
    f"janus-pro-{size.lower()}{ending}": _release(size, lengths)
    for ending, lengths in _LENGTHS.items()
    for size in _SIZES
}
