"""Class accuracy by the bundled classifier of emoji: a quick check of whether training helped, and at what cost."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.data.classes import find_labels
from sfumato.data.prompts import Prompt, find_prompts, read_prompts
from sfumato.emoji.judges import Classifier, load_classifier
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes, ask_evenly, reads_captions, repeated
from sfumato.evaluation.class_accuracy import class_hits
from sfumato.evaluation.image_sets import batches
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.named_files import PROMPTS
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.targets import Drawing, Target
from sfumato.policy import Generator
from sfumato.request import Words


@dataclass(frozen=True, kw_only=True)
class AccuracySuite:
    """Class accuracy by the bundled classifier of emoji; a text model gets the class names as captions."""

    images: int = 1024
    """number of images to draw, with classes or captions in turn"""
    prompts: str | None = field(default=None, metadata=PROMPTS)
    """file of captions with their "class", or emoji-captions-held-out; the class names if not given"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.images < 1:
            raise UserError(f"images: {self.images} is too small; give at least 1")
        classifier = load_classifier()
        prompts = None if self.prompts is None else read_prompts(find_prompts(self.prompts))
        return lambda target: self.measure(target, classifier, prompts)

    def measure(self, target: Target, classifier: Classifier, prompts: list[Prompt] | None) -> Measurement:
        """Return the top-1 and top-5 accuracy of one target's images."""

        def ask(generator: Generator) -> Words:
            if prompts is not None:
                return ask_evenly(generator, prompts, self.images)
            names = classifier.class_names if reads_captions(generator) else generator.card.class_names
            return repeated(ask_classes(generator, range(len(names)), names), self.images)

        images = target.images(self.drawing, ask)
        if find_labels(classifier.class_names, images.words) is None:
            raise UserError(
                f"target: {target.name} has classes that the bundled classifier does not know; give an emoji model, or "
                "images in one subfolder per class"
            )
        hits = [class_hits(classifier, *batch) for batch in batches(images, self.drawing.batch_size)]
        top1, top5 = torch.cat([h for h in hits if h is not None]).float().unbind(1)
        return {"top-1": Figure.mean(top1.tolist()), "top-5": Figure.mean(top5.tolist())}
