"""Recipes: functions that return a complete config. Listing them here imports nothing else."""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A reference to a recipe, which is imported only when it is built."""

    help: str
    """description in one line"""
    module: str
    """name of a module in this package"""
    function: str
    """name of the recipe's function in the module"""
    arguments: tuple[object, ...] = ()
    """arguments of the function"""
    listed: str = ""
    """line under which lists show it together with its kind, e.g. "var-dDEPTH-TARGET"; its own name if empty"""

    def build(self) -> Any:
        """Build the config: a `TrainConfig`, or a config for pretraining."""
        module = importlib.import_module(f"{__name__}.{self.module}")
        return getattr(module, self.function)(*self.arguments)


_DEPTHS = (16, 20, 24, 30, 36)
_TARGETS = {"bright": "brightness", "dark": "darkness", "colorful": "colorfulness"}

TRAIN_RECIPES: dict[str, Recipe] = {
    "emoji-dark": Recipe(
        "Emoji in pictures darker than 0.2; the share of such pictures rises from a few percent to 95 %.",
        "emoji",
        "emoji_dark",
    ),
    "emoji-bright": Recipe("Emoji in pictures of brightness 0.8 or more.", "emoji", "emoji_bright"),
    "emoji-colorful": Recipe("Emoji in colorful pictures (Hasler & Süsstrunk's measure).", "emoji", "emoji_colorful"),
    "emoji-dark-no-kl": Recipe(
        "Emoji as dark as possible, without the KL penalty; shows the collapse in the first paper's Figure 7.",
        "emoji",
        "emoji_dark_no_kl",
    ),
    "emoji-bright-no-kl": Recipe("Emoji as bright as possible, without the KL penalty.", "emoji", "emoji_bright_no_kl"),
    "emoji-colorful-no-kl": Recipe(
        "Emoji as colorful as possible, without the KL penalty.", "emoji", "emoji_colorful_no_kl"
    ),
    "emoji-llamagen-colorful": Recipe(
        "Next-token emoji in colorful pictures, with the second paper's guidance.", "emoji", "emoji_llamagen_colorful"
    ),
    "emoji-t2i-clip": Recipe(
        "Emoji from 32 captions, rewarded for matching them (by the bundled emoji-clip).", "emoji", "emoji_t2i_clip"
    ),
    **{
        f"var-d{depth}-{target}": Recipe(
            "Released VAR with the first paper's settings; depth 16, 20, 24, 30 or 36; bright, dark or colorful.",
            "var",
            "var_recipe",
            (depth, reward),
            "var-dDEPTH-TARGET",
        )
        for depth in _DEPTHS
        for target, reward in _TARGETS.items()
    },
    **{
        f"llamagen-{size}-{pixels}": Recipe(
            "Released LlamaGen with AR-GRPO's settings and eight-part reward; size b, l or xl, 256 or 384 pixels.",
            "llamagen",
            "llamagen_recipe",
            (size, pixels),
            "llamagen-SIZE-PIXELS",
        )
        for size in ("b", "l", "xl")
        for pixels in (256, 384)
    },
    "llamagen-xl-t2i": Recipe(
        "Released LlamaGen-XL on captions (--prompts FILE) with AR-GRPO's settings and eight-part reward.",
        "llamagen",
        "llamagen_t2i_recipe",
    ),
}
"""Training recipes by name."""

PRETRAIN_RECIPES: dict[str, Recipe] = {
    "emoji-var": Recipe(
        "64-pixel VAR of 512 emoji, from the npm package emoji-datasource-google or any folder of images.",
        "pretraining",
        "emoji_var",
    ),
    "emoji-llamagen": Recipe(
        "64-pixel LlamaGen of the same 512 emoji; its tokenizer's convolutions start from those of emoji-var.",
        "pretraining",
        "emoji_llamagen",
    ),
    "emoji-t2i": Recipe(
        "64-pixel LlamaGen that reads captions of the same emoji; starts from emoji-llamagen.",
        "pretraining",
        "emoji_t2i",
    ),
    "emoji-clip": Recipe(
        "Image-text model of the same emoji and their captions, for rewards; every 16th emoji is held out.",
        "pretraining",
        "emoji_clip",
    ),
    "emoji-classifier": Recipe(
        "Classifier of the same 512 emoji, for evaluation only.", "pretraining", "emoji_classifier"
    ),
    "emoji-rival": Recipe("Another classifier of the same emoji, for rewards only.", "pretraining", "emoji_rival"),
}
"""Pretraining recipes by name."""
