"""Published checkpoints: every key and shape of the releases, round trips, and files that must be rejected."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from errors import bad_input
from golden_data import GOLDEN, META, golden_var, tokenizer_weights, transformer_weights
from torch import Tensor

from sfumato.errors import UserError
from sfumato.families.var.generator import VAR
from sfumato.families.var.published import infer_var_config, read_var, write_var
from sfumato.families.weight_files import read_state_dict

TOKENIZER_256, TOKENIZER_512 = "vae_ch160v4096z32", "vae_ch160v4096z32_patchnums512"


def manifest(name: str) -> dict:
    return json.loads((GOLDEN / f"manifests/{name}.json").read_text())


def meta_state_dict(shapes: dict) -> dict[str, Tensor]:
    """Return tensors of these shapes and types that use no memory."""
    return {k: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for k, (shape, kind) in shapes.items()}


def described(state_dict: dict[str, Tensor]) -> dict:
    return {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state_dict.items()}


def load(network: dict[str, Tensor], tokenizer: dict[str, Tensor], variant: str = "a") -> VAR:
    shape = META["variants"][variant]
    return read_var(network, tokenizer, patch_nums=shape["patch_nums"], num_heads=shape["heads"])


@pytest.mark.parametrize("depth", [16, 20, 24, 30, 36])
def test_keys_shapes_and_types_of_the_releases(depth: int):
    network, tokenizer = manifest(f"var_d{depth}"), manifest(TOKENIZER_512 if depth == 36 else TOKENIZER_256)
    config = network["config"]
    generator = read_var(
        meta_state_dict(network["state_dict"]),
        meta_state_dict(tokenizer["state_dict"]),
        patch_nums=config["patch_nums"],
        num_heads=config["heads"],
    )
    ours = generator.config
    assert (ours.depth, ours.width, ours.num_heads) == (config["depth"], config["width"], config["heads"])
    assert (ours.mlp_ratio, ours.num_classes) == (config["mlp_ratio"], config["num_classes"])
    assert (ours.shared_adaln, ours.l2_attention) == (config["shared_aln"], config["attn_l2_norm"])
    assert sum(generator.units) == config["tokens"]
    shape, published = generator.tokenizer.config, tokenizer["config"]
    assert (shape.vocab_size, shape.latent_channels) == (published["vocab_size"], published["z_channels"])
    assert shape.channel_multipliers == tuple(published["ch_mult"])
    assert sum(p.numel() for p in generator.network.parameters()) == network["n_parameters"]
    assert sum(p.numel() for p in generator.tokenizer.parameters()) == tokenizer["n_parameters"]
    exported_network, exported_tokenizer = write_var(generator)
    assert described(exported_network) == network["state_dict"]
    assert described(exported_tokenizer) == tokenizer["state_dict"]


@pytest.mark.parametrize("variant", ["a", "b"])
def test_round_trip(variant: str):
    exported, exported_tokenizer = write_var(golden_var(variant))
    weights, tokenizer = transformer_weights(variant), dict(tokenizer_weights())
    assert exported.keys() == weights.keys()
    assert {"lvl_1L", "attn_bias_for_masking", "blocks.1.attn.zero_k_bias"} <= exported.keys()
    for key, tensor in weights.items():
        expected = tensor.float() if tensor.is_floating_point() else tensor
        torch.testing.assert_close(exported[key], expected, rtol=0, atol=0, msg=key)
    assert exported_tokenizer.keys() == tokenizer.keys()
    for key, tensor in tokenizer.items():
        torch.testing.assert_close(exported_tokenizer[key], tensor.float(), rtol=0, atol=0, msg=key)


def test_usage_of_another_number_of_scales_is_replaced():
    tokenizer = dict(tokenizer_weights())
    assert tokenizer["quantize.ema_vocab_hit_SV"].shape[0] == 4
    generator = golden_var("c")
    assert torch.equal(generator.tokenizer.quantizer.usage, torch.zeros(10, 64))


def test_loaded_weights_are_copies():
    generator, weights = golden_var("a"), transformer_weights("a")
    before = weights["head.weight"].clone()
    with torch.no_grad():
        generator.network.head.weight.zero_()
    assert torch.equal(weights["head.weight"], before)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_reading_files(tmp_path: Path, suffix: str):
    weights, path = transformer_weights("b"), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    read = read_state_dict(path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], weights[key]) for key in weights)


def test_file_of_the_published_trainer_is_unwrapped(tmp_path: Path):
    weights, path = transformer_weights("a"), tmp_path / "ar-ckpt-best.pth"
    trainer = {"var_wo_ddp": weights, "vae_local": tokenizer_weights(), "config": {"label_smooth": 0.0}}
    torch.save({"epoch": 3, "iter": 7, "trainer": trainer, "args": {"depth": 2}}, path)
    read = read_state_dict(path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], weights[key]) for key in weights)


class Bomb:
    """Writes a file if it is unpickled without precautions."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "boom")


