"""Language models of transformers in our networks: positions, memory, precision, compilation, and what is missing."""

import sys
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from errors import bad_input
from tiny import JANUS, SIMPLEAR, tiny_janus, tiny_prompts, tiny_simplear
from torch._dynamo.testing import CompileCounter

from sfumato.engine.recomputation import recompute_blocks
from sfumato.families import find_family, load
from sfumato.families.language_model import build_model
from sfumato.policy import Policy
from sfumato.settings import Settings

GUIDED = Settings(guidance=2.5, temperature=0.7)
REQUEST, SEEDS = tiny_prompts([4, 7, 3], rows=[0, 1, 1, 2], negative=True), torch.arange(4)
both = pytest.mark.parametrize("build", [tiny_janus, tiny_simplear])


def test_without_transformers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with bad_input("model", "transformers", "pip install 'sfumato[text]'"):
        tiny_janus()


@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_positions_have_numbers_without_weights(kind: Any):
    """Files of weights do not have them."""
    shape = JANUS if kind == "Llama" else SIMPLEAR
    with torch.device("meta"):
        model = build_model(kind, shape)
    assert model.layers[0].self_attn.q_proj.weight.is_meta
    assert model.config._attn_implementation == "sdpa"
    expected = torch.tensor([shape.rope_base ** (-2 * pair / 8) for pair in range(4)])
    torch.testing.assert_close(model.rotary_emb.inv_freq, expected, rtol=1e-6, atol=0)
    assert not any("rotary" in name for name in model.state_dict())


@both
@torch.no_grad()
def test_half_precision(build: Callable[[], Any]):
    """The rotary embedding makes keys float32; attention and caches round them in the same way."""
    policy = Policy(build(), GUIDED)
    with torch.autocast("cpu", torch.bfloat16):
        drawn = policy.sample(REQUEST, SEEDS)
        scored = policy.log_probs(REQUEST, drawn.tokens)
        cache = policy.generator.start(REQUEST, GUIDED).caches[1]  # pyright: ignore[reportAttributeAccessIssue]
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16
    exact = policy.log_probs(REQUEST, drawn.tokens)
    assert 1e-3 < (scored - exact).abs().mean() < 0.05
    assert (drawn.log_probs - scored).abs().mean() < 1e-3


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of the compiler's own look at tensors
def test_equal_blocks_share_their_compiled_code(monkeypatch: pytest.MonkeyPatch):
    """A block does not depend on its number, also in drawing."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checks of shapes cannot be traced
    policy, counter = Policy(tiny_janus(), GUIDED), CompileCounter()
    plain = policy.sample(REQUEST, SEEDS)
    blocks = find_family(policy.generator.card.family).blocks(policy.generator.network)
    recompute_blocks(blocks, 1)
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=counter, fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=64):
        policy.log_probs(REQUEST, plain.tokens).sum().backward()
        assert counter.frame_count == 1 < len(blocks)
        drawn = policy.sample(REQUEST, SEEDS)
        assert counter.frame_count == 1 + len(policy.generator.units)  # each token has another number of keys
        assert torch.equal(drawn.tokens, plain.tokens)


@pytest.mark.parametrize("release", ["janus-pro-1b", "simplear-0.5b-sft"])
def test_without_transformers_nothing_is_fetched(release: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("sfumato.families.library.fetch", lambda *_: pytest.fail("fetched"))
    with bad_input("model", "transformers", "pip install 'sfumato[text]'"):
        load(release)
