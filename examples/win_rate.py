"""A reward that compares images: the share of the other images of its group that an image beats.

sfumato train emoji-dark --reward examples/win_rate.py:win_rate 1.0 --run-dir runs/wins
"""

import torch
from torch import Tensor

from sfumato.request import Words


def better(one: Tensor, other: Tensor) -> bool:
    """Whether one image (3, H, W) is better than another; a vision-language model could say this."""
    return bool(one.std() > other.std())


def win_rate(images: Tensor, words: Words, groups: Tensor) -> Tensor:
    """Score images (B, 3, H, W) in [0, 1]; returns (B,). `groups` has equal numbers for images of one group."""
    scores = torch.full((len(images),), torch.nan, device=images.device)  # no score for an image that is alone
    for group in groups.unique():
        members = (groups == group).nonzero()[:, 0].tolist()
        for one in members:
            wins = [better(images[one], images[other]) for other in members if other != one]
            scores[one] = sum(wins) / len(wins) if wins else torch.nan
    return scores
