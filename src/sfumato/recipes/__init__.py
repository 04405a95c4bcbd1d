"""Recipes: functions that return a complete config. The first line of a recipe's docstring is its help."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from sfumato.pretraining.pretrain import AnyPretrainConfig
from sfumato.recipes import emoji, llamagen, pretraining, var
from sfumato.training.config import GRPOConfig

Config = TypeVar("Config")


def _with_help(recipe: Callable[[], Config]) -> tuple[str, Callable[[], Config]]:
    return (recipe.__doc__ or "").splitlines()[0], recipe


def _released(depth: int, target: str) -> tuple[str, Callable[[], GRPOConfig]]:
    help_line = f"Released VAR-d{depth} with the first paper's settings and the reward {var.REWARDS[target]!r}."
    return help_line, partial(var.var_recipe, depth, target)


def _llamagen(size: str, pixels: int) -> tuple[str, Callable[[], GRPOConfig]]:
    help_line = f"Released LlamaGen-{size.upper()} at {pixels} px with AR-GRPO's settings and eight-part reward."
    return help_line, partial(llamagen.llamagen_recipe, size, pixels)


_EMOJI_RECIPES = (
    emoji.emoji_dark,
    emoji.emoji_bright,
    emoji.emoji_colorful,
    emoji.emoji_dark_no_kl,
    emoji.emoji_bright_no_kl,
    emoji.emoji_colorful_no_kl,
    emoji.emoji_llamagen_colorful,
    emoji.emoji_t2i_clip,
)
TRAIN_RECIPES: dict[str, tuple[str, Callable[[], GRPOConfig]]] = {
    **{recipe.__name__.replace("_", "-"): _with_help(recipe) for recipe in _EMOJI_RECIPES},
    **{f"var-d{d}-{target}": _released(d, target) for d in (16, 20, 24, 30, 36) for target in var.REWARDS},
    **{f"llamagen-{size}-{pixels}": _llamagen(size, pixels) for size in llamagen.MICRO_BATCH for pixels in (256, 384)},
    "llamagen-xl-t2i": (
        "Released LlamaGen-XL on captions (--prompts FILE) with AR-GRPO's settings and eight-part reward.",
        llamagen.llamagen_t2i_recipe,
    ),
}
"""GRPO recipes by name, each with one line of help."""

PRETRAIN_RECIPES: dict[str, tuple[str, Callable[[], AnyPretrainConfig]]] = {
    "emoji-var": _with_help(pretraining.emoji_var),
    "emoji-llamagen": _with_help(pretraining.emoji_llamagen),
    "emoji-t2i": _with_help(pretraining.emoji_t2i),
    "emoji-clip": _with_help(pretraining.emoji_clip),
    "emoji-classifier": _with_help(pretraining.emoji_classifier),
    "emoji-rival": _with_help(pretraining.emoji_rival),
}
"""Pre-training recipes by name, each with one line of help."""
