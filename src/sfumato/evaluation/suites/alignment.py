"""Rewards and class accuracy, separately for seen and unseen classes (Gallici & Sáez de Ocáriz Borde 2025, Table 1)."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes, reads_captions
from sfumato.evaluation.class_accuracy import top_hits
from sfumato.evaluation.image_sets import batches
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.named_files import REWARDS
from sfumato.evaluation.recognition import CLASSIFIER, Recognition, load_recognizer
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.targets import Drawing, Target
from sfumato.naming import find_classes, find_labels
from sfumato.policy import Generator
from sfumato.request import Words
from sfumato.rewards import WeightedSum, build_reward
from sfumato.rewards.base import join_seen


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Rewards and class accuracy for a few images of every class; models draw with their own settings."""

    rewards: tuple[str, ...] = field(default=("brightness", "colorfulness"), metadata=REWARDS)
    """rewards by name, with options"""
    classifier: str | None = field(default="emoji", metadata=CLASSIFIER)
    """classifier for accuracy: emoji for the bundled emoji models, resnet50 or efficientnet-lite0 for ImageNet's
    classes, or a folder of `sfumato pretrain emoji-classifier --data ...` for your own; None for no accuracy"""
    per_class: int = 10
    """number of images per class"""
    classes: tuple[str, ...] = ()
    """classes to draw, as names, numbers or ranges; all if none is given"""
    seen: tuple[str, ...] = ()
    """classes of the training run, as names, numbers or ranges; these and the other classes are also reported
    separately"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.per_class < 1:
            raise UserError(f"per_class: {self.per_class} is too small; give at least 1")
        if not self.rewards and self.classifier is None:
            raise UserError("rewards: neither a reward nor a classifier is given, so nothing is measured; give one")
        if self.seen and self.classifier is None:
            raise UserError("seen: without a classifier the classes are unknown; give a classifier")
        reward = build_reward(dict.fromkeys(self.rewards, 1.0)).require_thresholds() if self.rewards else None
        recognition = None if self.classifier is None else load_recognizer(self.classifier, device)
        if recognition is not None:
            find_classes(self.seen, recognition.class_names)
        return lambda target: self.measure(target, reward, recognition)

    def measure(self, target: Target, reward: WeightedSum | None, recognition: Recognition | None) -> Measurement:
        """Return means over all images, over those of seen classes, and over those of unseen classes."""

        def ask(generator: Generator) -> Words:
            names = generator.card.class_names
            if reads_captions(generator):
                if recognition is None:
                    raise UserError(f"classifier: {target.name} needs the classifier's names as captions; give one")
                names = recognition.class_names
            labels = find_classes(self.classes, names) or range(len(names))
            return ask_classes(generator, list(labels), names).repeat(self.per_class)

        images = target.images(self.drawing, ask)
        labels = None
        if recognition is not None:
            labels = find_labels(recognition.class_names, images.words)
            if labels is None:
                raise UserError(
                    f"classifier: {self.classifier} does not know the classes of {target.name}; give resnet50 for "
                    "ImageNet's classes, a folder with your own classifier, None for no accuracy, or images in one "
                    "subfolder per class"
                )
        columns: dict[str, list[float]] = {}
        seen, first = [], 0
        for batch, words in batches(images, self.drawing.batch_size):
            batch = batch.to(target.device)
            if reward is not None:
                seen.append(reward.see(batch, words))
            if recognition is not None and labels is not None:
                hits = top_hits(recognition.logits(batch), labels[first : first + len(batch)]).float()
                columns.setdefault("top-1", []).extend(hits[:, 0].tolist())
                columns.setdefault("top-5", []).extend(hits[:, 1].tolist())
            first += len(batch)
        if reward is not None:
            _, scores = reward.finish(join_seen(seen), images.words)
            columns = {name: part.tolist() for name, part in scores.items()} | columns
        measurement = {name: Figure.mean(parts) for name, parts in columns.items()}
        if self.seen and labels is not None and recognition is not None:
            seen = torch.isin(labels, torch.tensor(find_classes(self.seen, recognition.class_names))).tolist()
            for name, parts in columns.items():
                for word, wanted in (("seen", True), ("unseen", False)):
                    chosen = [part for part, known in zip(parts, seen, strict=True) if known == wanted]
                    measurement[f"{name}, {word} classes"] = Figure.mean(chosen)
        return measurement
