"""A plot of a run's metrics."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sfumato.training.logger import read_metrics


def plot_curves(run_dir: Path) -> None:
    """Write `curves.png`: reward, KL, entropy and clip fraction over the steps logged so far."""
    metrics = read_metrics(run_dir)
    if not metrics:
        return
    steps = [m["step"] for m in metrics]
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True).flatten()
    mean = [m["reward_mean"] for m in metrics]
    low = [m["reward_mean"] - m["reward_std"] for m in metrics]
    high = [m["reward_mean"] + m["reward_std"] for m in metrics]
    axes[0].fill_between(steps, low, high, alpha=0.2, label="± std")
    axes[0].plot(steps, mean, label="mean")
    axes[0].legend()
    for axis, (name, label) in zip(
        axes, (("", "reward"), ("kl", "KL to the reference (nats a token)"), ("entropy", "entropy (nats a token)"),
               ("clip_fraction", "clip fraction")), strict=True
    ):  # fmt: skip
        if name:
            axis.plot(steps, [m[name] for m in metrics])
        axis.set_title(label)
        axis.grid(alpha=0.3)
    for axis in axes[2:]:
        axis.set_xlabel("step")
    figure.savefig(run_dir / "curves.png", dpi=110)
