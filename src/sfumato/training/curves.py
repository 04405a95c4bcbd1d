"""A plot of a run's metrics."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sfumato.training.logger import read_lines, read_metrics


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


def plot_held_out(run_dir: Path) -> None:
    """Write `held_out.png`: the optimised reward and all that is watched beside it, over the steps measured so far."""
    rows = read_lines(run_dir / "held_out.jsonl")
    names = [name for name in rows[0] if name != "step" and "_std" not in name] if rows else []
    if not names:
        return
    columns = min(3, len(names))
    figure = Figure(figsize=(4 * columns, 2.8 * -(-len(names) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(names, 1):
        axis = figure.add_subplot(-(-len(names) // columns), columns, number)
        axis.plot([row["step"] for row in rows], [row[name] for row in rows], marker=".")
        axis.set_title(name.removeprefix("reward/").replace("_", " ").replace("$", r"\$"))
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(run_dir / "held_out.png", dpi=110)