@pytest.mark.parametrize("wrapped", ["torch", "pickle"])
def test_no_code_in_a_file_is_run(tmp_path: Path, wrapped: str):
    path, target = tmp_path / "weights.pth", tmp_path / "boom"
    content = {"pos_start": torch.zeros(1, 1, 8), "bomb": Bomb(target)}
    if wrapped == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with bad_input("weights", str(path)):
        read_state_dict(path)
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, suffix: str, share: float):
    weights, path = transformer_weights("a"), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with bad_input("weights", str(path)):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"hello\n", b"\x80\x02.", struct.pack("<Q", 2**60), b"<html>not found</html>"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_of_something_else(tmp_path: Path, suffix: str, content: bytes):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with bad_input("weights", str(path)):
        read_state_dict(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, torch.zeros(2), {"trainer": {"x": 1}}])
def test_files_without_a_state_dict(tmp_path: Path, content: object):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with bad_input("weights", str(path)):
        read_state_dict(path)


def test_missing_file(tmp_path: Path):
    with bad_input("weights", str(tmp_path / "no.pth")):
        read_state_dict(tmp_path / "no.pth")


def without(state_dict: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {k: v for k, v in state_dict.items() if k != key}


@pytest.mark.parametrize(
    "key",
    [
        "pos_start",
        "class_emb.weight",
        "blocks.0.ffn.fc1.weight",
        "head.bias",
        "blocks.1.attn.q_bias",
        "lvl_embed.weight",
    ],
)
def test_missing_key(key: str):
    with bad_input("weights", key):
        load(without(transformer_weights("a"), key), tokenizer_weights())


@pytest.mark.parametrize("key", ["quantize.embedding.weight", "encoder.conv_in.weight", "decoder.conv_out.bias"])
def test_missing_key_of_the_tokenizer(key: str):
    with bad_input("tokenizer", key):
        load(transformer_weights("a"), without(tokenizer_weights(), key))


def test_unknown_keys():
    extra = {"blocks.0.lora.weight": torch.zeros(1)}
    with bad_input("weights", "blocks.0.lora.weight"):
        load({**transformer_weights("a"), **extra}, tokenizer_weights())
    with bad_input("tokenizer", "blocks.0.lora.weight"):
        load(transformer_weights("a"), {**tokenizer_weights(), **extra})


def test_swapped_files():
    with bad_input("weights", "'pos_start'"):
        load(dict(tokenizer_weights()), dict(transformer_weights("a")))


def test_depth_with_a_hole():
    weights = {k: v for k, v in transformer_weights("a").items() if not k.startswith("blocks.0.attn.")}
    with bad_input("weights", "blocks.0.attn."):
        load(weights, tokenizer_weights())


@pytest.mark.parametrize("key", ["pos_1LC", "head.weight", "blocks.1.ffn.fc2.weight", "word_embed.weight"])
def test_wrong_shape(key: str):
    weights = dict(transformer_weights("a"))
    weights[key] = weights[key][..., :-1]
    with bad_input("weights", key, str(tuple(weights[key].shape))):
        load(weights, tokenizer_weights())


@pytest.mark.parametrize("patch_nums", [(1, 2, 3, 5), (1, 2, 3), (1, 2, 3, 4, 5), (2, 1, 3, 4)])
def test_scales_that_contradict_the_levels(patch_nums: tuple[int, ...]):
    with bad_input("patch_nums", str(patch_nums), "(1, 2, 3, 4)"):
        read_var(transformer_weights("a"), tokenizer_weights(), patch_nums=patch_nums, num_heads=2)


def test_wrong_scales_without_levels():
    weights = without(transformer_weights("a"), "lvl_1L")
    assert load(weights, tokenizer_weights()).units == (1, 4, 9, 16)
    with bad_input("weights", "pos_1LC", "patch_nums"):
        read_var(weights, tokenizer_weights(), patch_nums=(1, 2, 3, 5), num_heads=2)


@pytest.mark.parametrize("num_heads", [4, 3])
def test_wrong_number_of_heads(num_heads: int):
    # Four heads fit the width, but not the learned scale per head.
    with pytest.raises(UserError) as error:
        read_var(transformer_weights("a"), tokenizer_weights(), patch_nums=(1, 2, 3, 4), num_heads=num_heads)
    assert error.value.field == ("weights" if num_heads == 4 else "num_heads")
    assert "num_heads" in str(error.value)
    assert "\n" not in str(error.value)


def test_infer_config():
    config = infer_var_config(transformer_weights("b"), num_heads=2)
    assert (config.depth, config.width, config.num_classes, config.mlp_ratio) == (2, 128, 12, 4.0)
    assert config.shared_adaln
    assert not config.l2_attention
