"""Inception Score, FID, sFID, precision and recall as guided-diffusion's evaluator defines them
(Dhariwal & Nichol 2021; Yuan et al. 2025, Table 2)."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from sfumato.emoji.judges import load_classifier
from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes, repeated
from sfumato.evaluation.features import Extractor, Features, Network, features_of, load_extractor
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.statistics import Moments, frechet_distance, inception_score, inside, radii
from sfumato.evaluation.targets import Drawing, Target
from sfumato.policy import Generator
from sfumato.rollout import Conditions


@dataclass(frozen=True, kw_only=True)
class ImageNet:
    """Inception Score, FID, sFID, precision and recall against a reference; classes in turn."""

    reference: Path | None = None
    """real images: an .npz file as guided-diffusion publishes it, or a folder"""
    images: int = 50_000
    """images to draw"""
    extractor: Network = "inception"
    """network of the features; emoji and efficientnet-lite0 need no download"""
    extractor_weights: str | None = None
    """file of its weights, or owner/repository/file of the hub; the published ones if not given"""
    neighbours: int = 3
    """of the manifolds of precision and recall (k)"""
    splits: int = 10
    """of the Inception Score"""
    drawing: Drawing = field(default_factory=Drawing)

    def prepare(self, device: torch.device, folder: Path) -> Measure:
        if self.reference is None:
            raise UserError("reference: none is given; give an .npz file of real images, or a folder of them")
        if self.images <= self.neighbours or self.neighbours < 1:
            raise UserError(f"images: {self.images} is too few for {self.neighbours} neighbours; give more")
        if self.splits < 1:
            raise UserError(f"splits: {self.splits} is too small; give at least 1")
        extract = load_extractor(self.extractor, self.extractor_weights, device)
        reference = features_of_reference(self.reference, extract, folder / "reference", device, self.drawing)
        spread = radii(reference.pooled, self.neighbours)
        published = published_moments(self.reference) if self.extractor == "inception" else None
        pooled, spatial = published or (Moments.of(reference.pooled), Moments.of(reference.spatial))
        if (len(pooled.mean), len(spatial.mean)) != (reference.pooled.shape[1], reference.spatial.shape[1]):
            raise UserError(f"reference: mu and mu_s of {self.reference} are of another network; leave them out")

        def measure(target: Target) -> Measurement:
            images = target.images(self.drawing, self.ask)
            found = features_of(images, extract, target.folder / "features", self.drawing.batch_size)
            if found.spatial.shape[1] != reference.spatial.shape[1]:
                raise UserError(f"target: images of {target.name} and reference differ in size; make them alike")
            own = radii(found.pooled, self.neighbours)
            return {
                "Inception Score": Figure.mean(inception_score(found.log_probs, self.splits).tolist()),
                "FID": Figure(frechet_distance(pooled, Moments.of(found.pooled))),
                "sFID": Figure(frechet_distance(spatial, Moments.of(found.spatial))),
                "precision": Figure.mean(inside(found.pooled, reference.pooled, spread).double().tolist()),
                "recall": Figure.mean(inside(reference.pooled, found.pooled, own).double().tolist()),
            }

        return measure

    def ask(self, generator: Generator, drawing: Drawing) -> Conditions:
        """All classes in turn; a model that reads captions is asked for the names of the bundled classes."""
        names = load_classifier().class_names if generator.text_encoder else generator.class_names
        return repeated(ask_classes(generator, drawing, range(len(names)), names), self.images)


def published_moments(path: Path) -> tuple[Moments, Moments] | None:
    """Moments of pooled and spatial features that an .npz file has beside its images, if it does.

    Those of guided-diffusion's reference batches are of all training images, of which the batch has 10,000; its
    evaluator takes FID and sFID from them, and precision and recall from the images.
    """
    if path.suffix.lower() != ".npz":
        return None
    with np.load(path) as arrays:
        if not {"mu", "sigma", "mu_s", "sigma_s"} <= set(arrays.files):
            return None
        mean, covariance, mean_s, covariance_s = (
            torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma", "mu_s", "sigma_s")
        )
    # Of how many images is not said; of two the scatter is the covariance.
    return Moments(2, mean, covariance), Moments(2, mean_s, covariance_s)


def features_of_reference(
    path: Path, extract: Extractor, folder: Path, device: torch.device, drawing: Drawing
) -> Features:
    """Features of real images, kept in a folder.

    Raises:
        UserError: there are none at this path.
    """
    reference = Target(str(path), folder, device)
    if not path.exists() or not reference.has_images:
        raise UserError(f"reference: {path} is neither an .npz file nor a folder of images; give one")

    def ask(generator: Generator, drawing: Drawing) -> Conditions:
        raise AssertionError(path)

    return features_of(reference.images(drawing, ask), extract, folder, drawing.batch_size)
