"""Losses and advantages against TRL's GRPOTrainer, which computes them with the same numbers.

Double precision; losses and gradients agree to a relative 1e-10.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.objectives import CISPO, DAPO, GDPO, GRPO, GSPO, Credit, DrGRPO
from sfumato.objectives.advantages import Deviation, decoupled_advantages, group_advantages
from sfumato.objectives.entropy_grpo import EntropyGRPO
from sfumato.rollout import Batch, Rollout
from sfumato.testing import class_request

trl = pytest.importorskip("trl", reason="trl is in the extra dev")

IMAGES, LENGTH = 6, 7
ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    num_processes=1,
    process_index=0,
    sync_gradients=True,
    gather=lambda tensor: tensor,
    reduce=lambda tensor, reduction: tensor,
)


def metrics() -> Any:
    return defaultdict(lambda: defaultdict(list))


def numbers() -> dict[str, Tensor]:
    """Return log-probabilities (nats), entropies and advantages in double precision."""
    rng = torch.Generator().manual_seed(0)
    old, drift, away, entropy = (torch.randn(IMAGES, LENGTH, generator=rng, dtype=torch.float64) for _ in range(4))
    return {
        "log_probs": (old - 3 + 0.3 * drift).requires_grad_(),
        "old": old - 3,
        "reference": old - 3 + 0.5 * away,
        "entropy": entropy.square().requires_grad_(),
        "advantages": torch.tensor([1.5, -0.5, -1.0, 0.0, 0.7, -0.7], dtype=torch.float64),
    }


def loss_of_trl(given: dict[str, Tensor], loss_type: str, **options: Any) -> Tensor:
    """Return the loss that TRL's trainer computes from these numbers, instead of from a model."""
    settings = {
        "loss_type": loss_type,
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "importance_sampling_level": "token",
        "entropy_coef": 0.0,
        **options,
    }
    trainer = SimpleNamespace(
        **settings,
        _get_per_token_logps_and_entropies=lambda *_, **__: (given["log_probs"], given["entropy"], None),
        _entropy_bonus_enabled=settings["entropy_coef"] > 0,
        _metrics=metrics(),
        accelerator=ACCELERATOR,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=LENGTH,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_adaptive_entropy=False,
        use_vllm=False,
    )
    ids, mask = torch.zeros(IMAGES, LENGTH, dtype=torch.int64), torch.ones(IMAGES, LENGTH, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": given["advantages"],
        "old_per_token_logps": given["old"],
        "ref_per_token_logps": given["reference"],
        "num_items_in_batch": mask.sum(),
    }
    return trl.GRPOTrainer._compute_loss(trainer, None, inputs)


def loss_of_ours(given: dict[str, Tensor], objective: Any) -> Tensor:
    rollout = Rollout(
        request=class_request([0] * IMAGES),
        tokens=torch.zeros(IMAGES, LENGTH, dtype=torch.int64),
        log_probs=given["old"],
        entropy=given["entropy"].detach(),
        units=(1,) * LENGTH,
    )
    part = Batch(
        rollout=rollout,
        rewards=torch.zeros(IMAGES, dtype=torch.float64),
        scores={},
        weights={},
        group_size=3,
        reference_log_probs=given["reference"] if objective.needs_reference else None,
    )
    credit = Credit(weights=given["advantages"][:, None])
    entropy = (given["entropy"],) if getattr(objective, "needs_entropy", False) else ()
    return objective.loss(given["log_probs"], part, credit, *entropy)[0]


SEQUENCE = {
    "loss_type": "grpo",
    "importance_sampling_level": "sequence",
    "epsilon_low": 0.02,
    "epsilon_high": 0.03,
}


