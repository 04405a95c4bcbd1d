"""Rewards of published papers as named sums. In `--reward`, the name of a composition stands for its parts."""

from collections.abc import Mapping

from sfumato.errors import UserError

CONDITIONAL = {
    "clip?scale=5": 1.0,
    "hps?scale=5": 1.0,
    "clip?levels=0.5,1,1.5": 1.0,
    "hps?levels=0.5,1,1.5": 1.0,
}
"""AR-GRPO (Yuan et al. 2025, section 3.2): fidelity to the condition, continuous and quantized."""
QUALITY = {"maniqa?scale=2": 1.0}
"""AR-GRPO: image quality."""
REALISM = {
    "judge?aspect=quality&scale=0.25": 1.0,
    "judge?aspect=real&scale=0.25": 1.0,
    "judge?aspect=strange&scale=0.25": 1.0,
}
"""AR-GRPO: realism, judged by a vision-language model."""

RELEASED = "levels=-1,0.5,1,1.5&thresholds=0,0.3,0.6"
"""From AR-GRPO's code, because the paper does not specify them: thresholds of the quantized variants, and a fourth
level below 0."""

COMPOSITIONS: dict[str, dict[str, float]] = {
    "ar-grpo": {**CONDITIONAL, **QUALITY, **REALISM},
    "ar-grpo-a": CONDITIONAL,
    "ar-grpo-b": {**CONDITIONAL, **QUALITY},
    "ar-grpo-c": {**CONDITIONAL, **REALISM},
    "ar-grpo-d": {**CONDITIONAL, **QUALITY, **REALISM},
    "ar-grpo-released": {
        **{f"clip?model=openai/clip-vit-base-patch32&{option}": 1.0 for option in ("scale=5", RELEASED)},
        **{f"hps?{option}": 1.0 for option in ("scale=5", RELEASED)},
        **QUALITY,
        **REALISM,
    },
    "var-aesthetic": {"aesthetic": 1.0},
    "var-painting": {"clip?prompt=a painting": 1.0},
    "var-aesthetic-painting": {"aesthetic?scale=0.1": 1.0, "clip?prompt=a painting": 1.0},
}
"""Sums by name: AR-GRPO's eight parts, its ablations A to D, the eight parts as in its code, and the rewards of
Gallici & Sáez de Ocáriz Borde (2025). The scale in the last sum is our choice; it gives both a similar spread."""


def expand(weights: Mapping[str, float]) -> dict[str, float]:
    """Replace every composition by its parts, whose weights are multiplied by the weight of the composition.

    An option of a composition names the reward that it applies to: `ar-grpo?judge.endpoint=http://127.0.0.1:8000/v1`.
    Thresholds apply only to the quantized variant of the reward.

    Raises:
        UserError: an option of a composition names none of its rewards.
    """
    parts: dict[str, float] = {}
    for name, weight in weights.items():
        for part, inner in _parts(name).items():
            parts[part] = parts.get(part, 0.0) + weight * inner
    return parts


def _parts(name: str) -> Mapping[str, float]:
    composition, _, query = name.partition("?")
    if composition not in COMPOSITIONS:
        return {name: 1.0}
    parts = COMPOSITIONS[composition]
    rewards = [part.partition("?")[0] for part in parts]
    for item in filter(None, query.split("&")):
        reward, dot, option = item.partition(".")
        if not dot or reward not in rewards:
            example = f"{rewards[0]}.{option or item}"
            raise UserError(f"reward {name!r}: {item!r} does not name one of its rewards; write {example}, for example")
        quantised = option.startswith("thresholds=")
        parts = {
            f"{part}{'&' if '?' in part else '?'}{option}"
            if part.partition("?")[0] == reward and (not quantised or "levels=" in part)
            else part: weight
            for part, weight in parts.items()
        }
    return parts
