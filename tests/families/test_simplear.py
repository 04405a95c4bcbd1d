"""SimpleAR as a policy: prompts, guidance, what is frozen, published files, and bad inputs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors import bad_input
from golden_data import GOLDEN, golden_simplear, simplear_data, simplear_request
from tiny import prompt_tokenizer, tiny_prompts, tiny_request, tiny_simplear
from torch import Tensor, nn

from sfumato.capabilities import Forks, ReducesLogits, ScoresPrefixes
from sfumato.families import FAMILIES, load_generator, releases
from sfumato.families.exporting import export
from sfumato.families.library import build_release, load_model, save_model
from sfumato.families.simplear.generator import SimpleAR
from sfumato.families.simplear.network import OPENINGS, SimpleARConfig
from sfumato.families.simplear.published import read_simplear, write_simplear
from sfumato.families.simplear.tokenizer import CosmosConfig
from sfumato.families.weight_files import read_state_dict
from sfumato.policy import Generator, Policy
from sfumato.request import TokenInputs, Words
from sfumato.settings import PLAIN, Settings
from sfumato.text.reader import ReadsCaptions

GUIDED = Settings(guidance=3.0, temperature=0.8)
LENGTHS = (4, 7, 3, 5)


@pytest.fixture(scope="module")
def generator() -> SimpleAR:
    return tiny_simplear()


def manifest(name: str) -> dict:
    return json.loads((GOLDEN / f"manifests/{name}.json").read_text())


def meta_state_dict(shapes: dict) -> dict[str, Tensor]:
    """Return tensors of these shapes and types that use no memory."""
    return {k: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for k, (shape, kind) in shapes.items()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor.float()), key


def read(state_dict: dict[str, Tensor], **changes: object) -> SimpleAR:
    needed: dict = {"num_heads": 4, "grid_size": 4, "levels": (2,) * 6, "num_prompt_tokens": 11, **changes}
    return read_simplear(state_dict, simplear_data("cosmos_weights"), **needed)


def test_protocols(generator: SimpleAR):
    for protocol in (Generator, ReducesLogits, ScoresPrefixes, Forks, ReadsCaptions):
        assert isinstance(generator, protocol)
    assert generator.units == (1,) * 9
    assert generator.tokenizer.config.image_size == 12


@pytest.mark.parametrize("settings", [PLAIN, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_sampled_log_probabilities_are_the_scored_ones(settings: Settings, tied: bool):
    policy = Policy(tiny_simplear(tied=tied), settings)
    request = tiny_prompts(LENGTHS, rows=[0, 1, 1, 2], negative=True)
    rollout = policy.sample(request, torch.arange(4))
    scored, entropy = policy.log_probs_and_entropy(request, rollout.tokens)
    torch.testing.assert_close(rollout.log_probs, scored, rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.entropy, entropy, rtol=0, atol=1e-4)
    assert not torch.equal(rollout.tokens[1], rollout.tokens[2])
    parts = Policy(policy.generator, settings, positions=2)
    torch.testing.assert_close(parts.log_probs(request, rollout.tokens), scored, rtol=0, atol=1e-5)
    images = policy.decode(rollout.tokens)
    assert images.shape == (4, 3, 12, 12)
    assert policy.generator.encode(images).shape == (4, 9)


@torch.no_grad()
def test_the_negative_prompt_is_read_once(generator: SimpleAR):
    rows: list[int] = []
    handle = generator.network.model.embed_tokens.register_forward_hook(lambda _, inputs, out: rows.append(len(out)))
    Policy(generator, GUIDED).sample(tiny_prompts(LENGTHS, rows=[1] * 4 + [2, 0], negative=True), torch.arange(6))
    handle.remove()
    assert rows == [4]


@pytest.mark.parametrize("tied", [True, False])
def test_what_learns(tied: bool):
    generator = tiny_simplear(tied=tied)
    request, codes = tiny_prompts(LENGTHS[:3], negative=True), torch.ones(3, 9, dtype=torch.long)
    Policy(generator, GUIDED).log_probs(request, codes).sum().backward()
    learning = {name for name, p in generator.network.named_parameters() if p.grad is not None and p.grad.any()}
    frozen = {"model.embed_tokens.weight"} if tied else {"model.embed_tokens.weight", "text_head.weight"}
    assert {name for name, _ in generator.network.named_parameters()} - learning == frozen


def test_layers_of_adapters_are_in_blocks(generator: SimpleAR):
    linear = [name for name, module in generator.network.named_modules() if isinstance(module, nn.Linear)]
    assert [n for n in linear if n.rpartition(".")[2] in FAMILIES["simplear"].lora_targets] == linear
    assert len(linear) == 2 * 7


@pytest.mark.parametrize("prompt", ["inference", "rl", "training"])
def test_prompts(tmp_path: Path, prompt: str):
    generator = tiny_simplear(prompt_tokenizer(tmp_path))
    generator = SimpleAR(replace(generator.config, prompt=prompt), generator.tokenizer)
    words = Words(names=("dark cat", "elk", "elk"))
    inputs = generator.inputs(words)
    assert isinstance(inputs, TokenInputs)
    assert inputs.rows.tolist() == [0, 1, 1]
    assert inputs.null_row == 2
    first, last, unknown = 17, 18, 0
    rows = [row[mask].tolist() for row, mask in zip(inputs.ids, inputs.mask, strict=True)]
    assert all(row[0] == first and row[-1] == last for row in rows)
    expected = {"inference": [unknown] * 5 + [5, 8], "rl": [unknown] * 3 + [5, 8]}
    if prompt == "training":
        assert rows[2] == [first, last]
        assert rows[0][-3:] == [5, 8, last]
        captions = Words(names=tuple(f"caption {number}" for number in range(100)))
        lengths = generator.inputs(captions).mask.sum(1)[:-1]
        assert len(lengths.unique()) > 3  # of the openings
        assert torch.equal(generator.inputs(captions).ids, generator.inputs(captions).ids)
        assert len(OPENINGS) == 20
    else:
        assert rows[0][1:-1] == expected[prompt]
        assert len(rows[2]) > 20


@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
def test_keys_shapes_and_types_of_the_releases(size: str):
    published, tokenizer = manifest(f"simplear_{size}"), manifest("cosmos_dv8x16x16")
    tensors, images = (meta_state_dict(part["state_dict"]) for part in (published, tokenizer))
    del tensors["lm_head.weight"]
    name, config = f"simplear-{size}-sft", published["config"]
    family, release = releases()[name]
    generator = build_release(name, family, release, tensors, images)
    assert isinstance(generator, SimpleAR)
    assert generator.config == SimpleARConfig(
        depth=config["num_hidden_layers"],
        width=config["hidden_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        feed_forward_width=config["intermediate_size"],
        text_tokenizer=release.repository,
    )
    assert release.shape["transformer"].items() <= vars(generator.config).items()
    assert generator.tokenizer.config == CosmosConfig()
    assert generator.tokenizer.config.vocab_size == published["vocabulary"]["image_codes"]
    assert generator.units == (1,) * 4096
    assert {k: v.shape for k, v in write_simplear(generator).items()} == {k: v.shape for k, v in tensors.items()}
    assert sum(p.numel() for p in generator.network.parameters()) == published.get("n_parameters")


@pytest.mark.parametrize("variant", ["tied", "untied"])
def test_round_trip(variant: str):
    weights = simplear_data(f"{variant}_weights")
    assert golden_simplear(variant).config.tied == (variant == "tied")
    same(write_simplear(golden_simplear(variant)), weights)


def test_a_head_that_repeats_the_embedding_is_tied():
    weights = simplear_data("tied_weights")
    generator = read({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    assert generator.config.tied
    same(write_simplear(generator), weights)


@torch.no_grad()
def test_parity_with_transformers():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    for variant, rows in (("tied", 2), ("untied", 1)):
        golden, exported = simplear_data(variant), write_simplear(golden_simplear(variant))
        config = Qwen2Config(
            vocab_size=171, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=rows,
            intermediate_size=exported["model.layers.0.mlp.up_proj.weight"].shape[0],
            rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=variant == "tied",
        )  # fmt: skip
        model = Qwen2ForCausalLM(config).eval()
        found = model.load_state_dict(exported, strict=False)
        assert set(found.missing_keys) <= {"lm_head.weight"}
        assert not found.unexpected_keys
        model.tie_weights()
        ids = torch.cat([golden["prompt_ids"], golden["codes"] + 107], dim=1)
        mask = torch.cat([golden["prompt_mask"], torch.ones_like(golden["codes"])], dim=1)
        theirs = model(input_ids=ids, attention_mask=mask).logits[:, 10:-1, 107:]
        ours = golden_simplear(variant).logits(simplear_request(variant), golden["codes"])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_bad_files():
    weights = simplear_data("tied_weights")
    with bad_input("weights", "gen_extra.weight"):
        read({**weights, "gen_extra.weight": torch.zeros(1)})
    with bad_input("weights", "layers.0.self_attn.k_proj.bias"):
        read({k: v for k, v in weights.items() if k != "model.layers.0.self_attn.k_proj.bias"})
    with bad_input("weights", "'model.embed_tokens.weight'"):
        read(simplear_data("cosmos_weights"))
    with bad_input("weights", "171", "64000"):
        read(weights, levels=(8, 8, 8, 5, 5, 5))
    with bad_input("tokenizer", "NVIDIA", "encoder.jit"):
        read_simplear(weights, weights, num_heads=4)
    images = simplear_data("cosmos_weights")
    for changed, piece in (
        ({k: v for k, v in images.items() if k != "decoder.mid.attn_1.1.v.conv3d.bias"}, "attn_1.1.v"),
        ({**images, "decoder.extra.weight": torch.zeros(1)}, "decoder.extra.weight"),
    ):
        with bad_input("tokenizer", piece):
            read_simplear(weights, changed, num_heads=4, grid_size=4, levels=(2,) * 6)


class Part(nn.Module):
    """A module that TorchScript can save, with the tensors of a tokenizer's part."""

    def __init__(self, tensors: dict[str, Tensor]):
        super().__init__()
        for name, tensor in tensors.items():
            module: nn.Module = self
            *path, last = name.split(".")
            for step in path:
                if not hasattr(module, step):
                    module.add_module(step, nn.Module())
                module = getattr(module, step)
            module.register_buffer(last, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_files_of_the_published_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """`--model simplear-0.5b-sft --weights FILE --tokenizer FOLDER`, with the golden model in the release's place."""
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for key, tensor in simplear_data("cosmos_weights").items():
        parts["encoder" if key.startswith(("encoder", "quant_conv")) else "decoder"][key] = tensor
    parts["encoder"]["quantizer._levels"] = torch.tensor([2] * 6)
    parts["decoder"]["inv_quant.quantizer.implicit_codebook"] = torch.zeros(64, 6)
    for name, tensors in parts.items():
        torch.jit.save(torch.jit.script(Part(tensors)), str(tmp_path / f"{name}.jit"))
    torch.save(simplear_data("tied_weights"), tmp_path / "model.bin")
    family, release = releases()["simplear-0.5b-sft"]
    needed = {"num_heads": 4, "grid_size": 4, "levels": (2,) * 6, "num_prompt_tokens": 11}
    small = replace(release, needed=needed, facts={"depth": 2, "width": 64})
    monkeypatch.setitem(family.releases, "simplear-0.5b-sft", small)  # pyright: ignore[reportArgumentType]
    generator = load_generator("simplear-0.5b-sft", weights=tmp_path / "model.bin", tokenizer=tmp_path)
    assert "TorchScript" in capsys.readouterr().err
    same(dict(generator.tokenizer.state_dict()), dict(golden_simplear("tied").tokenizer.state_dict()))
    assert generator.card.settings == Settings(guidance=6.0)
    with bad_input("tokenizer", "NVIDIA"):
        load_generator("simplear-0.5b-sft", weights=tmp_path / "model.bin")
    (tmp_path / "decoder.jit").write_bytes(b"nothing")
    with bad_input("tokenizer", "decoder.jit", "download it again"):
        load_generator("simplear-0.5b-sft", weights=tmp_path / "model.bin", tokenizer=tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_model_folders_and_exports(tmp_path: Path, tied: bool):
    generator = tiny_simplear(tied=tied)
    save_model(tmp_path / "model", generator)
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, SimpleAR)
    assert loaded.config == generator.config
    same(dict(loaded.tokenizer.state_dict()), dict(generator.tokenizer.state_dict()))
    (file,) = export(str(tmp_path / "model"), tmp_path / "out", "safetensors")
    assert file.name == "simplear.safetensors"
    exported = read_state_dict(file)
    assert ("lm_head.weight" in exported) != tied
    assert exported["model.embed_tokens.weight"].shape == (20 + 12, 16)


def test_inputs_of_another_kind(generator: SimpleAR):
    with bad_input("inputs", "captions", "ClassInputs"):
        generator.start(tiny_request([0]))
    with bad_input("prompts", "61", "60"):
        generator.start(tiny_prompts([61, 3], negative=True))
    with bad_input("prompt", "'rll'", "inference"):
        SimpleARConfig(prompt="rll")
    with bad_input("num_heads", "5", "896"):
        SimpleARConfig(num_heads=5)
    with bad_input("images", "12"):
        generator.encode(torch.zeros(1, 3, 8, 8))
