"""Make the pictures of docs/tutorial.md from a run of `emoji-dark`, and print the numbers that the page quotes:

OMP_NUM_THREADS=1 sfumato train emoji-dark --steps 20 --sample-every 5 --eval-images 128 --run-dir runs/tutorial
python scripts/make_tutorial_pictures.py runs/tutorial
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

import sfumato
from sfumato.data.pictures import grid, save_picture, side_by_side, to_pictures
from sfumato.objectives.advantages import group_advantages
from sfumato.objectives.divergences import k3_divergence
from sfumato.objectives.ratios import clipped_surrogate
from sfumato.rewards.pixels import darkness

PICTURES = Path(__file__).parents[1] / "docs/tutorial"
CLASSES = ("red apple", "sunflower", "dog face", "watermelon")
GROUP_CLASS = "dog face"
GROUP_SIZE = 8
STEPS = (0, 5, 10, 20)
"""Steps whose samples are shown."""


def main(run_dir: Path) -> None:
    """Write all pictures."""
    policy = sfumato.load("emoji-var")
    save_picture(scales(policy), PICTURES / "scales.png")
    group(sfumato.load("emoji-var", guidance=None, temperature=0.7)).savefig(PICTURES / "group.png", dpi=90)
    objective().savefig(PICTURES / "objective.png", dpi=90)
    save_picture(progress(run_dir), PICTURES / "progress.png")
    shutil.copy(run_dir / "curves.png", PICTURES / "curves.png")


def scales(policy: sfumato.Policy) -> Image.Image:
    """Draw an image of each class, and decode what is known of it after each scale: one row for each class."""
    generator: Any = policy.generator  # a VAR
    tokenizer, quantizer = generator.tokenizer, generator.tokenizer.quantizer
    tokens = policy.sample(policy.request(CLASSES), torch.arange(len(CLASSES))).tokens
    columns, features = [], torch.zeros(())
    with torch.no_grad():
        for scale, unit in enumerate(tokens.split(generator.units, dim=1)):
            features = features + quantizer.upsample(scale, quantizer.embed(unit))
            columns.append((f"{quantizer.scales[scale]} x {quantizer.scales[scale]}", tokenizer.reconstruct(features)))
    return side_by_side([(title, grid(images, columns=1, zoom=2)) for title, images in columns])


def group(policy: sfumato.Policy) -> Figure:
    """Draw a group of images of one class, sorted by reward, with their rewards and advantages."""
    request = policy.request(GROUP_CLASS).repeat(GROUP_SIZE)
    images = policy.draw(request)
    rewards = darkness(images, request.words)
    advantages, _ = group_advantages(rewards, GROUP_SIZE)
    print(f"group: mean {rewards.mean():.3f}, standard deviation {rewards.std():.3f}")  # noqa: T201
    figure = Figure(figsize=(8.4, 1.55), layout="constrained")
    order = rewards.argsort(descending=True).tolist()
    pictures = to_pictures(images)
    for axis, number in zip(figure.subplots(1, GROUP_SIZE), order, strict=True):
        axis.imshow(pictures[number])
        axis.set_axis_off()
        axis.set_title(f"r = {rewards[number]:.2f}\nA = {advantages[number]:+.2f}", fontsize=10)
    return figure


def objective() -> Figure:
    """Plot the clipped surrogate over the ratio, and the k3 estimate over the log-ratio."""
    figure = Figure(figsize=(8.4, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    ratio = torch.linspace(0.4, 1.8, 200)
    for advantage in (1.0, -1.0):
        surrogate = clipped_surrogate(ratio.log()[None], torch.zeros(1, 200), torch.full((1, 1), advantage), clip=0.2)
        left.plot(ratio, surrogate[0], label=f"A = {advantage:+.0f}")
    for edge in (0.8, 1.2):
        left.axvline(edge, color="gray", linestyle=":", linewidth=1)
    left.set(xlabel="ratio", title="clipped surrogate (ε = 0.2)")
    left.legend()
    difference = torch.linspace(-2, 2, 200)
    right.plot(difference, k3_divergence(torch.zeros(200), difference))
    right.set(xlabel="log π_ref − log π (nats)", title="k3 estimate of the KL")
    return figure


def progress(run_dir: Path) -> Image.Image:
    """Show the first images of the run's fixed set at some steps."""
    titles = [f"step {step}" if step else "before" for step in STEPS]
    sheets = [Image.open(run_dir / f"samples/step-{step:06d}.png") for step in STEPS]
    side = (sheets[0].width - 2) // 8 * 3 + 2
    return side_by_side([(title, sheet.crop((0, 0, side, side))) for title, sheet in zip(titles, sheets, strict=True)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
