"""Janus-Pro with a text before the image: two parts, one policy; padding, guidance, prompts, files, and bad inputs."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors import bad_input
from golden_data import janus_data
from tiny import prompt_tokenizer, tiny_janus, tiny_prompts, tiny_reasoning
from torch import Tensor

from sfumato.capabilities import Forks, HasParts, ReducesLogits, Reduction, ScoresPrefixes
from sfumato.families.janus.generator import Janus
from sfumato.families.janus.network import JanusConfig
from sfumato.families.janus.published import read_janus, write_janus, write_port
from sfumato.families.janus.reasoning import END, ReasoningInputs, ReasoningJanus
from sfumato.families.library import load_model, save_model
from sfumato.objectives.grpo import GRPO
from sfumato.objectives.reasoning_grpo import ReasoningGRPO
from sfumato.policy import Generator, Policy
from sfumato.request import Request, TokenInputs
from sfumato.rollout import Batch, Rollout, concatenate
from sfumato.settings import PLAIN, Settings
from sfumato.text.reader import ReadsCaptions

GUIDED = Settings(guidance=3.0, temperature=(0.7,) * 8 + (0.9,) * 9)
CAPTIONS = ("a dark cat", "elk", "elk", "the old dog", "a bright bee", "ant", "ant", "dog")
SEEDS = torch.arange(len(CAPTIONS))


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> ReasoningJanus:
    return tiny_reasoning(prompt_tokenizer(tmp_path_factory.mktemp("tokenizer"), END))


@pytest.fixture(scope="module")
def request_(generator: ReasoningJanus) -> Request:
    return Policy(generator).request(CAPTIONS)


@pytest.fixture(scope="module")
def rollout(generator: ReasoningJanus, request_: Request) -> Rollout:
    return Policy(generator, GUIDED).sample(request_, SEEDS)


def test_protocols(generator: ReasoningJanus):
    for protocol in (Generator, ReducesLogits, HasParts, ReadsCaptions):
        assert isinstance(generator, protocol)
    for protocol in (ScoresPrefixes, Forks):
        assert not isinstance(generator, protocol)
    assert not isinstance(tiny_janus(), HasParts)
    assert generator.units == (1,) * 17


@pytest.mark.parametrize("positions", [0, 3])
@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        GUIDED,
        Settings(guidance=(1.0,) * 9 + (4.0,) * 8, top_k=(5,) * 8 + (0,) * 4 + (3,) * 5, temperature=1.3),
        Settings(guidance=2.0, top_p=0.8),
    ],
    ids=["plain", "guided", "lists", "nucleus"],
)
@torch.no_grad()
def test_sampled_log_probabilities_are_the_scored_ones(
    generator: ReasoningJanus, request_: Request, settings: Settings, positions: int
):
    drawn = Policy(generator, settings).sample(request_, SEEDS)
    lengths = drawn.parts["text"].sum(1)
    assert len(lengths.unique()) > 2  # some texts have ended early, at different places
    policy = Policy(generator, settings, positions)
    scored, entropy = policy.log_probs_and_entropy(request_, drawn.tokens)
    torch.testing.assert_close(drawn.log_probs, scored, rtol=0, atol=1e-4)
    torch.testing.assert_close(drawn.entropy, entropy, rtol=0, atol=1e-4)
    torch.testing.assert_close(policy.log_probs(request_, drawn.tokens), scored, rtol=0, atol=1e-5)
    torch.testing.assert_close(policy.entropy(request_, drawn.tokens), entropy, rtol=0, atol=1e-5)


def test_parts(generator: ReasoningJanus, rollout: Rollout):
    """Padding is the end token, certain, and belongs to no part."""
    text, image = rollout.parts["text"], rollout.parts["image"]
    assert not (text & image).any()
    assert torch.equal(image, (torch.arange(17) >= 8).expand(8, 17))
    for row, mask in zip(rollout.tokens[:, :8].tolist(), text[:, :8], strict=True):
        assert int(mask.sum()) == (row.index(19) + 1 if 19 in row else 8)
    padding = ~(text | image)
    assert padding.any()
    assert (rollout.tokens[padding] == 19).all()
    assert (rollout.log_probs[padding] == 0).all()
    assert (rollout.entropy[padding] == 0).all()
    assert (rollout.log_probs[text | image] < 0).all()


def test_the_images_of_a_prompt_have_texts_of_their_own(rollout: Rollout):
    assert not torch.equal(rollout.tokens[1, :8], rollout.tokens[2, :8])
    assert not torch.equal(rollout.tokens[5, :8], rollout.tokens[6, :8])


@torch.no_grad()
def test_a_batch_is_as_one_at_a_time(generator: ReasoningJanus, rollout: Rollout):
    """Neither the padding of prompts nor that of texts has an effect."""
    policy = Policy(generator, GUIDED)
    parts = [policy.sample(rollout.request[index], SEEDS[index]) for index in torch.arange(8).split(1)]
    alone = concatenate(parts, rollout.request)
    assert torch.equal(alone.tokens, rollout.tokens)
    torch.testing.assert_close(alone.log_probs, rollout.log_probs, rtol=0, atol=1e-5)
    assert all(torch.equal(mask, rollout.parts[name]) for name, mask in alone.parts.items())
    scored = [policy.log_probs(part.request, part.tokens) for part in parts]
    torch.testing.assert_close(torch.cat(scored), rollout.log_probs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_tokens_after_the_end_have_no_effect(generator: ReasoningJanus, rollout: Rollout):
    tokens, policy = rollout.tokens.clone(), Policy(generator, GUIDED)
    padding = ~(rollout.parts["text"] | rollout.parts["image"])
    tokens[padding] = 3
    torch.testing.assert_close(
        policy.log_probs(rollout.request, tokens), policy.log_probs(rollout.request, rollout.tokens), rtol=0, atol=1e-6
    )


@torch.no_grad()
def test_the_image_is_that_of_its_prompt_with_the_text(generator: ReasoningJanus, rollout: Rollout):
    """The same numbers as the model without texts gives for the whole prompt, one image at a time."""
    painter, asked = Policy(generator.painter, Settings(guidance=3.0, temperature=0.9)), rollout.request.inputs
    assert isinstance(asked, ReasoningInputs)
    for number in range(len(CAPTIONS)):
        row = int(asked.image.rows[number])
        ids = asked.image.ids[row][asked.image.mask[row]].tolist()
        text = [t for t in rollout.tokens[number, :8].tolist() if t != 19]
        before, after = ids[: -asked.tail], ids[-asked.tail :]
        assert before[:3] == [12, 14, 11]
        assert after == [15, 11, 16]
        inputs = TokenInputs.padded([[*before, *text, *after]], padding=13)
        request = Request(words=rollout.request.words[number : number + 1], inputs=inputs)
        expected = painter.log_probs(request, rollout.tokens[number : number + 1, 8:])
        torch.testing.assert_close(rollout.log_probs[number : number + 1, 8:], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_text_by_the_network_alone(generator: ReasoningJanus, rollout: Rollout):
    """The first row's text, token by token, from the text head without caches or padding."""
    asked, network = rollout.request.inputs, generator.network
    assert isinstance(asked, ReasoningInputs)
    ids = asked.text.ids[0][asked.text.mask[0]][None]
    for place in range(int(rollout.parts["text"][0].sum())):
        read = torch.cat([ids, rollout.tokens[:1, :place]], dim=1)
        x = network.model(input_ids=read).last_hidden_state
        log_probs = (network.text_head(x[:, -1]) / 0.7).log_softmax(-1)
        assert log_probs[0, rollout.tokens[0, place]].item() == pytest.approx(
            rollout.log_probs[0, place].item(), abs=1e-4
        )


