"""Plots of a run's metrics."""

from pathlib import Path

from sfumato.evaluation.plots import panels
from sfumato.files import read_lines, read_metrics

CURVES = {
    "reward_mean": "reward",
    "kl": "KL to the reference (nats per token)",
    "entropy": "entropy (nats per token)",
    "clip_fraction": "clip fraction",
}
"""Metrics that `curves.png` shows, and their titles."""


def plot_curves(run_dir: Path) -> None:
    """Write `curves.png`: reward, KL, entropy and clip fraction over the steps logged so far."""
    metrics = read_metrics(run_dir)
    if not metrics:
        return
    steps = [m["step"] for m in metrics]
    names = [name for name in CURVES if any(name in m for m in metrics)]  # an objective may log no KL or no ratios
    plot, axes = panels([CURVES[name] for name in names])
    for axis, name in zip(axes, names, strict=True):
        axis.plot([m["step"] for m in metrics if name in m], [m[name] for m in metrics if name in m])
        axis.set_xlabel("step")
    low = [m["reward_mean"] - m["reward_std"] for m in metrics]
    high = [m["reward_mean"] + m["reward_std"] for m in metrics]
    axes[0].fill_between(steps, low, high, alpha=0.2, label="± std")
    axes[0].legend()
    plot.savefig(run_dir / "curves.png", dpi=110)


def plot_held_out(run_dir: Path) -> None:
    """Write `held_out.png`: the optimized reward and the other measurements over the steps measured so far."""
    rows = read_lines(run_dir / "held_out.jsonl")
    names = [name for name in rows[0] if name != "step" and "_std" not in name] if rows else []
    if not names:
        return
    plot, axes = panels([name.removeprefix("reward/").replace("_", " ") for name in names])
    for axis, name in zip(axes, names, strict=True):
        axis.plot([row["step"] for row in rows], [row[name] for row in rows], marker=".")
        axis.set_xlabel("step")
    plot.savefig(run_dir / "held_out.png", dpi=110)
