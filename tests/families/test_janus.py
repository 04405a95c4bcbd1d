"""Janus-Pro as a policy: prompts, guidance, what is frozen, published files of both layouts, and bad inputs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors import bad_input
from golden_data import GOLDEN, golden_janus, janus_data, janus_request
from safetensors.torch import save_file
from tiny import CLASS_NAMES, prompt_tokenizer, tiny_janus, tiny_prompts, tiny_request
from torch import Tensor, nn

from sfumato.capabilities import Forks, ReducesLogits, ScoresPrefixes
from sfumato.families import FAMILIES, load_generator, load_published, releases
from sfumato.families.exporting import export
from sfumato.families.janus.generator import PROMPT, Janus
from sfumato.families.janus.network import JanusConfig
from sfumato.families.janus.published import _PORT, _original, read_janus, write_janus, write_port
from sfumato.families.library import build_release, load_model, save_model
from sfumato.families.published import rename
from sfumato.families.vq import VQConfig
from sfumato.families.weight_files import read_state_dict
from sfumato.policy import Generator, Policy
from sfumato.request import TokenInputs
from sfumato.settings import PLAIN, Settings
from sfumato.text.prompt_reader import PromptReader
from sfumato.text.reader import ReadsCaptions

GUIDED = Settings(guidance=3.0, temperature=0.8)
LENGTHS = (4, 7, 3)
SIZES = {"janus-pro-1b": "1b", "janus-pro-7b": "7b"}


@pytest.fixture(scope="module")
def generator() -> Janus:
    return tiny_janus()


def manifest(name: str) -> dict:
    return json.loads((GOLDEN / f"manifests/{name}.json").read_text())


def meta_state_dict(shapes: dict) -> dict[str, Tensor]:
    """Return tensors of these shapes and types that use no memory."""
    return {k: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for k, (shape, kind) in shapes.items()}


def weights() -> dict[str, Tensor]:
    return {**janus_data("gqa_weights"), **janus_data("vq_weights")}


def drawing(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that drawing needs, in float32; the tokenizer's usage counter is 0."""
    unused = re.compile(r"(vision_model|aligner)\.|language_model\.lm_head\.")
    tensors = {k: t.float() if t.is_floating_point() else t for k, t in state_dict.items() if not unused.match(k)}
    usage = "gen_vision_model.quantize.codebook_used"
    return {k: torch.zeros_like(t) if k == usage else t for k, t in tensors.items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


def test_protocols(generator: Janus):
    for protocol in (Generator, ReducesLogits, ScoresPrefixes, Forks, ReadsCaptions):
        assert isinstance(generator, protocol)
    assert generator.units == (1,) * 9


@pytest.mark.parametrize("settings", [PLAIN, GUIDED, Settings(guidance=(1.0, *[4.0] * 8))], ids=["plain", "s", "list"])
@torch.no_grad()
def test_sampled_log_probabilities_are_the_scored_ones(generator: Janus, settings: Settings):
    policy, request = Policy(generator, settings), tiny_prompts(LENGTHS, rows=[0, 1, 1, 2])
    rollout = policy.sample(request, torch.arange(4))
    scored, entropy = policy.log_probs_and_entropy(request, rollout.tokens)
    torch.testing.assert_close(rollout.log_probs, scored, rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.entropy, entropy, rtol=0, atol=1e-4)
    assert not torch.equal(rollout.tokens[1], rollout.tokens[2])
    parts = Policy(generator, settings, positions=2)
    torch.testing.assert_close(parts.log_probs(request, rollout.tokens), scored, rtol=0, atol=1e-5)
    first = policy.log_probs(request, rollout.tokens[:, :4], units=(1,) * 4)
    torch.testing.assert_close(first, scored[:, :4], rtol=0, atol=1e-5)


@torch.no_grad()
def test_each_prompt_is_read_once(generator: Janus):
    read: list[int] = []
    handle = generator.network.model.embed_tokens.register_forward_hook(lambda _, inputs, out: read.append(len(out)))
    Policy(generator, GUIDED).sample(tiny_prompts(LENGTHS, rows=[1] * 5 + [2]), torch.arange(6))
    handle.remove()
    assert read == [4]


@torch.no_grad()
def test_the_unconditional_prompt_depends_on_the_length_alone(generator: Janus):
    first, second = tiny_prompts([6, 4]), tiny_prompts([4, 6])
    null, tokens = torch.ones(2, dtype=torch.bool), torch.arange(18).view(2, 9) % 16
    one, two = (generator.logits(request.inputs.drop(null), tokens[[0, 0]]) for request in (first, second))
    torch.testing.assert_close(one[0], two[1], rtol=0, atol=1e-5)
    assert (one[0] - one[1]).abs().max() > 0.01


def test_what_learns(generator: Janus):
    """The text embedding is frozen; all else learns, also the embedding of the image tokens."""
    generator = tiny_janus()
    Policy(generator, GUIDED).log_probs(tiny_prompts(LENGTHS), torch.ones(3, 9, dtype=torch.long)).sum().backward()
    learning = {name for name, p in generator.network.named_parameters() if p.grad is not None and p.grad.any()}
    assert {n for n, _ in generator.network.named_parameters()} - learning == {"model.embed_tokens.weight"}
    loaded = golden_janus("gqa").network
    assert [name for name, p in loaded.named_parameters() if not p.requires_grad] == ["model.embed_tokens.weight"]


def test_layers_of_adapters_are_in_blocks(generator: Janus):
    targets = FAMILIES["janus"].lora_targets
    linear = [name for name, module in generator.network.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linear if name.rpartition(".")[2] in targets]
    assert chosen == [name for name in linear if name.startswith("model.layers.")]
    assert len(chosen) == 2 * 7


def test_prompts(tmp_path: Path):
    generator = tiny_janus(prompt_tokenizer(tmp_path))
    policy = Policy(generator, GUIDED)
    inputs = policy.request([" a dark cat ", "elk", "elk"]).inputs
    assert isinstance(inputs, TokenInputs)
    before, after = [12, 14, 11], [15, 11, 16]
    assert inputs.ids.tolist() == [[*before, 1, 5, 8, *after], [13, 13, *before, 10, *after]]
    assert inputs.mask.sum(1).tolist() == [9, 7]
    assert inputs.rows.tolist() == [0, 1, 1]
    long = generator.inputs(policy.request(["the old dark dog " * 4]).words)
    assert long.ids.tolist() == [[*before, 2, 3, 5, 9, 2, 3, *after]]  # 12 tokens, and the end of the prompt
    save_model(tmp_path / "model", generator)
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, Janus)
    assert loaded.config == generator.config
    seeds = torch.arange(2)
    assert torch.equal(
        Policy(loaded.eval(), GUIDED).draw(["a cat", "elk"], seeds), policy.draw(["a cat", "elk"], seeds)
    )