@torch.no_grad()
def test_the_network_rests_once_all_texts_have_ended(generator: ReasoningJanus, rollout: Rollout):
    lengths = rollout.parts["text"].sum(1)
    short = int(lengths.argmin())
    calls: list[bool] = []
    handle = generator.network.register_forward_hook(
        lambda module, inputs, kwargs, out: calls.append(kwargs["text"]), with_kwargs=True
    )
    Policy(generator, GUIDED).sample(rollout.request[short : short + 1], SEEDS[short : short + 1])
    handle.remove()
    assert lengths[short] < 8
    assert calls == [True] * int(lengths[short]) + [False] * 9


def test_what_learns(request_: Request):
    generator = tiny_reasoning()  # the ids are in the request, so no tokenizer is needed
    policy = Policy(generator, GUIDED, positions=4)
    drawn = policy.sample(request_, SEEDS)
    policy.log_probs(request_, drawn.tokens).mul(drawn.parts["text"]).sum().backward()
    names = {name for name, p in generator.network.named_parameters() if p.grad is not None and p.grad.any()}
    image = {"code_embedding", "aligner_in", "aligner_out", "head_in", "head"}
    assert "text_head.weight" in names
    assert not {name.partition(".")[0] for name in names} & image
    policy.log_probs(request_, drawn.tokens).sum().backward()
    learning = {name for name, p in generator.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert {n for n, _ in generator.network.named_parameters()} - learning == {"model.embed_tokens.weight"}
    assert all(p.grad is None or p.grad.isfinite().all() for p in generator.network.parameters())


def test_texts_and_images(generator: ReasoningJanus, rollout: Rollout):
    tokens = rollout.tokens.clone()
    tokens[0, :8] = torch.tensor([1, 5, 8, 19, 19, 19, 19, 19])
    tokens[1, :8] = torch.tensor([2, 3, 9, 2, 3, 10, 1, 6])
    texts = generator.texts(tokens)
    assert texts[:2] == ("a dark cat", "the old dog the old elk a ant")
    assert len(texts) == 8
    policy = Policy(generator, GUIDED)
    assert policy.texts(tokens) == texts
    assert Policy(tiny_janus()).texts(tokens) == ()
    assert torch.equal(policy.decode(tokens), generator.painter.decode(tokens[:, 8:]))


def test_weights_of_parts_by_hand(rollout: Rollout):
    """The mean is over the tokens of the batch, and each part has its own KL weight."""
    rewards = torch.tensor([1.0, 0.0, 2.0, 4.0, 0.0, 3.0, 3.0, 1.0])
    text, image = (rollout.parts[name].float() for name in ("text", "image"))
    log_probs = rollout.log_probs + 0.05 * torch.randn(8, 17, generator=torch.Generator().manual_seed(1))
    reference = rollout.log_probs - 0.1 * (text + image)
    log_probs = torch.where((text + image).bool(), log_probs, 0.0)
    batch = Batch(rollout=rollout, rewards=rewards, scores={}, weights={}, group_size=4, reference_log_probs=reference)
    objective = ReasoningGRPO(clip=0.2, kl_weight=0.02, text_kl_weight=0.5)
    loss, stats = objective.loss(log_probs, batch, objective.credit(batch))
    groups = rewards.view(2, 4)
    plain = GRPO(clip=0.2, kl_weight=0.02).credit(batch).weights
    torch.testing.assert_close(plain[:, 0].view(2, 4).mean(1), torch.zeros(2), rtol=0, atol=1e-6)
    assert plain[3, 0] == plain[:4].max()
    assert groups[0].argmax() == 3
    total, count, kls = 0.0, 0, {"text": [], "image": []}
    for i in range(8):
        for name, part, weight in (("text", text, 0.5), ("image", image, 0.02)):
            places = part[i].nonzero()[:, 0].tolist()
            values = []
            for j in places:
                ratio = float((log_probs[i, j] - rollout.log_probs[i, j]).exp())
                a = float(plain[i, 0])
                surrogate = min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
                d = float(reference[i, j] - log_probs[i, j])
                kl = torch.tensor(d).exp().item() - d - 1
                total += weight * kl - surrogate
                values.append(kl)
                count += 1
            kls[name].append(sum(values) / len(values))
    assert loss.item() == pytest.approx(total / count, abs=1e-5)
    for name, values in kls.items():
        assert stats[f"kl/{name}"].item() == pytest.approx(sum(values) / 8, rel=1e-3)
    same = ReasoningGRPO(clip=0.2, kl_weight=0.3)
    both = same.loss(log_probs, batch, same.credit(batch))[0]
    equal = ReasoningGRPO(clip=0.2, kl_weight=0.3, text_kl_weight=0.3)
    assert both == equal.loss(log_probs, batch, equal.credit(batch))[0]


def test_options_of_the_objective():
    assert ReasoningGRPO(kl_weight=0.0, text_kl_weight=0.1).needs_reference
    assert not ReasoningGRPO(kl_weight=0.0).needs_reference
    with bad_input("objective.text_kl_weight", "-1"):
        ReasoningGRPO(text_kl_weight=-1.0)


def test_part_means(rollout: Rollout):
    means = rollout.part_means(rollout.entropy)
    count = int(rollout.parts["text"][0].sum())
    assert means["text"][0].item() == pytest.approx(rollout.entropy[0, :count].mean().item(), abs=1e-6)
    assert means["image"][0].item() == pytest.approx(rollout.entropy[0, 8:].mean().item(), abs=1e-6)
    some = rollout[torch.tensor([3, 1])]
    assert torch.equal(some.parts["text"], rollout.parts["text"][[3, 1]])


def test_bad_inputs(generator: ReasoningJanus, request_: Request, rollout: Rollout, tmp_path: Path):
    with bad_input("guidance", "8 times 1"):
        Policy(generator, Settings(guidance=(2.0,) * 17)).sample(request_, SEEDS)
    with bad_input("inputs", "captions", "TokenInputs"):
        generator.start(tiny_prompts([4]))
    with bad_input("data", "text before each image"):
        generator.encode(torch.zeros(1, 3, 12, 12))
    with bad_input("num_reasoning_tokens", "17", "9"):
        Policy(generator, GUIDED).log_probs(request_, rollout.tokens[:, 8:])
    with bad_input("end_token", "100001", "20"):
        replace(generator.config, end_token=100001)
    with bad_input("num_reasoning_tokens", "-1"):
        JanusConfig(num_reasoning_tokens=-1)
    with bad_input("text_encoder", END, "None", "19"):
        tiny_reasoning(prompt_tokenizer(tmp_path)).inputs(request_.words)
    with pytest.raises(ValueError, match="reduction"):
        generator.logits(request_, rollout.tokens)
    state = generator.start(request_)
    with pytest.raises(ValueError, match="drawn"):
        generator.step(state, rollout.tokens[:, :1])


@torch.no_grad()
def test_unconditional_images(generator: ReasoningJanus, rollout: Rollout):
    """Their prompt depends on the length of caption and text alone."""
    null, plain = torch.ones(8, dtype=torch.bool), Settings()
    tokens = rollout.tokens.clone()
    read = rollout.request.inputs.drop(null)
    ones = Reduction(lambda logits, span: logits.log_softmax(-1)[..., 0], 17)
    first = generator.logits(read, tokens, plain, ones)[:, 8:]
    changed = tokens.clone()
    changed[:, :8] = torch.where(rollout.parts["text"][:, :8] & (tokens[:, :8] != 19), 4, tokens[:, :8])
    torch.testing.assert_close(generator.logits(read, changed, plain, ones)[:, 8:], first, rtol=0, atol=1e-5)
    conditional = generator.logits(rollout.request.inputs, changed, plain, ones)[:, 8:]
    other = generator.logits(rollout.request.inputs, tokens, plain, ones)[:, 8:]
    assert (conditional - other).abs().max() > 0.01


def text_head(generator: Janus | ReasoningJanus) -> Tensor:
    return generator.network.state_dict()["text_head.weight"]


def test_files(tmp_path: Path):
    """The text head is read strictly, written in both layouts, and part of a model folder."""
    weights = {**janus_data("gqa_weights"), **janus_data("vq_weights")}
    generator = read_janus(weights, num_heads=4, grid_size=4, num_reasoning_tokens=5, end_token=90)
    assert isinstance(generator, ReasoningJanus)
    head = "language_model.lm_head.weight"
    assert torch.equal(text_head(generator), weights[head].float())
    written = write_janus(generator)
    assert written.keys() == {k for k in weights if not re.match(r"(vision_model|aligner)\.", k)}
    assert torch.equal(written[head], weights[head].float())
    port = write_port(generator)
    assert torch.equal(port["lm_head.weight"], weights[head].float())
    again = read_janus(port, num_heads=4, grid_size=4, num_reasoning_tokens=5, end_token=90)
    assert torch.equal(text_head(again), weights[head].float())
    with bad_input("weights", "keys are missing", head):
        missing = {k: v for k, v in weights.items() if k != head}
        read_janus(missing, num_heads=4, grid_size=4, num_reasoning_tokens=5, end_token=90)
    save_model(tmp_path / "model", generator)
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, ReasoningJanus)
    assert loaded.config == generator.config
    assert loaded.units == (1,) * (5 + 16)
    assert torch.equal(text_head(loaded), text_head(generator))
