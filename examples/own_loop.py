"""A training loop of your own, from the package's functions: GRPO on one class of a bundled generator.

python examples/own_loop.py
"""

import copy
from pathlib import Path

import torch

import sfumato
from sfumato.data.pictures import grid, save_picture
from sfumato.objectives.advantages import group_advantages
from sfumato.objectives.divergences import k3_divergence
from sfumato.objectives.ratios import clipped_surrogate
from sfumato.rewards import build_reward


def align(out: Path, asked: str = "red apple", steps: int = 12, group_size: int = 16, seed: int = 0) -> list[float]:
    """Make the pictures of one class darker; write some to `out`, and return the mean reward of every step."""
    policy = sfumato.load("emoji-var", temperature=0.7)
    network = policy.generator.network
    reference = sfumato.Policy(policy.generator.with_network(copy.deepcopy(network)), policy.settings)
    reward = build_reward({"darkness": 1.0})
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=0.0)
    request, rewards = policy.request(asked).repeat(group_size), []
    for step in range(steps):
        rollout = policy.sample(request, seeds=torch.arange(group_size) + seed + step * group_size)
        images = policy.decode(rollout.tokens)  # (B, 3, H, W) in [0, 1]
        scores, _ = reward(images, request.words)
        advantages, _ = group_advantages(scores, group_size)
        with torch.no_grad():
            reference_log_probs = reference.log_probs(request, rollout.tokens)
        log_probs = policy.log_probs(request, rollout.tokens)  # (B, L), with gradients
        surrogate = clipped_surrogate(log_probs, rollout.log_probs, advantages[:, None], 0.2)
        loss = (0.1 * k3_divergence(log_probs, reference_log_probs) - surrogate).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rewards.append(scores.mean().item())
        print(f"step {step + 1}: reward {rewards[-1]:.3f}")  # noqa: T201
    save_picture(grid(policy.draw(asked, n=8), columns=8, zoom=2), out)
    return rewards


if __name__ == "__main__":
    align(Path("darker.png"))
