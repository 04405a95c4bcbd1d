"""How alike two sets of images are, from their features: the statistics of guided-diffusion's evaluator
(Dhariwal & Nichol 2021, `evaluations/evaluator.py`).

Features are rows of tensors that may be mapped from disk: all is computed some rows at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.errors import UserError

ROWS = 2048
"""read at once"""


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter (sum of squared deviations) of some rows, in float64; sums of disjoint sets add."""

    count: int
    mean: Float[Tensor, " D"]
    scatter: Float[Tensor, "D D"]

    @staticmethod
    def of(features: Float[Tensor, "N D"]) -> "Moments":
        """Of all rows, read a part at a time."""
        parts = (Moments._of(part.double()) for part in features.split(ROWS))
        total = next(parts)
        for part in parts:
            total = total + part
        return total

    @staticmethod
    def _of(rows: Float[Tensor, "N D"]) -> "Moments":
        centred = rows - rows.mean(0)
        return Moments(len(rows), rows.mean(0), centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        """Of both sets (Chan, Golub & LeVeque 1983)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        mean = self.mean + shift * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Float[Tensor, "D D"]:
        """Unbiased."""
        return self.scatter / (self.count - 1)


def frechet_distance(one: Moments, other: Moments) -> float:
    """|m - n|² + tr(C + D - 2 (C D)^½) of two Gaussians (Heusel et al. 2017, eq. 6): FID, and sFID on spatial features.

    The trace of (C D)^½ is the sum of the roots of the eigenvalues of C^½ D C^½, which is symmetric.

    Raises:
        UserError: a set has fewer than two images.
    """
    for moments in (one, other):
        if moments.count < 2:
            raise UserError(f"images: {moments.count} is too few for a covariance; give at least 2")
    values, vectors = torch.linalg.eigh(one.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ other.covariance @ root).clamp_min(0).sqrt().sum()
    traces = one.covariance.trace() + other.covariance.trace()
    distance = (one.mean - other.mean).square().sum() + traces - 2 * product
    return distance.clamp_min(0).item()  # rounding can leave it a little below


def inception_score(log_probs: Float[Tensor, "N K"], splits: int = 10) -> Float[Tensor, " S"]:
    """exp(mean over images of KL(p(class | image) ‖ p(class))) of each of `splits` runs of images, in their order
    (Salimans et al. 2016); the score is their mean. At most as many splits as there are images."""
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
    """Euclidean, in float64 by products (whose rounding, about 1e-8 of the features' size, does not matter here)."""
    return torch.cdist(rows.double(), others.double(), compute_mode="use_mm_for_euclid_dist")


def radii(features: Float[Tensor, "N D"], k: int = 3) -> Float[Tensor, " N"]:
    """Distance of each row from its k-th nearest neighbour among the others (Kynkäänniemi et al. 2019, eq. 1).

    Raises:
        UserError: there are not more than k rows.
    """
    if len(features) <= k:
        raise UserError(f"images: {len(features)} is too few for {k} neighbours; give at least {k + 1}")
    found = torch.empty(len(features), dtype=torch.float64)  # once: blocks between large ones would leave holes
    for first, rows in _blocks(features):
        nearest = torch.full((len(rows), k), torch.inf, dtype=torch.float64)
        for start, others in _blocks(features):
            between = distances(rows, others)
            if start == first:
                between.fill_diagonal_(torch.inf)  # a row is no neighbour of its own
            closest = between.topk(min(k, len(others)), largest=False).values
            nearest = torch.cat([nearest, closest], dim=1).topk(k, largest=False).values
        found[first : first + len(rows)] = nearest[:, -1]
    return found


def inside(
    rows: Float[Tensor, "N D"], manifold: Float[Tensor, "M D"], radius: Float[Tensor, " M"]
) -> Bool[Tensor, " N"]:
    """Whether each row lies in the ball of at least one row of the manifold. Its mean over generated images in the
    manifold of real ones is precision; that over real images in the manifold of generated ones is recall
    (Kynkäänniemi et al. 2019, eq. 3)."""
    found = torch.zeros(len(rows), dtype=torch.bool)
    for first, part in _blocks(rows):
        near = found[first : first + len(part)]
        for start, others in _blocks(manifold):
            near |= (distances(part, others) <= radius[start : start + len(others)]).any(1)
    return found


def class_distances(features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> Float[Tensor, " C"]:
    """Mean Euclidean distance between two different images of a class, of every class with at least two."""
    found = []
    for label in labels.unique():
        rows = features[labels == label].double()
        if len(rows) > 1:
            found.append(torch.pdist(rows).mean())
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)


def _blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Some rows at a time, with the number of the first."""
    for first in range(0, len(rows), ROWS):
        yield first, rows[first : first + ROWS]
