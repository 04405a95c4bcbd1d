"""Activation checkpointing: the same gradients from fewer activations."""

from pathlib import Path

import pytest
import torch
from errors import bad_input
from tiny import tiny_captions, tiny_config, tiny_infinity, tiny_llamagen, tiny_request, tiny_var, trainer_of

from sfumato.engine.recomputation import recompute_blocks
from sfumato.families import find_family
from sfumato.families.library import save_model
from sfumato.policy import Generator, Policy
from sfumato.request import Request
from sfumato.settings import Settings

GUIDED = Settings(guidance=1.5)


def gradients_and_bytes(generator: Generator, request: Request) -> tuple[list[torch.Tensor], int]:
    """Return the gradients of a guided policy's log-probabilities, and the bytes of activations kept for them."""
    policy, kept = Policy(generator, GUIDED), 0
    parameters = {p.data_ptr() for p in generator.network.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        if tensor.data_ptr() not in parameters:
            kept += tensor.numel() * tensor.element_size()
        return tensor

    tokens = torch.arange(len(request) * sum(generator.units)).view(len(request), -1) % 2
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = policy.log_probs(request, tokens).sum()
    gradients = torch.autograd.grad(total, list(generator.network.parameters()))
    return list(gradients), kept


@pytest.mark.parametrize("kind", ["var", "classes", "captions", "infinity"])
@pytest.mark.parametrize("every", [1, 2])
def test_gradients_are_the_same(kind: str, every: int):
    made = {"var": tiny_var, "infinity": tiny_infinity}
    generator = made[kind]() if kind in made else tiny_llamagen(text=kind == "captions")
    request = tiny_captions([2, 4]) if kind in ("captions", "infinity") else tiny_request([0, 3])
    expected, kept = gradients_and_bytes(generator, request)
    recompute_blocks(find_family(generator.card.family).blocks(generator.network), every)
    actual, fewer = gradients_and_bytes(generator, request)
    assert sum(g.abs().sum() for g in expected) > 1
    for gradient, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-6)
    assert fewer < kept * (0.75 if every == 1 else 0.95)


def test_drawing_is_the_same():
    generator, seeds = tiny_llamagen(), torch.tensor([1, 2])
    before = Policy(generator, GUIDED).sample(tiny_request([0, 3]), seeds)
    recompute_blocks(find_family("llamagen").blocks(generator.network), 1)
    after = Policy(generator, GUIDED).sample(tiny_request([0, 3]), seeds)
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.log_probs, after.log_probs)


def test_a_run_learns_the_same(tmp_path: Path):
    save_model(tmp_path / "model", tiny_llamagen())
    plain, saving = (trainer_of(tiny_config(tmp_path / "model", activation_checkpointing=every)) for every in (0, 1))
    for step in range(2):
        metrics, other = plain.step(step), saving.step(step)
        for name in ("kl", "ratio_mean", "grad_norm", "reward_mean"):
            assert other[name] == pytest.approx(metrics[name], abs=1e-6), name
    assert saving.engine.weights().keys() == plain.engine.weights().keys()


def test_a_family_without_blocks():
    bigram = f"{Path(__file__).parents[2]}/examples/bigram.py:build"
    with bad_input("activation_checkpointing", "bigram.py"):
        trainer_of(tiny_config(bigram, activation_checkpointing=1))
    with bad_input("activation_checkpointing", "-1"):
        tiny_config("model", activation_checkpointing=-1).validate()
