"""How alike the tokens of a group of images are."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def agreement(tokens: Int[Tensor, "B L"], partners: Float[Tensor, "N G G"]) -> Float[Tensor, "B L"]:
    """Return for each token the share of an image's partners that have the same token at the same position.

    Args:
        tokens: N groups of G adjacent images, so B = N·G.
        partners: 1 if the second image of a pair is a partner of the first, else 0; an image without any gets 0.
    """
    groups = tokens.unflatten(0, partners.shape[:2])
    # One image after another: all pairs at once would take G times the memory of the tokens.
    counts = [
        torch.einsum("ng,ngl->nl", partners[:, image], (groups == groups[:, image : image + 1]).to(partners))
        for image in range(groups.shape[1])
    ]
    return (torch.stack(counts, dim=1) / partners.sum(2, keepdim=True).clamp_min(1)).flatten(0, 1)
