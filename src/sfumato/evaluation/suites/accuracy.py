"""Class accuracy by the bundled classifier of emoji: the quickest answer to "did it help, and what did it cost?"."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.data.classes import find_labels
from sfumato.data.prompts import Prompt, find_prompts, read_prompts
from sfumato.emoji.judges import Classifier, load_classifier
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes, ask_evenly, repeated
from sfumato.evaluation.class_accuracy import class_hits
from sfumato.evaluation.image_sets import batches
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.targets import Drawing, Target
from sfumato.policy import Generator
from sfumato.rollout import Conditions


@dataclass(frozen=True, kw_only=True)
class AccuracySuite:
    """Class accuracy by the bundled classifier of emoji; a text model is asked for the names."""

    images: int = 1024
    """images to draw; classes or captions in turn"""
    prompts: str | None = None
    """file of captions with their "class", or emoji-captions-held-out; the names of the classes if not given"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.images < 1:
            raise UserError(f"images: {self.images} is too small; give at least 1")
        classifier = load_classifier()
        prompts = None if self.prompts is None else read_prompts(find_prompts(self.prompts))
        return lambda target: self.measure(target, classifier, prompts)

    def measure(self, target: Target, classifier: Classifier, prompts: list[Prompt] | None) -> Measurement:
        """Top-1 and top-5 accuracy of one target's images."""

        def ask(generator: Generator, drawing: Drawing) -> Conditions:
            if prompts is not None:
                return ask_evenly(generator, drawing, prompts, self.images)
            names = classifier.class_names if generator.text_encoder else generator.class_names
            return repeated(ask_classes(generator, drawing, range(len(names)), names), self.images)

        images = target.images(self.drawing, ask)
        if find_labels(classifier.class_names, images.conditions) is None:
            raise UserError(
                f"target: {target.name} has other classes than the bundled classifier; give an emoji model, or images "
                "in a sub-folder for each class"
            )
        hits = [class_hits(classifier, *batch) for batch in batches(images, self.drawing.batch_size)]
        top1, top5 = torch.cat([h for h in hits if h is not None]).float().unbind(1)
        return {"top-1": Figure.mean(top1.tolist()), "top-5": Figure.mean(top5.tolist())}
