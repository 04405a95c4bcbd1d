"""LlamaGen's published checkpoints: every key and shape of the releases, wrappings, round trips, rejected files."""

import copy
import json
from pathlib import Path

import pytest
import torch
from errors import bad_input
from golden_data import (
    GOLDEN,
    golden_llamagen,
    llamagen_outputs,
    llamagen_request,
    llamagen_weights,
    transformer_weights,
    vq_weights,
)
from tiny import tiny_llamagen
from torch import Tensor

from sfumato.data.imagenet_classes import imagenet_class_names
from sfumato.families import releases
from sfumato.families.exporting import export
from sfumato.families.library import build_release, save_model
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.network import LlamaGenConfig
from sfumato.families.llamagen.published import (
    infer_grid_size,
    infer_llamagen_config,
    read_llamagen,
    write_llamagen,
)
from sfumato.families.published_vq import infer_vq_config
from sfumato.families.vq import VQConfig
from sfumato.families.weight_files import read_state_dict
from sfumato.policy import Generator
from sfumato.settings import Settings

SIZES = [f"c2i_GPT-{size}_{pixels}" for size in ("B", "L", "XL", "XXL", "3B") for pixels in (256, 384)]
SIZES += ["t2i_GPT-XL_256", "t2i_GPT-XL_512"]
NAMES = {
    **{size: f"llamagen-{size.removeprefix('c2i_GPT-').replace('_', '-').lower()}" for size in SIZES},
    "t2i_GPT-XL_256": "llamagen-xl-t2i",
    "t2i_GPT-XL_512": "llamagen-xl-t2i-512",
}


def manifest(name: str) -> dict:
    return json.loads((GOLDEN / f"manifests/llamagen_{name}.json").read_text())


def meta_state_dict(shapes: dict) -> dict[str, Tensor]:
    """Return tensors of these shapes and types that use no memory."""
    return {k: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for k, (shape, kind) in shapes.items()}


def described(state_dict: dict[str, Tensor]) -> dict:
    return {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state_dict.items()}


def load(network: dict[str, Tensor], tokenizer: dict[str, Tensor]) -> LlamaGen:
    return read_llamagen(network, tokenizer, num_heads=4, grid_size=4)


def built(name: str, network: dict[str, Tensor], tokenizer: dict[str, Tensor]) -> Generator:
    """Build the release of this name from these tensors."""
    family, release = releases()[name]
    return build_release(name, family, release, network, tokenizer)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor.float(), rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("size", SIZES)