@pytest.mark.parametrize(
    ("objective", "theirs"),
    [
        (GRPO(kl_weight=0.0), {"loss_type": "grpo"}),
        (GRPO(kl_weight=0.3), {"loss_type": "grpo", "beta": 0.3}),
        (GDPO(kl_weight=0.3), {"loss_type": "grpo", "beta": 0.3}),
        # TRL divides by the largest length, which all images have here.
        (DrGRPO(), {"loss_type": "dr_grpo"}),
        (DrGRPO(kl_weight=0.3), {"loss_type": "dr_grpo", "beta": 0.3}),
        # Its mean over the tokens of the batch is that of the means of images, which have the same length.
        (DAPO(clip=0.1, clip_high=0.4), {"loss_type": "dapo", "epsilon_low": 0.1, "epsilon_high": 0.4}),
        (GSPO(clip_below=0.02, clip_above=0.03), SEQUENCE),
        (GSPO(clip_below=0.02, clip_above=0.03, kl_weight=0.3), {**SEQUENCE, "beta": 0.3}),
        # TRL's bound of CISPO is the ratio itself, not its distance from 1.
        (CISPO(largest_ratio=1.2), {"loss_type": "cispo", "epsilon_high": 1.2}),
        (CISPO(largest_ratio=1.2, kl_weight=0.3), {"loss_type": "cispo", "epsilon_high": 1.2, "beta": 0.3}),
        (EntropyGRPO(kl_weight=0.3, entropy_weight=0.2), {"loss_type": "grpo", "beta": 0.3, "entropy_coef": 0.2}),
    ],
)  # fmt: skip
def test_losses_are_those_of_trl(objective: Any, theirs: dict[str, Any]):
    given = numbers()
    inputs = [given["log_probs"], given["entropy"]]
    ours, expected = loss_of_ours(given, objective), loss_of_trl(given, **theirs)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=0)
    wanted = gradients(expected, inputs)
    assert (wanted[0] != 0).any()
    torch.testing.assert_close(gradients(ours, inputs), wanted, rtol=1e-10, atol=1e-15)


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Return the gradients; 0 for an input without effect."""
    return list(torch.autograd.grad(loss, inputs, materialize_grads=True))


def test_the_comparison_sees_what_is_clipped():
    given = numbers()
    ratio = (given["log_probs"] - given["old"]).exp()
    assert 0.1 < ((ratio - 1).abs() > 0.2).float().mean() < 0.9
    means = (given["log_probs"] - given["old"]).mean(1).exp()
    assert 0 < ((means - 1).abs() > 0.03).float().mean() < 1
    assert loss_of_trl(given, "grpo") != loss_of_trl(given, "grpo", epsilon_high=0.4)


def advantages_of_trl(rewards: Tensor, weights: Tensor, scale: str, aggregation: str) -> Tensor:
    """Return the advantages that TRL's trainer computes from these rewards (B, R), instead of from reward functions."""
    count, functions = rewards.shape
    trainer = SimpleNamespace(
        _calculate_rewards=lambda *_: rewards,
        _generate=lambda prompts: ([[0]] * count, [[0]] * count, None, prompts, None, {}, None, None),
        _logs={"prompt": [], "completion": [], "rewards": defaultdict(list), "advantages": [], "extra": {}},
        _metrics=metrics(),
        _pending_extra_logs={},
        _pending_metrics={},
        _tokenizer=SimpleNamespace(pad_token_id=0),
        accelerator=ACCELERATOR,
        args=SimpleNamespace(
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
            per_device_train_batch_size=count,
            steps_per_generation=1,
        ),
        beta=0.0,
        environment_factories=None,
        environments=None,
        mask_truncated_completions=False,
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        multi_objective_aggregation=aggregation,
        num_generations=3,
        num_iterations=1,
        pad_to_multiple_of=None,
        reward_func_names=[str(number) for number in range(functions)],
        reward_funcs=[None] * functions,
        reward_weights=weights,
        scale_rewards=scale,
        tools=None,
        use_vllm=False,
    )
    scored = trl.GRPOTrainer._generate_and_score_completions(trainer, [{"prompt": ""}] * count)
    return scored["advantages"]


REWARDS = torch.tensor(
    [[1.0, 2.0, 6.0, 0.0, 0.5, 0.4, 7.0, 1.0, 3.0], [3.0, -1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0]],
    dtype=torch.float64,
)
"""Three groups of three. TRL rounds n / (n - 1) to single precision, which is exact for 3 and for 9 images."""


@pytest.mark.parametrize("deviation", ["group", "batch", "none"])
def test_advantages_are_those_of_trl(deviation: Deviation):
    """TRL divides by std + 1e-4, so its advantages are smaller by the factor std / (std + 1e-4)."""
    rewards = REWARDS[0]
    std = {
        "group": rewards.view(3, 3).std(1).repeat_interleave(3),
        "batch": rewards.std(),
        "none": torch.tensor(torch.inf),
    }[deviation]
    ours, _ = group_advantages(rewards, 3, deviation=deviation)
    theirs = advantages_of_trl(rewards[:, None], torch.ones(1), deviation, "sum_then_normalize")
    torch.testing.assert_close(theirs, ours / (1 + 1e-4 / std), rtol=1e-12, atol=1e-15)


def test_decoupled_advantages_are_those_of_trl():
    """TRL adds 1e-4 to the deviation of each reward too: that of these large rewards hides it. Its last factor is then
    std / (std + 1e-4), for the deviation of the sum."""
    rewards, weights = REWARDS * 1e8, torch.tensor([1.0, 0.25], dtype=torch.float64)
    ours, _ = decoupled_advantages(rewards, weights, 3)
    total = sum(weight * group_advantages(row, 3)[0] for weight, row in zip(weights, rewards, strict=True))
    assert isinstance(total, Tensor)
    theirs = advantages_of_trl(rewards.T, weights, "group", "normalize_then_sum")
    torch.testing.assert_close(theirs, ours / (1 + 1e-4 / total.std()), rtol=1e-10, atol=1e-12)
