"""Why a run may not learn: rules that read its metrics and settings, and name the likely cause and what to change."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

Rows = Sequence[Mapping[str, float]]
"""Lines of `metrics.jsonl`, one per step."""

FEW_STEPS = 4
"""Number of steps below which nothing is said."""
EQUAL_GROUPS = 0.5
"""Share of groups with equal rewards above which most images teach nothing."""
RELATIVE_SPREAD = 0.01
"""Spread of the rewards of a step, as a share of their mean, below which they differ in the third digit."""
KL_WITHOUT_GAIN = 0.05
"""KL (nats per token) above which a policy has moved so far that the reward should show it."""
RUNAWAY_KL = 1.0
"""KL (nats per token) above which pictures usually are broken: the reference would choose other tokens."""
ENTROPY_LEFT = 0.3
"""Share of the first entropy below which a policy draws the same pictures again and again."""
CLIPPED = 0.3
"""Share of tokens without a gradient above which most of an update is thrown away."""
MISMATCH = 0.05
"""Difference (nats per token) of sampled and scored log-probabilities above which ratios are wrong."""
UNSCORED = 0.05
"""Share of images without a score above which a reward should be looked at."""


@dataclass(frozen=True)
class Finding:
    """A likely cause, and what to change."""

    cause: str
    advice: str


def examine(rows: Rows, config: Mapping[str, Any], conditions: int | None = None) -> list[Finding]:
    """Return what may be wrong with a run, the most likely cause first; nothing if it looks healthy.

    Args:
        rows: metrics of its steps, in order.
        config: its `config.json`.
        conditions: number of classes or captions that it draws from, if known.
    """
    if len(rows) < FEW_STEPS:
        return []
    findings = [rule(rows, config) for rule in RULES]
    findings.append(_seldom_twice(rows, config, conditions))
    return [finding for finding in findings if finding is not None]


def _values(rows: Rows, name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the means of the first and of the last quarter."""
    size = max(1, len(values) // 4)
    return fmean(values[:size]), fmean(values[-size:])


def _equal_groups(rows: Rows, config: Mapping[str, Any]) -> Finding | None:
    equal = _values(rows, "equal_groups")
    if not equal or median(equal) <= EQUAL_GROUPS:
        return None
    share = f"In half of the steps, at least {median(equal):.0%} of the groups had equal rewards and taught nothing"
    if max(_values(rows, "reward_std"), default=0.0) < 1e-6:
        return Finding(
            f"{share}: every image has the reward {rows[-1]['reward_mean']:.4g}.",
            "The goal is met already, or the reward cannot tell images apart: score a few with `sfumato score`, and "
            "use a reward with degrees instead of a threshold.",
        )
    return Finding(
        f"{share}.",
        "Use a reward with degrees instead of a threshold, larger groups (--group-size), or a higher --temperature.",
    )


def _flat_reward(rows: Rows, config: Mapping[str, Any]) -> Finding | None:
    spreads = [
        row["reward_std"] / abs(row["reward_mean"])
        for row in rows
        if row.get("reward_std") is not None and abs(row.get("reward_mean") or 0.0) > 1e-12
    ]
    if not spreads or not 0 < median(spreads) < RELATIVE_SPREAD:
        return None
    return Finding(
        f"Rewards hardly differ: they spread by {median(spreads):.2%} of their mean. Advantages are normalized, so "
        "small differences, even noise, count as much as large ones.",
        "Look at the images with the best and the worst reward (`sfumato report`); if they look the same, use another "
        "reward or measure what differs.",
    )


def _kl_without_gain(rows: Rows, config: Mapping[str, Any]) -> Finding | None:
    kl, rewards = _values(rows, "kl"), _values(rows, "reward_mean")
    if not kl or not rewards:
        return None
    (_, now), (first, last) = _ends(kl), _ends(rewards)
    noise = fmean(_values(rows, "reward_std") or [0.0]) / max(1, config.get("groups_per_step", 1)) ** 0.5
    if now < KL_WITHOUT_GAIN or last - first > noise:
        return None
    return Finding(
        f"The policy moved away from the reference (KL {now:.3g} nats per token), but the reward did not rise "
        f"({first:.4g} to {last:.4g}).",
        "Lower --learning-rate, or draw more images per step (--groups-per-step) so that the direction is less noisy.",
    )


def _kl_runaway(rows: Rows, config: Mapping[str, Any]) -> Finding | None:
    kl = _values(rows, "kl")
    if not kl or _ends(kl)[1] < RUNAWAY_KL:
        return None
    return Finding(
        f"The KL to the reference reached {_ends(kl)[1]:.3g} nats per token: the pictures are probably broken.",
        "Raise --objective.kl-weight, lower --learning-rate, or take an earlier checkpoint.",
    )


def _entropy_collapse(rows: Rows, config: Mapping[str, Any]) -> Finding | None:
    entropy = _values(rows, "entropy")
    if not entropy or entropy[0] <= 0:
        return None
    left = _ends(entropy)[1] / entropy[0]
    if left > ENTROPY_LEFT:
        return None
    return Finding(
        f"The entropy fell to {left:.0%} of its first value: the pictures of a class are becoming the same.",
        "Raise --objective.kl-weight or --temperature, or stop earlier; watch the diversity with --held-out.",
    )


def _clipping(rows: Rows, config: Mapping[str, Any]) -> Finding | None:
    return _if_above(
        CLIPPED,
        median,
        _values(rows[len(rows) // 2 :], "clip_fraction"),
        "{:.0%} of the tokens are clipped and have no gradient: a step moves too far.",
        "Lower --learning-rate, or make fewer updates per step (a larger --minibatch-size).",
    )


def _mismatch(rows: Rows, config: Mapping[str, Any]) -> Finding | None:
    return _if_above(
        MISMATCH,
        median,
        _values(rows, "mismatch/mean"),
        "Sampled and scored log-probabilities differ by {:.3g} nats per token before any update.",
        "Use --recompute-log-probs, or --precision fp32.",
    )


def _unscored(rows: Rows, config: Mapping[str, Any]) -> Finding | None:
    return _if_above(
        UNSCORED,
        fmean,
        _values(rows, "unscored"),
        "{:.0%} of the images have no score.",
        "Find out why the reward returns NaN for them; images without a score teach nothing.",
    )


def _if_above(
    limit: float, average: Callable[[list[float]], float], values: list[float], cause: str, advice: str
) -> Finding | None:
    """Return a finding if the average of the values is above the limit; `cause` has a place for it."""
    if not values or average(values) <= limit:
        return None
    return Finding(cause.format(average(values)), advice)


def _seldom_twice(rows: Rows, config: Mapping[str, Any], conditions: int | None) -> Finding | None:
    if conditions is None:
        return None
    drawn = len(rows) * config.get("groups_per_step", 0)
    if drawn >= 2 * conditions:
        return None
    return Finding(
        f"{len(rows)} steps drew {drawn} times from {conditions} classes or captions: most came once or not at all.",
        "Train longer, draw more --groups-per-step, or choose fewer (--classes, --prompts).",
    )


RULES: tuple[Callable[[Rows, Mapping[str, Any]], Finding | None], ...] = (
    _equal_groups,
    _kl_runaway,
    _entropy_collapse,
    _kl_without_gain,
    _clipping,
    _mismatch,
    _flat_reward,
    _unscored,
)
"""Rules in the order in which their findings are shown."""
