"""Inception Score, FID, sFID, precision and recall as defined by guided-diffusion's evaluator
(Dhariwal & Nichol 2021; Yuan et al. 2025, Table 2)."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes, names_to_ask, repeated
from sfumato.evaluation.features import Extractor, Features, Network, features_of, load_extractor
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.named_files import FILE
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.statistics import Moments, frechet_distance, inception_score, inside, radii
from sfumato.evaluation.targets import Drawing, Target
from sfumato.policy import Generator
from sfumato.request import Words


@dataclass(frozen=True, kw_only=True)
class ImageNet:
    """Inception Score, FID, sFID, precision and recall against a reference; classes are drawn in turn."""

    reference: Path | None = None
    """real images: an .npz file as published by guided-diffusion, or a folder"""
    images: int = 50_000
    """number of images to draw"""
    extractor: Network = "inception"
    """network that computes the features; emoji and efficientnet-lite0 need no download"""
    extractor_weights: str | None = field(default=None, metadata=FILE)
    """file with its weights, or owner/repository/file on the hub; the published weights if not given"""
    neighbors: int = 3
    """number of neighbors for the manifolds of precision and recall (k)"""
    splits: int = 10
    """number of splits of the Inception Score"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.reference is None:
            raise UserError("reference: no real images are given; give an .npz file or a folder of them")
        if self.images <= self.neighbors or self.neighbors < 1:
            raise UserError(f"images: {self.images} is not enough for {self.neighbors} neighbors; give more")
        if self.splits < 1:
            raise UserError(f"splits: {self.splits} is too small; give at least 1")
        extract = load_extractor(self.extractor, self.extractor_weights, device)
        reference = features_of_reference(self.reference, extract, folder / "reference", device, self.drawing)
        spread = radii(reference.pooled, self.neighbors)
        published = published_moments(self.reference) if self.extractor == "inception" else None
        pooled, spatial = published or (Moments.of(reference.pooled), Moments.of(reference.spatial))
        if (len(pooled.mean), len(spatial.mean)) != (reference.pooled.shape[1], reference.spatial.shape[1]):
            raise UserError(f"reference: mu and mu_s of {self.reference} are from another network; remove them")

        def measure(target: Target) -> Measurement:
            images = target.images(self.drawing, self.ask)
            drawn = features_of(images, extract, target.folder / "features", self.drawing.batch_size)
            if drawn.spatial.shape[1] != reference.spatial.shape[1]:
                raise UserError(f"target: images of {target.name} and reference differ in size; give equal sizes")
            own = radii(drawn.pooled, self.neighbors)
            return {
                "Inception Score": Figure.mean(inception_score(drawn.log_probs, self.splits).tolist()),
                "FID": Figure(frechet_distance(pooled, Moments.of(drawn.pooled))),
                "sFID": Figure(frechet_distance(spatial, Moments.of(drawn.spatial))),
                "precision": Figure.mean(inside(drawn.pooled, reference.pooled, spread).double().tolist()),
                "recall": Figure.mean(inside(reference.pooled, drawn.pooled, own).double().tolist()),
            }

        return measure

    def ask(self, generator: Generator) -> Words:
        """Return words for all classes in turn; a model that reads captions gets the class names of its judge."""
        names = names_to_ask(generator)
        return repeated(ask_classes(generator, range(len(names)), names), self.images)


def published_moments(path: Path) -> tuple[Moments, Moments] | None:
    """Return the moments of pooled and spatial features in an .npz file; None if it has only images.

    The moments in guided-diffusion's reference batches are those of all training images, of which a batch contains
    10,000. Its evaluator computes FID and sFID from the moments, and precision and recall from the images.
    """
    if path.suffix.lower() != ".npz":
        return None
    with np.load(path) as arrays:
        if not {"mu", "sigma", "mu_s", "sigma_s"} <= set(arrays.files):
            return None
        mean, covariance, mean_s, covariance_s = (
            torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma", "mu_s", "sigma_s")
        )
    # The number of images is not in the file; with a count of 2, the scatter equals the covariance.
    return Moments(2, mean, covariance), Moments(2, mean_s, covariance_s)


def features_of_reference(
    path: Path, extract: Extractor, folder: Path, device: torch.device, drawing: Drawing
) -> Features:
    """Return features of real images, and store them in a folder.

    Raises:
        UserError: there are no images at this path.
    """
    reference = Target(str(path), folder, device)
    if not path.exists() or not reference.has_images:
        raise UserError(f"reference: {path} is not an .npz file or a folder of images; give one")

    def ask(generator: Generator) -> Words:
        raise AssertionError(path)

    return features_of(reference.images(drawing, ask), extract, folder, drawing.batch_size)
