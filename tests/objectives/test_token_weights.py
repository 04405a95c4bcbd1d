"""Objectives that weigh the tokens of an image: by hand."""

import math
from typing import Any

import pytest
import torch
from errors import bad_input
from torch import Tensor

from sfumato.objectives import GRPO
from sfumato.objectives.eg_grpo import EntropyGuidedGRPO
from sfumato.objectives.gcpo import GCPO, causal_means, confidence, critical_tokens, entropy_changes, map_changes
from sfumato.objectives.similarity import agreement
from sfumato.objectives.stage import STAGE, advantage_weights, rivals
from sfumato.rollout import Batch, Rollout
from sfumato.testing import class_request


def made(tokens: Tensor, entropy: Tensor, rewards: list[float], group_size: int, units: tuple[int, ...] = ()) -> Batch:
    """Return a batch in double precision, whose reference differs by a known log-ratio."""
    log_probs = torch.full(tokens.shape, -2.0, dtype=torch.float64)
    ratio = torch.tensor([0.2, -0.1, 0.9, 0.0], dtype=torch.float64).repeat(tokens.shape[1])[: tokens.shape[1]]
    total = torch.tensor(rewards, dtype=torch.float64)
    return Batch(
        rollout=Rollout(
            request=class_request([0] * len(tokens)), tokens=tokens, log_probs=log_probs, entropy=entropy, units=units
        ),
        rewards=total,
        scores={"sharp": total},
        weights={"sharp": 1.0},
        group_size=group_size,
        reference_log_probs=log_probs - ratio,
    )


def close(actual: Tensor, expected: Any) -> None:
    expected = expected.to(actual) if isinstance(expected, Tensor) else torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# Two groups of three images with four tokens.
TOKENS = torch.tensor([[1, 2, 3, 4], [1, 5, 3, 4], [1, 5, 6, 4], [7, 7, 7, 7], [7, 7, 7, 7], [7, 7, 7, 7]])


def test_agreement_is_the_share_of_partners_with_the_same_token():
    partners = torch.tensor([[[0, 1, 1], [1, 0, 1], [1, 1, 0]], [[0, 0, 1], [0, 0, 0], [1, 0, 0]]]).double()
    expected = [[1, 0, 0.5, 1], [1, 0.5, 0.5, 1], [1, 0.5, 0, 1], [1] * 4, [0] * 4, [1] * 4]
    close(agreement(TOKENS, partners), expected)


def test_rivals_have_the_opposite_advantage():
    found = rivals(torch.tensor([[1.0, -0.5, 0.0, 2.0]]).double())
    close(found, [[[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]]])


def test_stage_weighs_by_what_rivals_share():
    batch = made(TOKENS, torch.zeros(6, 4), [3.0, 1.0, 2.0, 0.0, 0.0, 1.0], 3)
    credit = STAGE().credit(batch)
    advantages = GRPO().credit(batch).weights
    close(advantages[:, 0], [1, -1, 0, *[-1 / math.sqrt(3)] * 2, 2 / math.sqrt(3)])
    # Rivals of the first image: the second and the third, whose advantage is 0.
    similarity = torch.tensor([[1, 0, 0.5, 1], [1, 0.5, 0.5, 1], [1, 0.5, 0, 1]])
    # Their mean of 1 - similarity is (1.5 + 1 + 1.5) / 12. All tokens of the second group are alike.
    close(credit.weights[:3], advantages[:3] * (1 - similarity) * 3)
    close(credit.weights[3:], torch.zeros(3, 4))
    assert credit.kl_weights is not None
    close(credit.kl_weights[:3], (1 + similarity) / 2)
    close(credit.kl_weights[3:], torch.ones(3, 4))


def test_stage_of_images_without_a_token_in_common_is_grpo():
    tokens = torch.arange(24).view(6, 4)
    batch = made(tokens, torch.zeros(6, 4), [3.0, 1.0, 2.0, 0.0, 0.0, 1.0], 3)
    close(STAGE().credit(batch).weights, GRPO().credit(batch).weights.expand(-1, 4))
    close(advantage_weights(torch.zeros(6, 4).double(), 3), torch.ones(6, 4))


def test_weights_of_the_kl_reach_the_loss():
    batch = made(TOKENS, torch.zeros(6, 4), [3.0, 1.0, 2.0, 0.0, 0.0, 1.0], 3)
    credit = STAGE().credit(batch)[torch.tensor([2, 0])]
    part = batch[torch.tensor([2, 0])]
    log_probs = part.rollout.log_probs.clone().requires_grad_()
    loss, stats = STAGE(kl_weight=0.3).loss(log_probs, part, credit)
    difference = torch.tensor([-0.2, 0.1, -0.9, 0.0], dtype=torch.float64)
    kl = (difference.exp() - difference - 1).expand(2, -1)
    assert credit.kl_weights is not None
    close(loss, (0.3 * credit.kl_weights * kl - credit.weights).mean())
    close(stats["kl"], kl.mean())  # logged without the weights
    plain, _ = GRPO(kl_weight=0.3).loss(log_probs, part, credit)
    close(plain, loss)  # any objective with such a credit
    assert STAGE.__mro__[1] is GRPO


