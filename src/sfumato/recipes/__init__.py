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
_OBJECTIVES = (
    "dr-grpo", "gdpo", "dapo", "gspo", "cispo", "rloo", "scale-grpo", "entropy-grpo", "eg-grpo", "gcpo", "stage",
    "prefix-grpo", "random-prefix-grpo", "tree-grpo", "best-of-n", "dpo",
)  # fmt: skip
_STYLES = (16, "aesthetic"), *((30, style) for style in ("aesthetic", "old-picture", "painting", "painting-aesthetic"))
_TARGETS = {"bright": "brightness", "dark": "darkness", "colorful": "colorfulness"}

TRAIN_RECIPES: dict[str, Recipe] = {
    "emoji-dark": Recipe(
        "Emoji in pictures darker than 0.2; the share of such pictures rises from a few percent to 95 %.",
        "emoji",
        "emoji_dark",
    ),
    "emoji-dark-fast": Recipe(
        "Dark emoji in a minute, learned from coarse previews; a second reward keeps them recognizable.",
        "emoji",
        "emoji_dark_fast",
    ),
    **{
        f"emoji-dark-{name}": Recipe(
            "`emoji-dark` with another objective; `sfumato train emoji-dark --help` names them.",
            "emoji",
            "emoji_dark_with",
            (name,),
            "emoji-dark-OBJECTIVE",
        )
        for name in _OBJECTIVES
    },
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
    "emoji-infinity-dark": Recipe(
        "Emoji from their names, bit by bit, in pictures darker than 0.2.", "emoji", "emoji_infinity_dark"
    ),
    "emoji-infinity-clip": Recipe(
        "Emoji from captions, bit by bit, rewarded for matching them (by the bundled emoji-clip).",
        "emoji",
        "emoji_infinity_clip",
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
        f"var-d{depth}-{style}": Recipe(
            "The first paper's long runs: d16 and d30 for aesthetic; d30 for old-picture, painting, "
            "painting-aesthetic.",
            "var",
            "var_style_recipe",
            (depth, style),
            "var-dDEPTH-STYLE",
        )
        for depth, style in _STYLES
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
    **{
        f"llamagen-{kind}-ablation-{letter}": Recipe(
            "AR-GRPO's ablations of the reward, a to d, for classes (b-256) or captions (xl-t2i).",
            "llamagen",
            function,
            (*arguments, f"ar-grpo-{letter}"),
            "llamagen-KIND-ablation-LETTER",
        )
        for kind, function, arguments in (
            ("b-256", "llamagen_recipe", ("b", 256)),
            ("xl-t2i", "llamagen_t2i_recipe", ()),
        )
        for letter in "abcd"
    },
    **{
        model: Recipe(
            f"Released {name} (512 pixels) on captions (--prompts FILE), rewarded by CLIP and HPSv2.",
            "switti",
            "switti_recipe",
            (model,),
        )
        for model, name in {"switti-512": "Switti", "switti-ar-512": "Switti-AR"}.items()
    },
    **{
        name: Recipe(
            f"Released Infinity {size} on captions (--prompts FILE), rewarded by CLIP and HPSv2{how}.",
            "infinity",
            "infinity_recipe",
            (model, rank),
        )
        for name, model, size, rank, how in (
            ("infinity-125m-256", "infinity-125m-256", "125M (256 pixels)", 0, ""),
            ("infinity-2b-1024", "infinity-2b-1024", "2B (1024 pixels)", 0, ""),
            ("infinity-2b-1024-lora", "infinity-2b-1024", "2B (1024 pixels)", 32, "; trains adapters"),
            ("infinity-8b-512", "infinity-8b-512", "8B (512 pixels)", 32, "; trains adapters"),
        )
    },
    "janus-pro-1b": Recipe(
        "Released Janus-Pro 1B on captions (--prompts FILE), rewarded by CLIP and HPSv2.",
        "janus",
        "janus_recipe",
        ("janus-pro-1b",),
    ),
    "janus-pro-1b-unguided-scoring": Recipe(
        "The same in the public way: guided images, scored without guidance, one update per rollout.",
        "janus",
        "janus_unguided_recipe",
        ("janus-pro-1b",),
    ),
    "janus-pro-1b-t2i-r1": Recipe(
        "The same as T2I-R1 does it: the model writes a text before each image, and learns both.",
        "janus",
        "janus_t2i_r1_recipe",
        ("janus-pro-1b-reasoning",),
    ),
    **{
        name: Recipe(
            f"Released SimpleAR {size} (1024 pixels) on captions (--prompts FILE), rewarded by CLIP{how}.",
            "simplear",
            function,
            (model,),
        )
        for name, model, size, function, how in (
            ("simplear-0.5b", "simplear-0.5b-sft", "0.5B", "simplear_recipe", " and HPSv2"),
            ("simplear-1.5b", "simplear-1.5b-sft", "1.5B", "simplear_recipe", " and HPSv2"),
            ("simplear-0.5b-unguided", "simplear-0.5b-sft", "0.5B", "simplear_unguided_recipe", ", as published"),
        )
    },
    "janus-pro-7b-lora": Recipe(
        "Released Janus-Pro 7B on captions (--prompts FILE), rewarded by CLIP and HPSv2; trains adapters.",
        "janus",
        "janus_recipe",
        ("janus-pro-7b", 32),
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
    "emoji-infinity": Recipe(
        "64-pixel Infinity that reads captions of the same emoji; its tokenizer's convolutions start from emoji-var's.",
        "pretraining",
        "emoji_infinity",
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
