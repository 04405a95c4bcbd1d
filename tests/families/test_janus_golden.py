"""Parity with the published Janus-Pro code on tiny models: `mha`, and `gqa` with shared key heads."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_data import JANUS_META, JANUS_VARIANTS, golden_janus, janus_data, janus_request
from torch import Tensor

from sfumato.families.janus.generator import Janus
from sfumato.families.janus.published import write_janus
from sfumato.policy import Policy
from sfumato.request import Request, TokenInputs
from sfumato.settings import PLAIN, Settings

ATOL, GUIDED_ATOL = 2e-4, 5e-4
GUIDED = Settings(guidance=5.0)


def close(actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def unconditional(request: Request) -> Request:
    null = torch.ones(len(request), dtype=torch.bool)
    return Request(words=request.words, inputs=request.inputs.drop(null))


def draw(generator: Janus, request: Request, settings: Settings, choose) -> tuple[Tensor, Tensor]:
    """Return tokens chosen one by one, and the logits that they were chosen from."""
    state, unit, tokens, logits = generator.start(request, settings), None, [], []
    for _ in generator.units:
        logits.append(generator.step(state, unit))
        unit = choose(logits[-1])
        tokens.append(unit)
    return torch.cat(tokens, 1), torch.cat(logits, 1)


@pytest.mark.parametrize("variant", JANUS_VARIANTS)
@torch.no_grad()
def test_teacher_forced_logits(variant: str):
    golden, generator, request = janus_data(variant), golden_janus(variant), janus_request(variant)
    tokens = golden["image_tokens"]
    close(generator.network.embed_tokens(tokens), golden["gen_embeds"])
    close(generator.logits(request, tokens), golden["tf_logits_cond"])
    close(generator.logits(unconditional(request), tokens), golden["tf_logits_uncond"])
    close(Policy(generator, PLAIN).log_probs(request, tokens), golden["logprobs_cond"])
    guided = Policy(generator, GUIDED)
    close(guided.log_probs(request, tokens), golden["logprobs_guided5"], GUIDED_ATOL)
    close(guided.entropy(request, tokens), golden["entropy_guided5"], GUIDED_ATOL)


def test_unconditional_prompts():
    golden, generator, request = janus_data("mha"), golden_janus("mha"), janus_request("mha")
    ids, mask = generator.condition(request.inputs, torch.arange(4), torch.ones(4, dtype=torch.bool))
    assert torch.equal(ids, golden["uncond_ids"])
    assert torch.equal(mask, golden["prompt_mask"].bool())


@pytest.mark.parametrize("variant", JANUS_VARIANTS)
@pytest.mark.parametrize("guidance", [1, 5])
@torch.no_grad()
def test_greedy_sampling(variant: str, guidance: int):
    golden, generator, request = janus_data(variant), golden_janus(variant), janus_request(variant)
    tokens, logits = draw(generator, request, Settings(guidance=float(guidance)), lambda logits: logits.argmax(-1))
    assert torch.equal(tokens, golden[f"greedy_cfg{guidance}_tokens"])
    close(logits, golden[f"greedy_cfg{guidance}_logits"], GUIDED_ATOL)
    if variant == "mha":
        close(generator.decode(tokens), (golden[f"greedy_cfg{guidance}_image"].clamp(-1, 1) + 1) / 2)


@torch.no_grad()
def test_sampling_with_the_references_random_stream():
    """Two images of each prompt, one prompt at a time."""
    golden, generator, request = janus_data("mha"), golden_janus("mha"), janus_request("mha")
    for number in range(4):
        rng = torch.Generator().manual_seed(JANUS_META["mha"]["seeded_sampling"]["torch_manual_seed"])
        tokens, _ = draw(
            generator,
            request[torch.tensor([number, number])],
            GUIDED,
            lambda logits, rng=rng: torch.multinomial(logits[:, 0].softmax(-1), 1, generator=rng),
        )
        assert torch.equal(tokens, golden["seeded_cfg5_tokens"][number])


@torch.no_grad()
def test_prompts_of_different_lengths_are_as_one_at_a_time():
    golden, generator, request = janus_data("gqa"), golden_janus("gqa"), janus_request("gqa")
    policy, inputs = Policy(generator, GUIDED), request.inputs
    assert isinstance(inputs, TokenInputs)
    tokens = golden["image_tokens"]
    together, drawn = policy.log_probs(request, tokens), policy.sample(request, torch.arange(4)).tokens
    assert golden["prompt_lengths"].unique().numel() > 2
    for number, length in enumerate(golden["prompt_lengths"].tolist()):
        part = slice(number, number + 1)
        alone = replace(
            inputs, rows=torch.tensor([0]), ids=inputs.ids[part, -length:], mask=inputs.mask[part, -length:]
        )
        asked = Request(words=request.words[part], inputs=alone)
        torch.testing.assert_close(policy.log_probs(asked, tokens[part])[0], together[number], rtol=0, atol=1e-4)
        assert torch.equal(policy.sample(asked, torch.tensor([number])).tokens[0], drawn[number])


@torch.no_grad()
def test_image_tokenizer():
    golden, generator = janus_data("vq"), golden_janus("mha")
    assert torch.equal(generator.encode((golden["images"] + 1) / 2), golden["idx"])
    close(generator.decode(golden["idx"]), (golden["decoded_image"].clamp(-1, 1) + 1) / 2)


@pytest.mark.parametrize("variant", JANUS_VARIANTS)
@pytest.mark.parametrize(("name", "settings"), [("", PLAIN), ("_guided5", GUIDED)])
def test_gradients(variant: str, name: str, settings: Settings):
    golden, generator, meta = janus_data(variant), golden_janus(variant), JANUS_META[variant]
    frozen = generator.network.model.embed_tokens.weight
    assert not frozen.requires_grad
    frozen.requires_grad_(True)
    logits = generator.logits(janus_request(variant), golden["image_tokens"], settings)
    loss = F.cross_entropy(logits.flatten(0, 1), golden["image_tokens"].flatten())
    assert loss.item() == pytest.approx(meta[f"loss{name}"], abs=1e-4)
    loss.backward()
    twin = golden_janus(variant)  # whose weights are the gradients, to get these with the published names
    for theirs, ours in zip(twin.network.parameters(), generator.network.parameters(), strict=True):
        assert ours.grad is not None
        theirs.data = ours.grad
    gradients = write_janus(twin)
    for key, norm in meta[f"grad_norms{name}"].items():
        assert gradients[key].norm().item() == pytest.approx(norm, rel=1e-3), key
        if f"grad{name}.{key}" in golden:
            assert (gradients[key] - golden[f"grad{name}.{key}"]).norm().item() <= 1e-3 * norm, key
    if name:  # padding is what unconditional prompts consist of
        row, expected = frozen.grad[meta["config"]["pad_id"]], golden["grad_guided5_pad_row"]  # pyright: ignore
        assert (row - expected).norm() <= 1e-3 * expected.norm()
