"""Draw and score images that all processes need: each process does its share, and all receive the whole."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.engine.engine import Engine
from sfumato.engine.process import Process
from sfumato.request import Words
from sfumato.rewards import WeightedSum
from sfumato.rollout import Rollout, concatenate


@dataclass(frozen=True)
class Drawn:
    """Images and the tokens they were decoded from."""

    rollout: Rollout
    images: Float[Tensor, "B 3 H W"]
    """in [0, 1]"""

    @property
    def words(self) -> Words:
        """Description of the images."""
        return self.rollout.request.words


def draw_together(engine: Engine, process: Process, words: Words, seeds: Int[Tensor, " B"], batch_size: int) -> Drawn:
    """Draw images as training does, and return all of them on every process.

    Args:
        engine: the engine whose policy draws.
        process: this process among its peers.
        words: description of each image.
        seeds: one seed per image.
        batch_size: number of images drawn and decoded at once.
    """
    policy, mine = engine.policy, process.padded_share(len(words))
    request = policy.request(words)
    parts, images = [], []
    with engine.autocast(), engine.drawing():
        for index in mine.split(batch_size):
            parts.append(engine.sample(request[index].to(process.device), seeds[index]))
            images.append(policy.decode(parts[-1].tokens).float())
    rollout = process.gather_rollout(concatenate(parts, request[mine]), request)
    return Drawn(rollout, process.gather(torch.cat(images))[: len(words)])


def score_together(
    reward: WeightedSum, process: Process, drawn: Drawn
) -> tuple[Float[Tensor, " B"], dict[str, Tensor]]:
    """Score images that all processes have, each process its share; return the weighted sum and the parts' scores.
    Rewards that compare images compare those of the same class and caption.

    Raises:
        UserError: a reward failed on any process. All processes raise it.
    """
    count = len(drawn.images)
    mine = process.padded_share(count)
    with process.together():
        seen = reward.see(drawn.images[mine.to(drawn.images.device)], drawn.words[mine])
    whole = {name: process.gather(part)[:count] for name, part in seen.items()}
    return finish_together(reward, process, whole, drawn.words)


def finish_together(
    reward: WeightedSum,
    process: Process,
    seen: Mapping[str, Tensor],
    words: Words,
    groups: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, " B"], dict[str, Tensor]]:
    """Return the weighted sum and the parts' scores from what the rewards saw of all images, which all processes have.

    The main process compares images for all, so that all have the same scores, whatever a reward draws or remembers.

    Raises:
        UserError: a reward failed. All processes raise it.
    """
    if not reward.compares:
        return reward.finish(seen, words, groups)
    scores = dict(seen)
    with process.together():
        if process.is_main:
            scores = reward.finish(seen, words, groups)[1]
    for name in reward.compares:
        mine = scores[name] if process.is_main else torch.zeros(len(words), device=seen[name].device)
        scores[name] = process.gather(mine)[: len(words)]
    return reward.total(scores), scores
