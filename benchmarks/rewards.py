"""Scores per second of every reward that needs no download, in batches and one image at a time.

Seconds are processor time, so other work on the machine does not count.

python benchmarks/rewards.py [--images 32] [--side 64]
"""

import argparse
import time

import torch

from sfumato.engine.memory import keep_freed_memory
from sfumato.request import Words
from sfumato.rewards import WeightedSum, build_reward

NAMES = (
    "brightness", "colorfulness", "saturation", "jpeg-size", "emoji-clip", "classifier?network=emoji-rival",
    "classifier?network=efficientnet-lite0", "safety", "ocr?text=hello",
)  # fmt: skip


def seconds(reward: WeightedSum, images: torch.Tensor, words: Words, batch: int) -> float:
    """Return the time for all images in batches of this size; the images are copied, so no cached result is used."""
    parts = [(images[i].clone(), words[i]) for i in torch.arange(len(images)).split(batch)]
    began = time.process_time()
    for part in parts:
        reward(*part)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=64)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the `sfumato` command does
    count = arguments.images
    images = torch.rand(count, 3, arguments.side, arguments.side, generator=torch.Generator().manual_seed(0))
    words = Words(labels=torch.arange(count), names=("red apple",) * count)
    print(f"{count} images of {arguments.side} pixels, threads: {torch.get_num_threads()}; scores per second")
    for name in NAMES:
        reward = build_reward({name: 1.0})
        seconds(reward, images[:1], words[:1], 1)
        batched = count / seconds(reward, images, words, count)
        single = count / seconds(reward, images, words, 1)
        print(f"{name:40} batched {batched:10.1f}   one at a time {single:10.1f}   {batched / single:5.1f} ×")


if __name__ == "__main__":
    main()
