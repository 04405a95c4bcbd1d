"""Batches of images from a data set, for objectives that learn from these instead of drawn ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.data.images import ImageSource
from sfumato.emoji.source import open_source
from sfumato.engine.engine import Engine
from sfumato.engine.process import Process
from sfumato.engine.timing import PhaseTimer
from sfumato.errors import UserError
from sfumato.naming import class_words
from sfumato.policy import Generator
from sfumato.request import Request, Words
from sfumato.rewards import WeightedSum
from sfumato.rewards.base import statistics
from sfumato.rollout import Batch, Rollout, concatenate
from sfumato.rollouts.inline import score_tokens


@dataclass(frozen=True)
class DataSet:
    """Images, and the words that describe them to a generator."""

    source: ImageSource
    words: Words
    """the class or a caption of each of the N images"""
    weights: Float[Tensor, " N"]
    """relative frequency of each image"""

    def pick(self, count: int, rng: torch.Generator) -> Int[Tensor, " B"]:
        """Choose the numbers of `count` images, without repeats if there are enough."""
        enough = count <= int((self.weights > 0).sum())
        return torch.multinomial(self.weights, count, replacement=not enough, generator=rng)


def open_data_set(
    folder: str, generator: Generator, classes: Sequence[int] = (), template: str = "a photo of a {name}"
) -> DataSet:
    """Open a folder of images, or the emoji package, as images that a generator could draw.

    Args:
        folder: folder with one subfolder of images per class, or of images with captions; see `FolderImages`.
        generator: what encodes and describes the images. Its images are square.
        classes: numbers of the classes whose images are used; all by default.
        template: caption of a class, for rewards that read text.

    Raises:
        UserError: there is no such folder, no image in it, or a class that the generator does not have.
    """
    device = next(generator.tokenizer.parameters(), next(generator.network.parameters())).device
    with torch.no_grad():
        blank = generator.decode(torch.zeros(1, sum(generator.units), dtype=torch.int64, device=device))
    source = open_source(folder, blank.shape[-1])
    numbers, names = torch.arange(len(source)), generator.card.class_names
    if not names:
        captions = source.captions(numbers, torch.Generator().manual_seed(0))
        return DataSet(source, Words(names=tuple(captions)), source.weights * ~source.validation)
    unknown = [name for name in source.class_names if name not in names]
    if unknown:
        raise UserError(
            f"data: {folder} has images of {unknown[0]!r}, which is not a class of the model; name its subfolders like "
            "classes (`sfumato classes MODEL` lists them)"
        )
    numbers = torch.tensor([names.index(name) for name in source.class_names])
    labels = numbers[torch.cat([source[part][1] for part in torch.arange(len(source)).split(256)])]
    wanted = torch.isin(labels, torch.tensor(classes)) if classes else torch.ones_like(labels, dtype=torch.bool)
    if not wanted.any():
        raise UserError(f"classes: {folder} has no images of these classes; choose others, or give other --data")
    return DataSet(source, class_words(labels.tolist(), names, template), source.weights * wanted)


@dataclass(kw_only=True)
class DataRollouts:
    """Batches of `groups` times `group_size` images of a data set. Every process does its share."""

    engine: Engine
    process: Process
    data: DataSet
    reward: WeightedSum
    """rewards of the run, which do not score these images"""
    groups: int
    group_size: int
    size: int
    """number of images that are encoded, drawn, decoded or scored at once; that of updates"""
    needs_reference: bool

    def next(self, rng: torch.Generator, timer: PhaseTimer) -> Batch:
        """Return the images of the next step as a batch."""
        raise NotImplementedError

    def _share(self) -> Int[Tensor, " S"]:
        """Return the positions in the batch that this process fills."""
        share = self.process.share(self.groups * self.group_size)
        return torch.arange(share.start, share.stop)

    def _request(self, words: Words) -> Request:
        return self.engine.policy.request(words).to(self.process.device)

    @torch.no_grad()
    def _read(
        self, numbers: Int[Tensor, " S"], timer: PhaseTimer
    ) -> tuple[Float[Tensor, "S 3 H W"], Int[Tensor, "S L"]]:
        """Return images of the data set, and their tokens; an image that comes several times is encoded once."""
        distinct, places = numbers.unique(return_inverse=True)
        with timer("encode"):
            images = self.data.source[distinct][0].to(self.process.device)
            tokens = torch.cat([self.engine.policy.generator.encode(part) for part in images.split(self.size)])
        places = places.to(images.device)
        return images[places], tokens[places]

    def _scored(
        self, request: Request, mine: Rollout, timer: PhaseTimer
    ) -> tuple[Rollout, Float[Tensor, "B L"] | None]:
        """Join the rollouts of all processes, with the log-probabilities of the policy before the update; return also
        those of the reference, if the objective needs them."""
        engine, reference = self.engine, None
        with self.process.together(), timer("reference"):
            log_probs = score_tokens(engine, engine.scorer, mine, self.size)
            if self.needs_reference:
                with engine.reference() as policy:
                    reference = score_tokens(engine, policy, mine, self.size)
        rollout = self.process.gather_rollout(replace(mine, log_probs=log_probs), request)
        return rollout, None if reference is None else self.process.gather(reference)


class ConditionRollouts(DataRollouts):
    """Each image twice: under its own condition, with reward 1, and then under that of another image of the batch, with
    reward 0 (or 1, if the two conditions are the same by chance)."""

    def next(self, rng: torch.Generator, timer: PhaseTimer) -> Batch:
        """Return the images of the next step as a batch, whose groups are the two of each image.

        The logged reward is the difference of the two log-probabilities (nats per token; mean and standard deviation
        over the images), which training raises.
        """
        positions, count = torch.arange(self.groups * self.group_size), self.groups * self.group_size // 2
        numbers, own = self.data.pick(count, rng), positions // 2
        shown = (own + positions % 2) % count  # the condition of the next image, so that each comes as often as any
        words, theirs = self.data.words[numbers[shown]], self.data.words[numbers[own]]
        same = [ours == name for ours, name in zip(words.names, theirs.names, strict=True)]
        matches = (words.labels == theirs.labels) & torch.tensor(same)
        with self.process.together():
            request, mine = self._request(words), self._share()
            tokens = self._read(numbers[own[mine]], timer)[1]
        nothing = torch.zeros(tokens.shape, device=tokens.device)
        units = tuple(self.engine.policy.generator.units)
        drawn = Rollout(request=request[mine], tokens=tokens, log_probs=nothing, entropy=nothing, units=units)
        rollout, reference = self._scored(request, drawn, timer)
        rewards = matches.to(tokens.device, torch.float32)
        difference = (rollout.log_probs[::2] - rollout.log_probs[1::2]).mean(1)
        return Batch(
            rollout=rollout,
            rewards=rewards,
            scores={"own condition": rewards},
            weights={"own condition": 1.0},
            group_size=2,
            reference_log_probs=reference,
            metrics=statistics(difference, {}),
        )


class ReconstructionRollouts(DataRollouts):
    """Each image once with its true tokens, without a reward, and `group_size` - 1 times with tokens that the policy
    draws given the true tokens before them; the reward is the negative squared error of the pixels in [-1, 1]."""

    def next(self, rng: torch.Generator, timer: PhaseTimer) -> Batch:
        """Return the images of the next step as a batch, whose groups begin with the true tokens.

        `reward_limit` is the reward of the true tokens: the error of the tokenizer.
        """
        numbers = self.data.pick(self.groups, rng)
        words = self.data.words[numbers].repeat(self.group_size)
        seeds = torch.randint(2**62, (len(words),), generator=rng)
        with self.process.together():
            request, mine = self._request(words), self._share()
            images, context = self._read(numbers[mine // self.group_size], timer)
            true = mine % self.group_size == 0
            parts, rewards = [], []
            for index in torch.arange(len(mine)).split(self.size):
                drawn, reward = self._drawn(
                    request[mine[index]], context[index], true[index], seeds[mine[index]], images[index], timer
                )
                parts.append(drawn)
                rewards.append(reward)
        rollout, _ = self._scored(request, concatenate(parts, request[mine]), timer)
        rewards = self.process.gather(torch.cat(rewards))
        limits, others = rewards.unflatten(0, (-1, self.group_size)).split([1, self.group_size - 1], dim=1)
        rewards = torch.cat([torch.full_like(limits, torch.nan), others], dim=1).flatten()
        known = others.flatten()
        return Batch(
            rollout=rollout,
            rewards=rewards,
            scores={"reconstruction": rewards},
            weights={"reconstruction": 1.0},
            group_size=self.group_size,
            metrics={
                **statistics(known, {"reconstruction": known}),
                "reward_limit": limits.mean().item(),
                "entropy": rollout.entropy.mean().item(),
            },
        )

    def _drawn(
        self,
        request: Request,
        context: Int[Tensor, "B L"],
        true: Bool[Tensor, " B"],
        seeds: Int[Tensor, " B"],
        images: Float[Tensor, "B 3 H W"],
        timer: PhaseTimer,
    ) -> tuple[Rollout, Float[Tensor, " B"]]:
        """Draw tokens given those of images, except for the true ones; return them, and the rewards of all."""
        policy = self.engine.policy
        with timer("sample"), self.engine.autocast():
            drawn = policy.sample_given(request, context, seeds)
        tokens = torch.where(true.to(context.device)[:, None], context, drawn.tokens)
        with timer("decode"), self.engine.autocast():
            error = 2 * (policy.decode(tokens).float() - images)  # pixels are in [0, 1] here
        return replace(drawn, tokens=tokens), -error.square().mean((1, 2, 3))


ROLLOUTS: Mapping[str, type[DataRollouts]] = {
    "conditions": ConditionRollouts,
    "reconstructions": ReconstructionRollouts,
}
"""What objectives learn from, by the name in their attribute `learns_from`."""
