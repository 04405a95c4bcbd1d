"""One arm of a study with one seed: `python -m sfumato.experiments.trial FOLDER` trains it and measures fresh images.

The folder has `trial.json` and gets `run`, the run folder, and at the end `measured.json`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from sfumato.engine.memory import keep_freed_memory
from sfumato.engine.process import find_device
from sfumato.evaluation.class_accuracy import class_accuracy
from sfumato.evaluation.features import load_extractor
from sfumato.evaluation.judging import load_judge
from sfumato.evaluation.statistics import class_distances
from sfumato.experiments.outputs import hardware
from sfumato.experiments.studies import ACCURACY, DISTANCE, KL
from sfumato.families import load_generator
from sfumato.files import finite, write_text
from sfumato.policy import Policy
from sfumato.rewards import build_reward
from sfumato.rewards.base import short_names
from sfumato.training.requests import build_sampler
from sfumato.training.train import train
from sfumato.training.train_config import TrainConfig, from_json

GROUPS, EACH = 64, 4
"""Number of classes or captions of the fresh images, and number of images of each."""
DRAWING = "drawing (seconds per image)"
"""Processor seconds of drawing and decoding an image."""


def run_trial(folder: Path) -> bool:
    """Train if this has to be done, then measure; return False if training was interrupted."""
    trial = json.loads((folder / "trial.json").read_text())
    config, run = from_json(trial["config"]), folder / "run"
    model = config.model
    if trial["trained"]:
        model = str(run)
        if not train(config, run, resume=(run / "config.json").exists(), console=Console(markup=False)):
            return False
    measured: dict[str, Any] = dict(measure_fresh(config, model, tuple(trial["rewards"])))
    write_text(folder / "measured.json", json.dumps(finite({**measured, "hardware": hardware()}), indent=1) + "\n")
    return True


@torch.no_grad()
def measure_fresh(config: TrainConfig, model: str, rewards: tuple[str, ...]) -> dict[str, float]:
    """Draw fresh images as the run does, several for each class or caption, and measure them.

    Args:
        config: settings of the run; its seed determines the classes and the images.
        model: run folder, or the model before training.
        rewards: rewards to measure.

    Returns:
        Means: `reward/NAME`; the accuracy, by the model's judge; the distance between images of one class, by the
        features of the bundled classifier; the KL to the model before training, estimated from the drawn tokens; the
        entropy (nats per token); and the processor seconds of drawing.
    """
    device = find_device(config.device)
    start = Policy(load_generator(config.model, weights=config.weights, tokenizer=config.tokenizer), config.policy)
    policy = start if model == config.model else Policy(load_generator(model), config.policy)
    for each in (start, policy):
        each.generator.to(device)
    rng = torch.Generator().manual_seed(config.seed + 2**41)
    words = build_sampler(config, policy.generator, device).next(GROUPS, rng).repeat(EACH)
    seeds, request = torch.randint(2**62, (len(words),), generator=rng), policy.request(words)
    images, divergences, entropies, seconds = [], [], [], 0.0
    for index in torch.arange(len(words)).split(config.sample_batch_size):
        part, began = request[index].to(device), time.process_time()
        drawn = policy.sample(part, seeds[index])
        images.append(policy.decode(drawn.tokens).float())
        seconds += time.process_time() - began
        divergences.append((drawn.log_probs - start.log_probs(part, drawn.tokens)).sum(1).cpu())
        entropies.append(drawn.entropy.mean(1).cpu())
    return {
        **scored(torch.cat(images), words, rewards, policy.generator.card.judge, device),
        KL: 0.0 if policy is start else torch.cat(divergences).mean().item(),
        "entropy (nats per token)": torch.cat(entropies).mean().item(),
        DRAWING: seconds / len(words),
    }


def scored(images: Tensor, words: Any, rewards: tuple[str, ...], judge: str | None, device: Any) -> dict[str, float]:
    """Return what images (B, 3, H, W) in [0, 1] say by themselves: rewards, accuracy, and distance within groups."""
    parts = build_reward(dict.fromkeys(rewards, 1.0))(images, words)[1]
    short = short_names(parts)
    measured = {f"reward/{short[name]}": scores.nanmean().item() for name, scores in parts.items()}
    classifier = load_judge(judge)
    accuracy = None if classifier is None else class_accuracy(classifier, images, words)
    if accuracy is not None:
        measured[ACCURACY] = accuracy.top1
    extract = load_extractor("emoji", None, device)
    features = torch.cat([extract(part).pooled for part in images.split(EACH * GROUPS // 4)])
    groups = torch.arange(GROUPS).repeat_interleave(EACH)
    return {**measured, DISTANCE: class_distances(features, groups).mean().item()}


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(0 if run_trial(Path(sys.argv[1])) else 130)
