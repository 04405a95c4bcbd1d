"""DPO (Rafailov et al. 2023, arXiv 2305.18290) on pairs of drawn images."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.objectives.best_of_n import extremes
from sfumato.objectives.divergences import k3_divergence
from sfumato.objectives.objective import Credit
from sfumato.request import Index
from sfumato.rollout import Batch


@dataclass(frozen=True, kw_only=True)
class PairCredit(Credit):
    """The weights of images that are compared in pairs: positive for the better, negative for the worse."""

    partner: Float[Tensor, " B"]
    """log-probability of the other image of the pair under the policy that drew it, minus that under the reference
    (nats, sum over its tokens)"""

    def __getitem__(self, index: Index) -> "PairCredit":
        return PairCredit(weights=self.weights[index], partner=self.partner[index])


@dataclass(frozen=True, kw_only=True)
class DPO:
    """DPO: the best and the worst image of each group are a pair; the better one becomes more likely, relative to the
    reference, than the other. The two may be in different minibatches, so each meets the log-probability that the other
    had when it was drawn. With one update per step (--minibatch-size of all images) that is exact."""

    beta: float = 0.1
    """weight of the log-ratio to the reference; the larger, the sooner a pair counts as learned, and the closer the
    policy stays to the reference"""

    needs_reference = True

    def __post_init__(self):
        check_beta(self.beta)

    def credit(self, batch: Batch) -> PairCredit:
        """Return plus or minus the group's size for the best and the worst image of each group, and what each is
        compared with.

        Groups with equal rewards have no pair. Each pair counts as a whole group, so the learning rate does not depend
        on the group's size.
        """
        assert batch.reference_log_probs is not None
        best, worst, equal = extremes(batch.rewards, batch.group_size)
        best, worst = best[~equal], worst[~equal]
        ratios = log_ratios(batch.rollout.log_probs, batch)
        weights, partner = torch.zeros_like(ratios), torch.zeros_like(ratios)
        weights[best], weights[worst] = batch.group_size, -batch.group_size
        partner[best], partner[worst] = ratios[worst], ratios[best]
        kl = k3_divergence(batch.rollout.log_probs, batch.reference_log_probs).mean()
        metrics = {"equal_groups": equal.float().mean().item(), "kl": kl.item()}
        return PairCredit(weights=weights[:, None], partner=partner, taught=weights != 0, metrics=metrics)

    def loss(
        self, log_probs: Float[Tensor, "B L"], part: Batch, credit: Credit
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the mean over all images of -|weight|·log sigmoid(beta·(log-ratio - partner's)) (eq. 7), with the
        difference taken the other way around for the worse image.

        The gradient of the two images of a pair, each with a constant partner, add up to that of the pair's loss; their
        values add up to twice that loss. Log-ratios are sums over the tokens, as in the paper. All images have the same
        number of tokens, so means would be sums with another beta.
        """
        assert isinstance(credit, PairCredit)
        weights = credit.weights[:, 0]
        margin = weights.sign() * (log_ratios(log_probs, part) - credit.partner)
        loss = -weights.abs() * F.logsigmoid(self.beta * margin)
        stats = {"margin": margin.detach().mean(), "pairs_in_order": (margin.detach() > 0).float().mean()}
        return loss.mean(), stats


def check_beta(beta: float) -> None:
    """Raise a UserError if the weight of the log-ratio to the reference is out of range."""
    if not 0 < beta < math.inf:
        raise UserError(f"objective.beta: {beta} is not positive; 0.02 to 0.1 are usual")


def log_ratios(log_probs: Float[Tensor, "B L"], part: Batch) -> Float[Tensor, " B"]:
    """Return the log-probability of each image minus that under the reference (nats, sum over its tokens)."""
    assert part.reference_log_probs is not None
    return (log_probs - part.reference_log_probs).sum(1)
