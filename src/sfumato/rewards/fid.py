"""Leave-one-out FID (Baran, Kandemir & Cinbis, arXiv 2603.23086): how much closer to real images the drawn ones are
because an image is among them. A collapsed policy has a large FID however good its images are.

The drawn images are described by moving moments of features over the batches of training: after n batches, batch k has
the weight decay^(n - k), divided by the sum of all weights. The authors' code uses variances only; this reward uses
whole covariances, as FID does.

With features x_1, ..., x_B of a batch, whose mean is b and biased covariance S, the moments m, C include the batch with
a share p. Without image i, whose share goes to the others of the batch,

    m_i = m - a d_i    and    C_i = A - a (1 + a) v_i v_iᵀ,    with    a = p / (B - 1),    d_i = x_i - b,
    A = C + a S + a / (1 + a) (b - m)(b - m)ᵀ    and    v_i = d_i + (b - m) / (1 + a).

So the B covariances are downdates of rank one of the same matrix. The trace of (N C_i)^½ in the Fréchet distance, with
N of the real images, is the sum of the square roots of the eigenvalues of N^½ A N^½ - a (1 + a) w_i w_iᵀ, where
w_i = N^½ v_i. With eigenvalues λ_k of N^½ A N^½ and components z_k of w_i along its eigenvectors, the downdate changes
this sum by

    1/π ∫_0^∞ log(1 - a (1 + a) Σ_k z_k² / (λ_k + u²)) du,

which follows from √λ = 2/π ∫ λ / (λ + u²) du and the determinant of a downdate. Nothing cancels in this integral, and
the trapezoidal rule in log u has an error of e^(-π²/h) for steps of h: it is exact to about 1e-15 of √λ_max. All images
of a batch need O(D³ + B D (D + Q)) operations for D features and Q = 227 points, instead of O(B D³).
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.data.preprocessing import crop_square
from sfumato.emoji.judges import load_rival
from sfumato.emoji.source import open_source
from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards.classifier import EMOJI_SIDE
from sfumato.rewards.inception import load_inception

SIDES = {"emoji": EMOJI_SIDE, "inception": 256}
"""Sides in pixels of the squares that real images are cut to."""
BATCH = 64
"""Number of real images per forward pass."""
STEP, REACH = 0.3, 34.0
"""Steps of log u, and its largest distance from that of the largest eigenvalue; e^-34 and e^(-π²/0.3) are 1e-15."""


@dataclass(frozen=True)
class Moments:
    """Moving moments in float64."""

    mean: Float[Tensor, " D"]
    covariance: Float[Tensor, "D D"]
    weight: float
    """sum of the weights of all batches; 0 before the first, and at most 1 / (1 - decay)"""

    def to(self, device: torch.device) -> "Moments":
        """Return a copy on another device."""
        return Moments(self.mean.to(device), self.covariance.to(device), self.weight)

    def after(self, rows: Float[Tensor, "B D"], decay: float) -> "Moments":
        """Return the moments once a batch is included. Its share is 1 / weight."""
        weight = decay * self.weight + 1
        share, shift = 1 / weight, rows.mean(0) - self.mean
        between = share * (1 - share) * torch.outer(shift, shift)
        covariance = (1 - share) * self.covariance + share * biased_covariance(rows) + between
        return Moments(self.mean + share * shift, covariance, weight)


@dataclass(frozen=True)
class Reference:
    """Moments of real images in float64."""

    mean: Float[Tensor, " D"]
    covariance: Float[Tensor, "D D"]
    root: Float[Tensor, "D D"]
    """symmetric square root of the covariance"""

    @staticmethod
    def of(mean: Float[Tensor, " D"], covariance: Float[Tensor, "D D"]) -> "Reference":
        """Return the moments with the square root."""
        values, vectors = torch.linalg.eigh(covariance.double())
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        return Reference(mean.double(), covariance.double(), root)

    def to(self, device: torch.device) -> "Reference":
        """Return a copy on another device."""
        return Reference(self.mean.to(device), self.covariance.to(device), self.root.to(device))


class Fid:
    """How much the Fréchet distance to real images would grow without the image, per share of an image: the difference
    times the number of images that the moving moments stand for. Positive for images that bring the distance down.

    An image that is alone has no score.
    """

    def __init__(
        self,
        reference: str,
        features: Literal["inception", "emoji"] = "inception",
        decay: float = 0.99,
        weights: str | None = None,
    ):
        """Create the reward.

        Args:
            reference: real images: a folder, the unpacked npm package `emoji-datasource-google`, or an .npz file with
                their moments `mu` and `sigma`.
            features: inception for those of FID, or emoji for those of `emoji-rival`, the classifier for rewards.
            decay: factor by which the weight of a batch falls with each step, 0 or more and less than 1.
            weights: Inception's file, or owner/repository/file on the hub; or the `model/` folder of a run of `sfumato
                pretrain emoji-rival`; the published or bundled ones if not given.

        Raises:
            UserError: the decay is out of range, or real images or weights cannot be read or do not fit.
        """
        if not 0 <= decay < 1:
            raise UserError(f"decay: {decay} is out of range; give 0 or more and less than 1, such as 0.99")
        self.decay = decay
        self.extract = load_network(features, weights)
        self.reference = read_reference(Path(reference).expanduser(), self.extract, SIDES[features])
        nothing = torch.zeros_like(self.reference.covariance)
        self.moments = Moments(nothing[0], nothing, 0.0)

    def features(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, "B D"]:
        return self.extract(images)

    def scores(self, features: Float[Tensor, "B D"], words: Words, groups: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        count = len(features)
        if count < 2:
            return torch.full((count,), torch.nan)
        device = features.device if features.is_cuda else torch.device("cpu")  # other devices have no float64
        rows = features.to(device, torch.float64)
        moments = self.moments.to(device)
        stood_for = count * moments.after(rows, self.decay).weight
        return stood_for * leave_one_out(rows, moments, self.decay, self.reference.to(device))

    def update(self, features: Float[Tensor, "B D"]) -> None:
        self.moments = self.moments.after(features.cpu().double(), self.decay)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.moments.mean, "covariance": self.moments.covariance, "weight": self.moments.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments = Moments(**state)


def biased_covariance(rows: Float[Tensor, "B D"]) -> Float[Tensor, "D D"]:
    """Return the mean of the products of deviations from the mean."""
    centered = rows - rows.mean(0)
    return centered.T @ centered / len(rows)


def leave_one_out(
    rows: Float[Tensor, "B D"], before: Moments, decay: float, reference: Reference
) -> Float[Tensor, " B"]:
    """Return the Fréchet distance without each image minus that with all, after a batch of at least two images.

    Args:
        rows: features of the batch in float64.
        before: moving moments before the batch.
        decay: factor of the weights of earlier batches.
        reference: moments of real images.
    """
    now = before.after(rows, decay)
    a = 1 / (now.weight * (len(rows) - 1))
    spread, deviations, offset = biased_covariance(rows), rows - rows.mean(0), rows.mean(0) - now.mean
    shared = now.covariance + a * spread + a / (1 + a) * torch.outer(offset, offset)
    downdates = (a * (1 + a)) ** 0.5 * (deviations + offset / (1 + a))
    means = a**2 * deviations.square().sum(1) - 2 * a * deviations @ (now.mean - reference.mean)
    traces = (shared - now.covariance).trace() - downdates.square().sum(1)
    values, vectors = torch.linalg.eigh(reference.root @ shared @ reference.root)
    values = values.clamp_min(0)
    known = torch.linalg.eigvalsh(reference.root @ now.covariance @ reference.root).clamp_min(0).sqrt().sum()
    roots = values.sqrt().sum() - known + downdated_roots(values, downdates @ reference.root @ vectors)
    return means + traces - 2 * roots


def downdated_roots(values: Float[Tensor, " D"], parts: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Return by how much the sum of the square roots of a matrix's eigenvalues changes if z zᵀ is subtracted.

    Args:
        values: eigenvalues of the matrix, which are not negative.
        parts: components of each z along the eigenvectors; the difference has no negative eigenvalue.
    """
    steps = torch.arange(-REACH, REACH + STEP / 2, STEP, dtype=values.dtype, device=values.device)
    squares = values.amax().clamp_min(1e-100) * (2 * steps).exp()  # u²
    inner = parts.square() @ (values[:, None] + squares).reciprocal()
    most = 1 - torch.finfo(values.dtype).eps
    return (-inner.clamp_max(most)).log1p() @ squares.sqrt() * (STEP / torch.pi)


def load_network(features: Literal["inception", "emoji"], weights: str | None) -> Callable[[Tensor], Tensor]:
    """Return a function that computes pooled features (B, D) of images in [0, 1].

    Raises:
        UserError: the weights are not available or do not fit.
    """
    if features == "inception":
        inception = load_inception(weights, "weights")
        return lambda images: inception.to(images.device)(images)[0]
    rival = load_rival(None if weights is None else Path(weights))
    return lambda images: rival.to(images.device).features(crop_square(images, EMOJI_SIDE) * 2 - 1).amax((2, 3))


@torch.no_grad()
def read_reference(path: Path, extract: Callable[[Tensor], Tensor], side: int) -> Reference:
    """Return the moments of real images, from a file of moments or a folder of images.

    Raises:
        UserError: it is neither, has fewer than two images, or its moments belong to another network.
    """
    if path.suffix == ".npz":
        width = extract(torch.zeros(1, 3, side, side)).shape[1]
        return read_moments(path, width)
    if not path.is_dir():
        raise UserError(f"reference: {path} is not a folder; give a folder of real images, or an .npz of their moments")
    source = open_source(path, side)
    if len(source) < 2:
        raise UserError(f"reference: {path} has a single image; give a folder with more")
    rows = torch.cat([extract(source[index][0]) for index in torch.arange(len(source)).split(BATCH)]).double()
    return Reference.of(rows.mean(0), biased_covariance(rows) * (len(rows) / (len(rows) - 1)))


def read_moments(path: Path, width: int) -> Reference:
    """Read `mu` and `sigma` from an .npz file, as pytorch-fid and guided-diffusion write them.

    Raises:
        UserError: the file cannot be read, or has no moments of this number of features.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(np.asarray(file[key], np.float64)) for key in ("mu", "sigma"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"reference: {path} has no moments mu and sigma ({reason}); give pytorch-fid's .npz") from error
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise UserError(
            f"reference: {path} has moments of {tuple(mean.shape)} and {tuple(covariance.shape)}, but the network has "
            f"{width} features; give moments of the same network"
        )
    return Reference.of(mean, covariance)
