"""Inception Score, FID, sFID, precision and recall as defined by guided-diffusion's evaluator
(Dhariwal & Nichol 2021; Yuan et al. 2025, Table 2)."""

import functools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.evaluation.asking import ask_classes, names_to_ask, repeated
from sfumato.evaluation.features import Extractor, Features, Network, features_of, load_extractor
from sfumato.evaluation.image_sets import ArrayImages, Images, StoredImages, by, reading
from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.named_files import FILE
from sfumato.evaluation.runner import Measure
from sfumato.evaluation.statistics import Moments, frechet_distance, inception_score, inside, radii
from sfumato.evaluation.targets import Drawing, Target
from sfumato.notes import note
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
        reference = Reference(self.reference, extract, folder / "reference", self.drawing.batch_size)
        published = published_moments(reference, used=self.extractor == "inception")

        @functools.cache
        def real(size: tuple[int, int]) -> tuple[Features, Tensor, Moments, Moments]:
            features = reference.features(size)
            pooled, spatial = (
                published[name] if name in published else Moments.of(rows)
                for name, rows in (("pooled", features.pooled), ("spatial", features.spatial))
            )
            return features, radii(features.pooled, self.neighbors), pooled, spatial

        def measure(target: Target) -> Measurement:
            images = target.images(self.drawing, self.ask)
            if path_has(Path(target.name), "mu"):
                note(f"target: mu and sigma in {target.name} are not used; its {len(images)} images are measured")
            features, spread, pooled, spatial = real(size_of(images, self.drawing.batch_size))
            drawn = features_of(images, extract, target.folder / "features", self.drawing.batch_size)
            own = radii(drawn.pooled, self.neighbors)
            ours, theirs = f"{len(drawn.pooled)} images", f"{len(features.pooled)} reference images"
            basis = {
                name: f"{ours}; {'the moments in the reference' if name in published else theirs}"
                for name in ("pooled", "spatial")
            }
            precision = inside(drawn.pooled, features.pooled, spread).double().tolist()
            recall = inside(features.pooled, drawn.pooled, own).double().tolist()
            return {
                "Inception Score": Figure.mean(inception_score(drawn.log_probs, self.splits).tolist(), ours),
                "FID": Figure(frechet_distance(pooled, Moments.of(drawn.pooled)), basis=basis["pooled"]),
                "sFID": Figure(frechet_distance(spatial, Moments.of(drawn.spatial)), basis=basis["spatial"]),
                "precision": Figure.mean(precision, f"{ours}; {theirs}"),
                "recall": Figure.mean(recall, f"{ours}; {theirs}"),
            }

        return measure

    def ask(self, generator: Generator) -> Words:
        """Return words for all classes in turn; a model that reads captions gets the class names of its judge."""
        names = names_to_ask(generator)
        return repeated(ask_classes(generator, range(len(names)), names), self.images)


class Reference:
    """Real images, and their features at the size of the images that are compared with them.

    Images of a folder are resized to this size as images for pre-training are; those of an .npz file must have it.

    Raises:
        UserError: there are no images at this path, or none that can be read.
    """

    def __init__(self, path: Path, extract: Extractor, folder: Path, batch_size: int):
        """Open the images.

        Args:
            path: an .npz file or a folder.
            extract: the extractor.
            folder: folder for the features.
            batch_size: number of images per batch.
        """
        self.path, self.extract, self.folder, self.batch_size = path, extract, folder, batch_size
        if path.is_file() and path.suffix.lower() == ".npz":
            self.images: ArrayImages | StoredImages = ArrayImages(path, field="reference")
        elif path.is_dir():
            self.images = StoredImages(path, field="reference", resized=True)
        else:
            raise UserError(f"reference: {path} is not an .npz file or a folder of images; give one")

    def features(self, size: tuple[int, int]) -> Features:
        """Return the features of all images at this width and height in pixels.

        Raises:
            UserError: the images of an .npz file have another size.
        """
        if isinstance(self.images, StoredImages):
            images = self.images.sized(size)
        elif self.images.size == size:
            images = self.images
        else:
            raise UserError(
                f"reference: images in {self.path} have {by(self.images.size)} pixels, those to measure {by(size)}; "
                "give real images of this size, or a folder of them, which are resized"
            )
        folder = self.folder / "{}x{}".format(*size)
        return features_of(images, self.extract, folder, self.batch_size, title="reference")


def size_of(images: Images, batch_size: int) -> tuple[int, int]:
    """Return the width and height of images in pixels. A model draws its first batch for this."""
    height, width = images[0:batch_size].shape[-2:]
    return width, height


def path_has(path: Path, name: str) -> bool:
    """Return whether a path is an .npz file with an array of this name."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    with zipfile.ZipFile(path) as archive:
        return f"{name}.npy" in archive.namelist()


def published_moments(reference: Reference, used: bool) -> dict[str, Moments]:
    """Return the moments of pooled and spatial features that an .npz file contains; a note says what they are used for.

    The moments in guided-diffusion's reference batches are those of all training images, of which a batch contains
    10,000. Its evaluator computes FID and sFID from the moments, and precision and recall from the images.

    Args:
        reference: the real images.
        used: whether the extractor is the network of such moments; otherwise they are not used.

    Raises:
        UserError: the file is damaged, or the moments are those of another network.
    """
    if not path_has(reference.path, "mu"):
        return {}
    path, count = reference.path, len(reference.images)
    if not used:
        note(f"reference: the moments in {path} are Inception's and not used; its {count} images are measured")
        return {}
    shapes = reference.extract(reference.images[0:1])
    found = {}
    with reading(path, "reference"), np.load(path) as arrays:
        for kind, suffix in (("pooled", ""), ("spatial", "_s")):
            names = (f"mu{suffix}", f"sigma{suffix}")
            if set(names) <= set(arrays.files):
                mean, covariance = (torch.from_numpy(arrays[name]).double() for name in names)
                # The number of images is not in the file; with a count of 2, the scatter equals the covariance.
                found[kind] = Moments(2, mean, covariance)
    for kind, moments in found.items():
        width = getattr(shapes, kind).shape[1]
        if moments.mean.shape != (width,) or moments.scatter.shape != (width, width):
            raise UserError(f"reference: mu and mu_s of {path} are from another network; remove them")
    figures = [name for kind, name in (("pooled", "FID"), ("spatial", "sFID")) if kind in found]
    if figures:
        rest = [name for name in ("FID", "sFID", "precision", "recall") if name not in figures]
        note(
            f"reference: {' and '.join(figures)} from the moments in {path}; {', '.join(rest)} from its {count} images"
        )
    return found