def test_a_tokenizer_of_another_model(tmp_path: Path):
    prompt_tokenizer(tmp_path)
    reader = PromptReader(str(tmp_path), PROMPT, 12, padding="<pad>", vocab_size=20)
    with bad_input("text_encoder", "lacks the token <pad>", str(tmp_path)):
        reader.read(["a cat"])
    reader = PromptReader(str(tmp_path), PROMPT, 12, padding="[UNK]", vocab_size=16)
    with bad_input("text_encoder", "has 20 tokens", "16"):
        reader.prepare(["a cat"], tmp_path)
    reader.use(str(tmp_path / "missing"))
    with bad_input("text_encoder", "missing", "tokenizer.json"):
        reader.read(["a cat"])
    (tmp_path / "tokenizer.json").write_text("{}")
    reader.use(str(tmp_path))
    with bad_input("text_encoder", "cannot be read"):
        reader.read(["a cat"])


def test_inputs_of_another_kind(generator: Janus):
    with bad_input("inputs", "captions", "ClassInputs"):
        generator.start(tiny_request([0]))
    with bad_input("prompts", "13", "12"):
        generator.start(tiny_prompts([13]))
    with bad_input("num_heads", "3", "2048"):
        JanusConfig(num_heads=3)
    with bad_input("num_kv_heads", "5", "16"):
        JanusConfig(num_kv_heads=5)
    assert CLASS_NAMES[0] not in generator.card.class_names


@pytest.mark.parametrize("name", SIZES)
def test_keys_shapes_and_types_of_the_releases(name: str):
    published = manifest(f"janus_pro_{SIZES[name]}")
    tensors, config = meta_state_dict(published["state_dict"]), published["config"]["language_config"]
    family, release = releases()[name]
    generator = build_release(name, family, release, tensors, tensors)
    assert isinstance(generator, Janus)
    assert generator.config == JanusConfig(
        depth=config["num_hidden_layers"],
        width=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        feed_forward_width=config["intermediate_size"],
        text_vocab_size=config["vocab_size"],
        text_tokenizer=release.repository,
    )
    assert release.shape["transformer"].items() <= {**vars(generator.config), "num_kv_heads": None}.items()
    assert generator.tokenizer.config == VQConfig(grid_size=24)
    assert generator.units == (1,) * 576
    exported = write_janus(generator)
    expected = drawing(tensors)
    assert {k: v.shape for k, v in exported.items()} == {k: v.shape for k, v in expected.items()}
    other = next(size for size in SIZES if size != name)
    with bad_input("weights", "depth", other):
        build_release(other, *releases()[other], tensors, tensors)


def test_round_trip_of_both_layouts():
    whole = weights()
    generator = read_janus(whole, num_heads=4, grid_size=4)
    same(write_janus(generator), drawing(whole))
    again = read_janus(write_port(generator), num_heads=4, grid_size=4)
    same(dict(again.network.state_dict()), dict(generator.network.state_dict()))
    same(dict(again.tokenizer.state_dict()), dict(generator.tokenizer.state_dict()))


