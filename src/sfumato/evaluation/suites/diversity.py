"""How different the images of one class are, and how much of the real ones they cover."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.data.classes import find_classes
from sfumato.emoji.judges import load_classifier
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes
from sfumato.evaluation.features import Network, features_of, load_extractor
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.statistics import class_distances, inside, radii
from sfumato.evaluation.suites.imagenet import features_of_reference
from sfumato.evaluation.targets import Drawing, Target
from sfumato.policy import Generator
from sfumato.rollout import Conditions


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Mean distance between the features of images of one class, and recall of real images if there are some."""

    reference: Path | None = None
    """real images, for recall: an .npz file or a folder"""
    per_class: int = 10
    """images a class"""
    classes: tuple[str, ...] = ()
    """names, numbers or ranges; all if none is given"""
    extractor: Network = "emoji"
    """network of the features"""
    extractor_weights: str | None = None
    """file of its weights, or owner/repository/file of the hub; the published ones if not given"""
    neighbours: int = 3
    """of the manifold of recall (k)"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.per_class < 2:
            raise UserError(f"per_class: {self.per_class} is too small; a distance needs at least 2")
        if self.neighbours < 1:
            raise UserError(f"neighbours: {self.neighbours} is too small; give at least 1")
        extract = load_extractor(self.extractor, self.extractor_weights, device)
        real = None
        if self.reference is not None:
            real = features_of_reference(self.reference, extract, folder / "reference", device, self.drawing).pooled

        def measure(target: Target) -> Measurement:
            images = target.images(self.drawing, self.ask)
            if not all(images.conditions.names):
                raise UserError(f"target: the classes of {target.name} are unknown; give a sub-folder for each")
            found = features_of(images, extract, target.folder / "features", self.drawing.batch_size).pooled
            distances = class_distances(found, images.conditions.labels.cpu())
            if not len(distances):
                raise UserError(f"target: {target.name} has no two images of one class; give more, in sub-folders")
            figures = {"within-class distance": Figure.mean(distances.tolist())}
            if real is not None:
                covered = inside(real, found, radii(found, self.neighbours))
                figures["recall"] = Figure.mean(covered.double().tolist())
            return figures

        return measure

    def ask(self, generator: Generator, drawing: Drawing) -> Conditions:
        """Each class several times; a model that reads captions is asked for the names of the bundled classes."""
        names = load_classifier().class_names if generator.text_encoder else generator.class_names
        labels = find_classes(self.classes, names) or range(len(names))
        return ask_classes(generator, drawing, list(labels), names).repeat(self.per_class)