def test_keys_shapes_and_types_of_the_releases(size: str):
    network, tokenizer, name = manifest(size), manifest("VQ-16"), NAMES[size]
    config = network["config"]
    generator = built(name, meta_state_dict(network["state_dict"]), meta_state_dict(tokenizer["state_dict"]))
    assert isinstance(generator, LlamaGen)
    text = config["model_type"] == "t2i"
    assert generator.config == LlamaGenConfig(
        depth=config["n_layer"],
        width=config["dim"],
        num_heads=config["n_head"],
        num_kv_heads=config["n_kv_head"],
        feed_forward_width=config["ffn_hidden"],
        num_classes=0 if text else config["num_classes"],
        caption_width=config["caption_dim"] or 0,
        num_caption_tokens=config["cls_token_num"] if text else 0,
        text_encoder="google/flan-t5-xl" if text else "",
        rope_base=config["rope_base"],
        norm_eps=config["norm_eps"],
    )
    assert generator.config.head_width == config["head_dim"]
    assert generator.card.family == "llamagen"
    assert generator.card.class_names == (() if text else tuple(imagenet_class_names()))
    assert generator.card.settings == releases()[name][1].settings
    assert generator.units == (1,) * config["block_size"]
    assert generator.tokenizer.config.image_size == config["image_size"]
    assert generator.tokenizer.config == VQConfig(grid_size=round(config["block_size"] ** 0.5))
    assert sum(p.numel() for p in generator.network.parameters()) == network["n_parameters"]
    # The rotary table is not a weight, and has its values although the network was built on the meta device.
    assert generator.network.rotation.device.type == "cpu"
    assert generator.network.rotation.shape == (config["block_size"], config["head_dim"] // 2, 2)
    exported, exported_tokenizer = write_llamagen(generator)
    assert described(exported) == network["state_dict"]
    assert described(exported_tokenizer) == tokenizer["state_dict"]


@pytest.mark.parametrize("name", ["VQ-16", "VQ-8"])
def test_keys_shapes_and_types_of_the_tokenizers(name: str):
    network, tokenizer = manifest("c2i_GPT-B_256"), manifest(name)
    weights = meta_state_dict(network["state_dict"])
    generator = read_llamagen(weights, meta_state_dict(tokenizer["state_dict"]), num_heads=12)
    published = tokenizer["config"]
    assert generator.tokenizer.config == VQConfig(
        grid_size=16,
        vocab_size=published["codebook_size"],
        code_width=published["codebook_embed_dim"],
        latent_channels=published["z_channels"],
        base_channels=published["ch"],
        channel_multipliers=tuple(published["ch_mult"]),
        num_res_blocks=published["num_res_blocks"],
    )
    assert generator.tokenizer.config.downsampling == published["downsample"]
    assert sum(p.numel() for p in generator.tokenizer.parameters()) == tokenizer["n_parameters"]
    assert described(write_llamagen(generator)[1]) == tokenizer["state_dict"]


@pytest.mark.parametrize("variant", ["c2i", "c2i_gqa", "t2i"])
def test_round_trip(variant: str):
    exported, exported_tokenizer = write_llamagen(golden_llamagen(variant))
    same(exported, llamagen_weights(variant))
    usage = {"quantize.codebook_used": torch.zeros(65536)}
    same(exported_tokenizer, {**vq_weights(), **usage})


@pytest.mark.parametrize("wrapping", ["model", "module", "state_dict", None])
@pytest.mark.parametrize("stray", [False, True])
def test_published_wrappings(tmp_path: Path, wrapping: str | None, stray: bool):
    weights, path, tokenizer_path = dict(llamagen_weights("c2i")), tmp_path / "c2i_B_256.pt", tmp_path / "vq.pt"
    if stray:
        # Extra tensors of old files, and of files saved after sampling.
        weights["freqs_cis"] = torch.zeros(17, 8, 2)
        weights |= {f"layers.{i}.attention.kv_cache.{k}_cache": torch.zeros(8, 4, 24, 16) for i in (0, 1) for k in "kv"}
    training = {"optimizer": {"state": {}}, "steps": 7}
    torch.save(weights if wrapping is None else {wrapping: weights, **training}, path)
    torch.save(vq_weights() if wrapping is None else {wrapping: vq_weights()}, tokenizer_path)
    generator = load(read_state_dict(path), read_state_dict(tokenizer_path))
    same(write_llamagen(generator)[0], llamagen_weights("c2i"))
    golden = llamagen_outputs("c2i")
    logits = generator.logits(llamagen_request("c2i"), golden["tokens"], Settings()).detach()
    torch.testing.assert_close(logits, golden["logits_full"][:, :-1], rtol=0, atol=2e-4)


def test_null_caption_as_a_parameter(tmp_path: Path):
    # As in AR-GRPO's files.
    weights, path = dict(llamagen_weights("t2i")), tmp_path / "t2i.pt"
    weights["cls_embedding.uncond_embedding"] = torch.nn.Parameter(weights["cls_embedding.uncond_embedding"])
    torch.save({"model": weights}, path)
    generator = load(read_state_dict(path), vq_weights())
    assert not generator.network.null_caption.requires_grad
    copy.deepcopy(generator)  # as for a reference model; tensors with a gradient history cannot be copied
    same(write_llamagen(generator)[0], llamagen_weights("t2i"))


@pytest.mark.parametrize("file_format", ["pth", "safetensors"])
@pytest.mark.parametrize("text", [False, True])
def test_files_of_an_export_load_back(tmp_path: Path, file_format: str, text: bool):
    generator = tiny_llamagen(text=text)
    save_model(tmp_path / "model", generator)
    files = export(str(tmp_path / "model"), tmp_path / "out", file_format)
    assert [file.name for file in files] == [f"gpt.{file_format}", f"vq.{file_format}"]
    if file_format == "pth":  # as in the original code
        assert [list(torch.load(file, weights_only=True)) for file in files] == [["model"], ["model"]]
    network, tokenizer = (read_state_dict(file) for file in files)
    read = read_llamagen(network, tokenizer, num_heads=2, grid_size=3, norm_groups=4)
    for ours, theirs in ((generator.network, read.network), (generator.tokenizer, read.tokenizer)):
        same(dict(theirs.state_dict()), dict(ours.state_dict()))
    with bad_input("out", str(files[0])):
        export(str(tmp_path / "model"), tmp_path / "out", file_format)


def test_an_export_takes_no_more_room_than_the_model(tmp_path: Path):
    # Joined tensors are split for the export; no part may be saved with the storage of the whole.
    save_model(tmp_path / "model", tiny_llamagen())
    for file_format in ("pth", "safetensors"):
        file = export(str(tmp_path / "model"), tmp_path / file_format, file_format)[0]
        assert file.stat().st_size < 1.5 * (tmp_path / "model/transformer.safetensors").stat().st_size + 20_000


def test_loaded_weights_are_copies():
    weights = dict(llamagen_weights("c2i"))
    weights = {k: v.float() for k, v in weights.items()}
    generator, before = load(weights, vq_weights()), weights["output.weight"].clone()
    with torch.no_grad():
        generator.network.head.weight.zero_()
        for block in generator.network.blocks:
            for parameter in block.parameters():
                parameter.zero_()
    assert torch.equal(weights["output.weight"], before)
    assert all(tensor.any() for tensor in weights.values())


def without(state_dict: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {k: v for k, v in state_dict.items() if k != key}


@pytest.mark.parametrize(
    "key",
    [
        "cls_embedding.embedding_table.weight",
        "tok_embeddings.weight",
        "layers.0.attention.wqkv.weight",
        "layers.0.feed_forward.w1.weight",
        "layers.1.feed_forward.w3.weight",
        "layers.1.ffn_norm.weight",
        "norm.weight",
        "output.weight",
    ],
)
def test_missing_key(key: str):
    with bad_input("weights", key):
        load(without(llamagen_weights("c2i"), key), vq_weights())


@pytest.mark.parametrize("key", ["cls_embedding.uncond_embedding", "cls_embedding.cap_proj.fc2.weight"])
def test_missing_key_of_a_text_model(key: str):
    for stray in ({}, {"freqs_cis": torch.zeros(8 + 16, 8, 2)}):
        with bad_input("weights", key):
            load({**without(llamagen_weights("t2i"), key), **stray}, vq_weights())


@pytest.mark.parametrize(
    "key", ["quantize.embedding.weight", "encoder.conv_in.weight", "encoder.mid.1.q.weight", "decoder.conv_out.bias"]
)
def test_missing_key_of_the_tokenizer(key: str):
    with bad_input("tokenizer", key):
        load(llamagen_weights("c2i"), without(vq_weights(), key))


def test_unknown_keys():
    extra = {"layers.0.lora.weight": torch.zeros(1)}
    with bad_input("weights", "layers.0.lora.weight"):
        load({**llamagen_weights("c2i"), **extra}, vq_weights())
    with bad_input("tokenizer", "layers.0.lora.weight"):
        load(llamagen_weights("c2i"), {**vq_weights(), **extra})


def test_swapped_files():
    with bad_input("weights", "'norm.weight'"):
        load(vq_weights(), llamagen_weights("c2i"))


@pytest.mark.parametrize(
    "key", ["output.weight", "layers.0.feed_forward.w3.weight", "layers.1.attention.wo.weight", "tok_embeddings.weight"]
)
def test_wrong_shape(key: str):
    weights = dict(llamagen_weights("c2i"))
    expected = tuple(weights[key].shape)
    weights[key] = weights[key][..., :-1]
    with bad_input("weights", key, str(tuple(weights[key].shape)), str(expected)):
        load(weights, vq_weights())


def test_wrong_shape_of_the_tokenizer():
    weights = dict(vq_weights())
    weights["encoder.mid.1.k.weight"] = weights["encoder.mid.1.k.weight"][:-1]
    with bad_input("tokenizer", "encoder.mid.1.k.weight", "(127, 128, 1, 1)"):
        load(llamagen_weights("c2i"), weights)


def test_a_tokenizer_of_another_vocabulary():
    weights = dict(vq_weights())
    weights["quantize.embedding.weight"] = torch.zeros(32, 8)
    with bad_input("weights", "tok_embeddings.weight", "(64, 64)", "(32, 64)"):
        load(llamagen_weights("c2i"), weights)


@pytest.mark.parametrize("num_heads", [3, 64])
def test_wrong_number_of_heads(num_heads: int):
    with bad_input("num_heads", str(num_heads)):
        read_llamagen(llamagen_weights("c2i"), vq_weights(), num_heads=num_heads, grid_size=4)


def test_files_of_another_release():
    weights, tokenizer = (meta_state_dict(manifest(name)["state_dict"]) for name in ("c2i_GPT-B_256", "VQ-16"))
    with bad_input("weights", "depth 12", "llamagen-l-256", "24", "c2i_L_256.pt"):
        built("llamagen-l-256", weights, tokenizer)
    large = meta_state_dict(
        manifest("c2i_GPT-3B_384")["state_dict"]
    )  # same depth as L, and a width that L's number of heads divides
    with bad_input("weights", "width 3200", "llamagen-l-384", "1024", "c2i_L_384.pt"):
        built("llamagen-l-384", large, tokenizer)
    of_classes, of_text = (meta_state_dict(manifest(f"{kind}_GPT-XL_256")["state_dict"]) for kind in ("c2i", "t2i"))
    with bad_input("weights", "condition class", "t2i_XL_stage1_256.pt"):
        built("llamagen-xl-t2i", of_classes, tokenizer)
    with bad_input("weights", "condition text", "c2i_XL_384.pt"):
        built("llamagen-xl-384", of_text, tokenizer)
    with bad_input("weights", "'pos_start'"):
        built("var-d16", weights, tokenizer)
    with bad_input("weights", "'norm.weight'"):
        built("llamagen-l-256", transformer_weights("a"), tokenizer)


@pytest.mark.parametrize("variant", ["c2i", "t2i"])
def test_the_rotary_table_tells_the_grid(variant: str):
    table = llamagen_outputs(variant)["freqs_cis"]
    weights = {**llamagen_weights(variant), "freqs_cis": table}
    assert infer_grid_size(weights, num_heads=4, given=None) == 4
    generator = read_llamagen(weights, vq_weights(), num_heads=4)
    assert (generator.tokenizer.config.grid_size, len(generator.units)) == (4, 16)
    same(write_llamagen(generator)[0], llamagen_weights(variant))
    with bad_input("grid_size", "16", "4×4"):
        read_llamagen(weights, vq_weights(), num_heads=4, grid_size=16)
    # Two heads would fit the width, but not the head width in the table.
    with bad_input("num_heads", "2", "4"):
        read_llamagen(weights, vq_weights(), num_heads=2)
    # Without a table, the grid size is the given one, or 16.
    assert infer_grid_size(llamagen_weights(variant), num_heads=4, given=6) == 6
    assert infer_grid_size(llamagen_weights(variant), num_heads=4, given=None) == 16
    read_llamagen(llamagen_weights(variant), vq_weights(), num_heads=2)


def test_infer_configs():
    config = infer_llamagen_config(llamagen_weights("c2i_gqa"), num_heads=4)
    assert (config.depth, config.width, config.num_kv_heads, config.head_width) == (2, 64, 2, 16)
    assert (config.feed_forward_width, config.num_classes, config.caption_width) == (256, 10, 0)
    config = infer_llamagen_config(llamagen_weights("t2i"), num_heads=4)
    assert (config.num_kv_heads, config.num_classes, config.caption_width, config.num_caption_tokens) == (4, 0, 32, 8)
    assert infer_vq_config(vq_weights("vq8like"), grid_size=6) == VQConfig(
        grid_size=6,
        vocab_size=64,
        latent_channels=32,
        base_channels=32,
        channel_multipliers=(1, 1, 2, 1),
    )