def test_entropy_guides_advantages():
    entropy = torch.tensor([[5.0, 1.0, 20.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]]).double()
    batch = made(torch.zeros(2, 5, dtype=torch.int64), entropy, [3.0, 1.0], 2)
    credit = EntropyGuidedGRPO(skipped=0.2, raised=0.4, bonus=0.04, largest_bonus=0.3).credit(batch)
    a = 1 / math.sqrt(2)
    # The lowest fifth has no advantage. The bonus of the highest two fifths is at most 0.3 of the advantage, 0.21.
    close(credit.weights, [[a + 0.2, 0.0, a + 0.3 * a, a, a], [0.0, -a, -a, -a, -a]])
    unscored = made(torch.zeros(2, 5, dtype=torch.int64), entropy, [3.0, math.nan], 2)
    close(EntropyGuidedGRPO().credit(unscored).weights, torch.zeros(2, 5))


def test_means_of_the_neighbors_above_and_on_the_left():
    values = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]).double()
    close(causal_means(values), [[[1, 1.5, 2.5], [(4 + 1 + 2) / 3, 3, 4], [(7 + 4 + 5) / 3, 6, 7]]])


def test_changes_of_entropy_over_a_map():
    values = torch.tensor([[0.0, 0.0, 0.0, 6.0]]).double()  # a map of 2 by 2
    # The means are 0, 0, 0 and 1.5: (6 + 0 + 0 + 0) / 4.
    close(map_changes(values), [[0.0, 1.5, 1.5, math.sqrt(2) * 1.5]])
    line = torch.tensor([[0.0, 2.0, 4.0, 10.0, 0.0]]).double()  # means 0, 1, 3, 7 and 5
    close(map_changes(line), [[1.0, 1.5, 3.0, 1.0, 2.0]])
    close(map_changes(torch.tensor([[3.0]]).double()), [[0.0]])


def test_maps_follow_the_units():
    entropy = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)).double()
    close(entropy_changes(entropy, (1,) * 9), map_changes(entropy))
    close(entropy_changes(entropy, ()), map_changes(entropy))
    parts = [torch.zeros(2, 1).double(), map_changes(entropy[:, 1:5]), map_changes(entropy[:, 5:])]
    close(entropy_changes(entropy, (1, 4, 4)), torch.cat(parts, dim=1))


def test_critical_tokens_are_the_first_the_changing_and_the_different():
    """25 tokens in a map of 5 by 5, two per criterion."""
    entropy = torch.zeros(2, 25).double()
    entropy[0, 12] = 9.0
    tokens = torch.zeros(2, 25, dtype=torch.int64)
    tokens[1, [0, 16, 20]] = 1  # the first is critical anyway
    chosen = critical_tokens(tokens, entropy, (1,) * 25, 2, 0.1)
    # Token 12 raises the means of 12, 13, 16, 17 and 18 to 1.8. A step of this size at the edge of the map is largest:
    # at 14, 15, 19 and 21 to 23. Of these the first two are taken.
    changes = map_changes(entropy)[0]
    close(changes[[7, 12, 14, 15, 19, 21]], [0.9, 0.9 * math.sqrt(2), 1.8, 1.8, 1.8, 1.8])
    assert chosen[0].nonzero()[:, 0].tolist() == [0, 1, 14, 15, 16, 20]
    # The second image has no change of entropy: of equal values the first are taken.
    assert chosen[1].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 16, 20]


def test_critical_tokens_of_short_images():
    chosen = critical_tokens(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3).double(), (1, 1, 1), 2, 0.1)
    assert chosen.sum(1).tolist() == [3, 3]  # at least one for each criterion
    one = critical_tokens(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1).double(), (1,), 2, 0.1)
    assert one.tolist() == [[True], [True]]


def test_confidence_is_the_mean_ratio_so_far():
    log_probs = torch.tensor([[-1.0, -1.0, -1.0]], dtype=torch.float64)
    reference = torch.tensor([[-1.2, -0.9, -9.0]], dtype=torch.float64)
    ratios = [math.exp(0.2), math.exp(-0.1), math.exp(0.5)]  # the last is clipped
    close(confidence(log_probs, reference), [[ratios[0], sum(ratios[:2]) / 2, sum(ratios) / 3]])


def test_gcpo_learns_from_critical_tokens():
    tokens = torch.randint(0, 3, (4, 16), generator=torch.Generator().manual_seed(1))
    entropy = torch.rand(4, 16, generator=torch.Generator().manual_seed(2)).double()
    batch = made(tokens, entropy, [3.0, 1.0, 0.0, 4.0], 2, units=(1,) * 16)
    credit = GCPO(share=0.125).credit(batch)
    chosen = critical_tokens(tokens, entropy, (1,) * 16, 2, 0.125)
    assert chosen.sum(1).tolist() == [6] * 4
    chosen = chosen.double()
    advantages = GRPO().credit(batch).weights
    assert batch.reference_log_probs is not None
    dynamic = confidence(batch.rollout.log_probs, batch.reference_log_probs)
    # A mean over all tokens with these weights is one over the 6 of 16 tokens.
    close(credit.weights, advantages * chosen * dynamic * 16 / 6)
    assert credit.kl_weights is not None
    close(credit.kl_weights, chosen * 16 / 6)
    still = GCPO(share=0.125, dynamic=False, kl_weight=0.0)
    close(still.credit(batch).weights, advantages * chosen * 16 / 6)
    assert not still.needs_reference
    assert GCPO(kl_weight=0.0).needs_reference


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: GCPO(share=0.5), "objective.share"),
        (lambda: GCPO(share=0.0), "objective.share"),
        (lambda: EntropyGuidedGRPO(skipped=0.6, raised=0.5), "objective.skipped"),
        (lambda: EntropyGuidedGRPO(bonus=-1.0), "objective.bonus"),
    ],
)
def test_options_out_of_range(make: Any, field: str):
    with bad_input(field):
        make()