def test_names_of_the_port():
    """All keys of the published model, against the map that was checked with transformers' class."""
    names = manifest("janus_hf_key_map")["map"]
    needed = {key: other for key, other in names.items() if isinstance(other, str) and drawing({key: torch.zeros(1)})}
    back = _original({other: torch.zeros(1) for other in names.values() if isinstance(other, str)})
    assert drawing(dict(back)).keys() == needed.keys()
    assert {rename(key, _PORT) for key in needed} == set(needed.values())


def test_parity_with_transformers():
    """The export loads into transformers' class, and gives the same guided logits and images."""
    from transformers import JanusConfig as PortConfig
    from transformers import JanusForConditionalGeneration

    shape, golden = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}, janus_data("gqa")
    vq = {
        "embed_dim": 8, "num_embeddings": 64, "latent_channels": 32, "base_channels": 32, "num_res_blocks": 2,
        "channel_multiplier": [1, 1, 1, 1, 2], "projection_dim": 64, "num_patches": 4, "image_token_embed_dim": 64,
    }  # fmt: skip
    config = PortConfig(
        text_config={**shape, "num_key_value_heads": 2, "intermediate_size": 144, "vocab_size": 96},
        vision_config={**shape, "image_size": 32, "projection_dim": 64, "mlp_ratio": 1.0},
        vq_config=vq,
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config).eval()
    found = model.load_state_dict(write_port(golden_janus("gqa")), strict=False)
    assert not found.unexpected_keys
    assert all(re.match(r"lm_head|model\.(vision_model|aligner)", key) for key in found.missing_keys)
    ids, tokens = golden["prompt_ids"], golden["image_tokens"]
    with torch.no_grad():
        embeddings = model.model
        read = torch.cat(
            [embeddings.language_model.embed_tokens(ids), model.prepare_embeddings_for_image_generation(tokens)], dim=1
        )
        mask = torch.cat([golden["prompt_mask"], torch.ones_like(tokens)], dim=1)
        hidden = embeddings.language_model(inputs_embeds=read, attention_mask=mask).last_hidden_state
        theirs = embeddings.generation_head(hidden[:, ids.shape[1] - 1 : -1])
        ours = golden_janus("gqa").logits(janus_request("gqa"), tokens)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_bad_files():
    whole = weights()
    name = "language_model.model.layers.1.self_attn.k_proj.weight"
    with bad_input("weights", "1 keys are missing", name):
        read_janus({k: v for k, v in whole.items() if k != name}, num_heads=4, grid_size=4)
    with bad_input("weights", "gen_extra.weight"):
        read_janus({**whole, "gen_extra.weight": torch.zeros(1)}, num_heads=4, grid_size=4)
    with bad_input("tokenizer", "decoder.extra"):
        read_janus({**whole, "gen_vision_model.decoder.extra": torch.zeros(1)}, num_heads=4, grid_size=4)
    with bad_input("weights", "language_model.model.norm.weight"):
        read_janus(janus_data("vq_weights"), num_heads=4)
    with bad_input("tokenizer", "quantize.embedding.weight"):
        read_janus(janus_data("gqa_weights"), num_heads=4)
    with bad_input("num_heads", "7"):
        read_janus(whole, num_heads=7, grid_size=4)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_a_sharded_release(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    """`--model janus-pro-1b`, downloaded as an index with two shards; the tiny model in the place of the release."""
    family, release = releases()["janus-pro-7b"]
    index = "pytorch_model.bin.index.json"
    needed = {"num_heads": 4, "grid_size": 4, "text_tokenizer": str(prompt_tokenizer(tmp_path))}
    small = replace(release, needed=needed, facts={"depth": 2, "width": 64})
    monkeypatch.setitem(family.releases, "janus-pro-7b", small)  # pyright: ignore[reportArgumentType]
    whole, shards = list(weights().items()), {}
    for number, part in enumerate((whole[:40], whole[40:]), 1):
        name = f"pytorch_model-{number:05}-of-00002.{kind}"
        (torch.save if kind == "bin" else save_file)(dict(part), tmp_path / name)
        shards |= {key: name for key, _ in part}
    (tmp_path / index).write_text(json.dumps({"weight_map": shards}))
    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    generator = load_generator("janus-pro-7b")
    assert asked == [("deepseek-ai/Janus-Pro-7B", ["pytorch_model*"])]
    same(write_janus(generator), drawing(weights()))  # pyright: ignore[reportArgumentType]
    assert generator.card.settings == Settings(guidance=5.0)
    assert generator.card.class_names == ()


def test_files_of_an_export_load_back(tmp_path: Path):
    generator = tiny_janus()
    save_model(tmp_path / "model", generator)
    files = export(str(tmp_path / "model"), tmp_path / "out", "safetensors")
    assert [file.name for file in files] == ["janus.safetensors", "janus_transformers.safetensors"]
    for file in files:
        read = load_published("janus", read_state_dict(file), num_heads=2, grid_size=3, norm_groups=4)
        same(dict(read.network.state_dict()), dict(generator.network.state_dict()))
        same(dict(read.tokenizer.state_dict()), dict(generator.tokenizer.state_dict()))
