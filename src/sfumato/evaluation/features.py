"""Features for distances between images: pooled and spatial features of a network, and its log-probabilities."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.emoji.judges import Classifier, load_classifier
from sfumato.evaluation.image_sets import Images, batches
from sfumato.rewards import classifier as imagenet
from sfumato.rewards.inception import Inception, load_inception

CHANNELS = 7
"""Number of channels of a feature map that form the spatial features (Nash et al. 2021)."""


@dataclass(frozen=True)
class Features:
    """Features of N images, one row per image."""

    pooled: Float[Tensor, "N D"]
    spatial: Float[Tensor, "N S"]
    log_probs: Float[Tensor, "N K"]
    """log-probabilities of the network's own classes"""


Extractor = Callable[[Float[Tensor, "B 3 H W"]], Features]
"""Computes features of images in [0, 1]; the features are on the CPU."""

Network = Literal["emoji", "inception", "efficientnet-lite0"]


def load_extractor(network: Network, weights: str | None, device: torch.device) -> Extractor:
    """Load an extractor by name.

    Args:
        network: the bundled classifier of emoji, the Inception network of FID, or EfficientNet-Lite0, whose weights
            come with the extra `imagenet`.
        weights: a file, or owner/repository/file on the hub; the published weights if not given.
        device: device of the network.

    Raises:
        UserError: the weights are not available or do not fit, or a package is missing.
    """
    if network == "emoji":
        classifier = load_classifier(None if weights is None else Path(weights)).to(device)
        return functools.partial(emoji_features, classifier)
    if network == "inception":
        return functools.partial(inception_features, load_inception(weights, "extractor_weights").to(device))
    loaded = imagenet.load_network("efficientnet-lite0", weights)
    loaded.module.to(device)
    return functools.partial(efficientnet_features, loaded)


@torch.no_grad()
def emoji_features(classifier: Classifier, images: Float[Tensor, "B 3 H W"]) -> Features:
    """Return the maximum of each channel before the last layer, and the first channels of the feature map halfway
    through the network."""
    x = images.to(next(classifier.parameters()).device) * 2 - 1
    halfway = classifier.features[: len(classifier.features) // 2](x)
    pooled = classifier.features[len(classifier.features) // 2 :](halfway).amax((2, 3))
    return _features(pooled, halfway[:, :CHANNELS], classifier.head(pooled))


@torch.no_grad()
def inception_features(model: Inception, images: Float[Tensor, "B 3 H W"]) -> Features:
    """Return the features that guided-diffusion's evaluator uses."""
    return _features(*model(images.to(model.fc.weight.device)))


@torch.no_grad()
def efficientnet_features(loaded: imagenet.Loaded, images: Float[Tensor, "B 3 H W"]) -> Features:
    """Return the mean of each channel before the last layer, and the first channels of that feature map."""
    seen: list[Tensor] = []
    layer = loaded.module.get_submodule("_avg_pooling")
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        log_probs = loaded.log_probs(images.to(next(loaded.module.parameters()).device))
    finally:
        handle.remove()
    return _features(seen[0].mean((2, 3)), seen[0][:, :CHANNELS], log_probs)


def _features(pooled: Tensor, spatial: Tensor, logits: Tensor) -> Features:
    return Features(*(x.float().cpu() for x in (pooled, spatial.flatten(1), logits.log_softmax(1))))


FIELDS = ("pooled", "spatial", "log_probs")


def features_of(images: Images, extract: Extractor, folder: Path, batch_size: int, title: str = "images") -> Features:
    """Return features of all images, mapped from files so that memory does not grow with the number of images.

    Args:
        images: any number of images.
        extract: the extractor.
        folder: folder of the files; complete files are reused.
        batch_size: number of images per batch.
        title: what the images are, for the progress.
    """
    paths = [folder / f"{name}.npy" for name in FIELDS]
    if not all(path.is_file() for path in paths):
        _extract(images, extract, folder, batch_size, title)
    return Features(*(torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths))


def _extract(images: Images, extract: Extractor, folder: Path, batch_size: int, title: str) -> None:
    """Write the files; they get their final names once they are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, np.memmap] = {}
    first = 0
    for batch, _ in batches(images, batch_size, title):
        features = extract(batch)
        for name in FIELDS:
            rows = getattr(features, name).numpy()
            if name not in files:
                files[name] = np.lib.format.open_memmap(
                    folder / f".{name}.npy", mode="w+", dtype=np.float32, shape=(len(images), rows.shape[1])
                )
            files[name][first : first + len(rows)] = rows
        first += len(batch)
    for name, file in files.items():
        file.flush()
        (folder / f".{name}.npy").replace(folder / f"{name}.npy")
