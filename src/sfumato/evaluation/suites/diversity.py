"""Differences between images of one class, and their coverage of real images."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes, names_to_ask
from sfumato.evaluation.features import Network, features_of, load_extractor
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.named_files import FILE
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.statistics import class_distances, inside, radii
from sfumato.evaluation.suites.imagenet import Reference, size_of
from sfumato.evaluation.targets import Drawing, Target
from sfumato.naming import find_classes
from sfumato.policy import Generator
from sfumato.request import Words


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Mean distance between images of one class, by their features; recall of real images if a reference is given."""

    reference: Path | None = None
    """real images for recall: an .npz file or a folder"""
    per_class: int = 10
    """number of images per class"""
    classes: tuple[str, ...] = ()
    """classes to draw, as names, numbers or ranges; all if none is given"""
    extractor: Network = "emoji"
    """network that computes the features"""
    extractor_weights: str | None = field(default=None, metadata=FILE)
    """file with its weights, or owner/repository/file on the hub; the published weights if not given"""
    neighbors: int = 3
    """number of neighbors for the manifold of recall (k)"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.per_class < 2:
            raise UserError(f"per_class: {self.per_class} is too small; a distance needs at least 2")
        if self.neighbors < 1:
            raise UserError(f"neighbors: {self.neighbors} is too small; give at least 1")
        extract = load_extractor(self.extractor, self.extractor_weights, device)
        size = self.drawing.batch_size
        reference = None if self.reference is None else Reference(self.reference, extract, folder / "reference", size)

        def measure(target: Target) -> Measurement:
            images = target.images(self.drawing, self.ask)
            if not all(images.words.names):
                raise UserError(f"target: the classes of {target.name} are unknown; give one subfolder per class")
            real = None if reference is None else reference.features(size_of(images, size)).pooled
            features = features_of(images, extract, target.folder / "features", size).pooled
            distances = class_distances(features, images.words.labels.cpu())
            if not len(distances):
                raise UserError(f"target: {target.name} has no class with two images; give more images, in subfolders")
            figures = {"within-class distance": Figure.mean(distances.tolist())}
            if real is not None:
                covered = inside(real, features, radii(features, self.neighbors))
                basis = f"{len(features)} images; {len(real)} reference images"
                figures["recall"] = Figure.mean(covered.double().tolist(), basis)
            return figures

        return measure

    def ask(self, generator: Generator) -> Words:
        """Return words for `per_class` images of each class; a model that reads captions gets the class names of its
        judge."""
        names = names_to_ask(generator)
        labels = find_classes(self.classes, names) or range(len(names))
        return ask_classes(generator, list(labels), names).repeat(self.per_class)
