"""Class accuracy by a classifier: a quick check of whether training helped, and at what cost."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.data.prompts import Prompt, find_prompts, read_prompts
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes, ask_evenly, reads_captions, repeated
from sfumato.evaluation.class_accuracy import top_hits
from sfumato.evaluation.image_sets import batches
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.named_files import PROMPTS
from sfumato.evaluation.recognition import CLASSIFIER, Recognition, load_recognizer
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.targets import Drawing, Target
from sfumato.naming import find_labels
from sfumato.policy import Generator
from sfumato.request import Words


@dataclass(frozen=True, kw_only=True)
class AccuracySuite:
    """Class accuracy by the bundled classifier of emoji or another; a text model gets the class names as captions."""

    images: int = 1024
    """number of images to draw, with classes or captions in turn"""
    classifier: str = field(default="emoji", metadata=CLASSIFIER)
    """judge: emoji, the bundled classifier; resnet50 or efficientnet-lite0 for ImageNet's classes; or a folder of
    `sfumato pretrain emoji-classifier --data ...` for your own"""
    prompts: str | None = field(default=None, metadata=PROMPTS)
    """file of captions with their "class", or emoji-captions-held-out; the class names if not given"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.images < 1:
            raise UserError(f"images: {self.images} is too small; give at least 1")
        recognition = load_recognizer(self.classifier, device)
        prompts = None if self.prompts is None else read_prompts(find_prompts(self.prompts))
        return lambda target: self.measure(target, recognition, prompts)

    def measure(self, target: Target, recognition: Recognition, prompts: list[Prompt] | None) -> Measurement:
        """Return the top-1 and top-5 accuracy of one target's images."""

        def ask(generator: Generator) -> Words:
            if prompts is not None:
                return ask_evenly(generator, prompts, self.images)
            names = recognition.class_names if reads_captions(generator) else generator.card.class_names
            return repeated(ask_classes(generator, range(len(names)), names), self.images)

        images = target.images(self.drawing, ask)
        labels = find_labels(recognition.class_names, images.words)
        if labels is None:
            raise UserError(
                f"target: {target.name} has classes that the classifier {self.classifier} does not know; give a model "
                "of its classes, another classifier, or images in one subfolder per class"
            )
        hits = [
            top_hits(recognition.logits(batch), part)
            for (batch, _), part in zip(
                batches(images, self.drawing.batch_size), labels.split(self.drawing.batch_size), strict=True
            )
        ]
        top1, top5 = torch.cat(hits).float().unbind(1)
        return {"top-1": Figure.mean(top1.tolist()), "top-5": Figure.mean(top5.tolist())}
