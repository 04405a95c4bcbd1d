"""Rewards and class accuracy, seen and unseen classes apart (Gallici & Sáez de Ocáriz Borde 2025, Table 1)."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.data.classes import find_classes, find_labels
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes
from sfumato.evaluation.class_accuracy import top_hits
from sfumato.evaluation.image_sets import batches
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.recognition import Recogniser, Recognition, load_recogniser
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.targets import Drawing, Target
from sfumato.policy import Generator
from sfumato.rewards import WeightedSum, build_reward
from sfumato.rollout import Conditions


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Rewards and class accuracy of some images of every class, drawn as the model's authors draw."""

    rewards: tuple[str, ...] = ("brightness", "colorfulness")
    """rewards by name, with options; none if empty"""
    classifier: Recogniser | None = "emoji"
    """which tells classes: that of the bundled emoji models, or of ImageNet's classes; None leaves accuracy out"""
    per_class: int = 10
    """images a class"""
    classes: tuple[str, ...] = ()
    """names, numbers or ranges; all if none is given"""
    seen: tuple[str, ...] = ()
    """classes of the training run, as names, numbers or ranges: they and the others are also reported apart"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.per_class < 1:
            raise UserError(f"per_class: {self.per_class} is too small; give at least 1")
        if not self.rewards and self.classifier is None:
            raise UserError("rewards: none is given and no classifier; there is nothing to measure, give one")
        if self.seen and self.classifier is None:
            raise UserError("seen: the classifier knows the classes; give one")
        reward = build_reward(dict.fromkeys(self.rewards, 1.0)).require_thresholds() if self.rewards else None
        recognition = None if self.classifier is None else load_recogniser(self.classifier, device)
        if recognition is not None:
            find_classes(self.seen, recognition.class_names)
        return lambda target: self.measure(target, reward, recognition)

    def measure(self, target: Target, reward: WeightedSum | None, recognition: Recognition | None) -> Measurement:
        """Means over all images, and over those of seen and of unseen classes."""

        def ask(generator: Generator, drawing: Drawing) -> Conditions:
            names = generator.class_names
            if generator.text_encoder:
                if recognition is None:
                    raise UserError(f"classifier: {target.name} reads captions; the classifier names them, give one")
                names = recognition.class_names
            labels = find_classes(self.classes, names) or range(len(names))
            return ask_classes(generator, drawing, list(labels), names).repeat(self.per_class)

        images = target.images(self.drawing, ask)
        labels = None
        if recognition is not None:
            labels = find_labels(recognition.class_names, images.conditions)
            if labels is None:
                raise UserError(
                    f"classifier: {self.classifier} does not know the classes of {target.name}; give resnet50 for "
                    "ImageNet's, None for none, or images in a sub-folder for each class"
                )
        columns: dict[str, list[float]] = {}
        first = 0
        for batch, conditions in batches(images, self.drawing.batch_size):
            batch = batch.to(target.device)
            if reward is not None:
                for name, scores in reward(batch, conditions.to(target.device))[1].items():
                    columns.setdefault(name, []).extend(scores.tolist())
            if recognition is not None and labels is not None:
                hits = top_hits(recognition.logits(batch), labels[first : first + len(batch)]).float()
                columns.setdefault("top-1", []).extend(hits[:, 0].tolist())
                columns.setdefault("top-5", []).extend(hits[:, 1].tolist())
            first += len(batch)
        measurement = {name: Figure.mean(parts) for name, parts in columns.items()}
        if self.seen and labels is not None and recognition is not None:
            seen = torch.isin(labels, torch.tensor(find_classes(self.seen, recognition.class_names))).tolist()
            for name, parts in columns.items():
                for word, wanted in (("seen", True), ("unseen", False)):
                    chosen = [part for part, known in zip(parts, seen, strict=True) if known == wanted]
                    measurement[f"{name}, {word} classes"] = Figure.mean(chosen)
        return measurement
