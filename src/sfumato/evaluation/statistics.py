"""Statistics that compare two sets of images by their features, as in guided-diffusion's evaluator
(Dhariwal & Nichol 2021, `evaluations/evaluator.py`).

Features are rows of tensors that can be mapped from disk, so everything is computed on a block of rows at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.errors import UserError

ROWS = 2048
"""Number of rows per block."""


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter (sum of squared deviations) of rows, in float64; those of disjoint sets can be added."""

    count: int
    """number of rows"""
    mean: Float[Tensor, " D"]
    """mean of each column"""
    scatter: Float[Tensor, "D D"]
    """sum over rows of the outer product of their deviation from the mean"""

    @staticmethod
    def of(features: Float[Tensor, "N D"]) -> "Moments":
        """Compute the moments of all rows, one block at a time."""
        parts = (Moments._of(part.double()) for part in features.split(ROWS))
        total = next(parts)
        for part in parts:
            total = total + part
        return total

    @staticmethod
    def _of(rows: Float[Tensor, "N D"]) -> "Moments":
        centered = rows - rows.mean(0)
        return Moments(len(rows), rows.mean(0), centered.T @ centered)

    def __add__(self, other: "Moments") -> "Moments":
        """Combine the moments of two disjoint sets (Chan, Golub & LeVeque 1983)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        mean = self.mean + shift * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Float[Tensor, "D D"]:
        """The unbiased covariance."""
        return self.scatter / (self.count - 1)


def frechet_distance(one: Moments, other: Moments) -> float:
    """Return |m - n|² + tr(C + D - 2 (C D)^½) of two Gaussians (Heusel et al. 2017, eq. 6): FID, or sFID for spatial
    features.

    The trace of (C D)^½ is the sum of the square roots of the eigenvalues of C^½ D C^½, which is symmetric.

    Raises:
        UserError: a set has fewer than two images.
    """
    for moments in (one, other):
        if moments.count < 2:
            raise UserError(f"images: {moments.count} is not enough for a covariance; give at least 2")
    values, vectors = torch.linalg.eigh(one.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ other.covariance @ root).clamp_min(0).sqrt().sum()
    traces = one.covariance.trace() + other.covariance.trace()
    distance = (one.mean - other.mean).square().sum() + traces - 2 * product
    return distance.clamp_min(0).item()  # rounding can make it slightly negative


def inception_score(log_probs: Float[Tensor, "N K"], splits: int = 10) -> Float[Tensor, " S"]:
    """Return exp(mean over images of KL(p(class | image) ‖ p(class))) of each of `splits` consecutive parts of the
    images (Salimans et al. 2016); the score is their mean. There are at most as many splits as images."""
    return torch.stack([_split_score(part) for part in log_probs.tensor_split(min(splits, len(log_probs)))])


def _split_score(log_probs: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
    total, negative_entropy = torch.zeros(log_probs.shape[1], dtype=torch.float64), 0.0
    for part in log_probs.split(ROWS):
        known = part.double()
        total += known.exp().sum(0)
        negative_entropy += (known.exp() * known.clamp_min(-1e4)).sum().item()
    marginal = total / len(log_probs)
    return (negative_entropy / len(log_probs) - torch.xlogy(marginal, marginal).sum()).exp()


def distances(rows: Float[Tensor, "N D"], others: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """Return Euclidean distances in float64, computed from matrix products. Their rounding errors, about 1e-8 of the
    features' magnitude, are negligible here."""
    return torch.cdist(rows.double(), others.double(), compute_mode="use_mm_for_euclid_dist")


def radii(features: Float[Tensor, "N D"], k: int = 3) -> Float[Tensor, " N"]:
    """Return the distance of each row to its k-th nearest neighbor among the other rows (Kynkäänniemi et al. 2019,
    eq. 1).

    Raises:
        UserError: there are k rows or fewer.
    """
    if len(features) <= k:
        raise UserError(f"images: {len(features)} is not enough for {k} neighbors; give at least {k + 1}")
    result = torch.empty(len(features), dtype=torch.float64)  # allocated once, which avoids memory fragmentation
    for first, rows in _blocks(features):
        nearest = torch.full((len(rows), k), torch.inf, dtype=torch.float64)
        for start, others in _blocks(features):
            between = distances(rows, others)
            if start == first:
                between.fill_diagonal_(torch.inf)  # a row is not its own neighbor
            closest = between.topk(min(k, len(others)), largest=False).values
            nearest = torch.cat([nearest, closest], dim=1).topk(k, largest=False).values
        result[first : first + len(rows)] = nearest[:, -1]
    return result


def inside(
    rows: Float[Tensor, "N D"], manifold: Float[Tensor, "M D"], radius: Float[Tensor, " M"]
) -> Bool[Tensor, " N"]:
    """Return whether each row lies within the ball around at least one row of the manifold. The mean over generated
    images, with the manifold of real images, is precision; the mean over real images, with the manifold of generated
    images, is recall (Kynkäänniemi et al. 2019, eq. 3)."""
    result = torch.zeros(len(rows), dtype=torch.bool)
    for first, part in _blocks(rows):
        near = result[first : first + len(part)]
        for start, others in _blocks(manifold):
            near |= (distances(part, others) <= radius[start : start + len(others)]).any(1)
    return result


def class_distances(features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> Float[Tensor, " C"]:
    """Return the mean Euclidean distance between two different images of a class, for every class with at least two."""
    means = []
    for label in labels.unique():
        rows = features[labels == label].double()
        if len(rows) > 1:
            means.append(torch.pdist(rows).mean())
    return torch.stack(means) if means else torch.zeros(0, dtype=torch.float64)


def _blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks of rows, each with the number of its first row."""
    for first in range(0, len(rows), ROWS):
        yield first, rows[first : first + ROWS]
