"""Infinity's published checkpoints: every key and shape of the releases, wrappings, round trips, rejected files."""

import json
from pathlib import Path

import pytest
import torch
from errors import bad_input
from golden_data import GOLDEN, INFINITY_META, golden_infinity, infinity_data, vq_weights
from safetensors.torch import save_file
from tiny import tiny_infinity
from torch import Tensor

from sfumato.families import load_generator, releases
from sfumato.families.exporting import export
from sfumato.families.fetching import fetch
from sfumato.families.infinity.generator import Infinity
from sfumato.families.infinity.network import InfinityConfig
from sfumato.families.infinity.published import read_infinity, write_infinity
from sfumato.families.infinity.schedules import schedule
from sfumato.families.library import build_release, save_model
from sfumato.families.weight_files import read_state_dict

RELEASES = {
    "infinity-125m-256": ("infinity_layer12_125M_d16", "infinity_vae_d16", 7),
    "infinity-2b-1024": ("infinity_2b_d32", "infinity_vae_d32", 13),
    "infinity-8b-512": ("infinity_8b_d56_patchify", "infinity_vae_d56_f8_14_patchify", 10),
    "infinity-8b-1024": ("infinity_8b_d56_patchify", "infinity_vae_d56_f8_14_patchify", 13),
}
BITS = {
    "infinity-125m-256": 8_336,
    "infinity-2b-1024": 336_672,
    "infinity-8b-512": 141_176,
    "infinity-8b-1024": 589_176,
}
"""Number of bits in an image."""


def manifest(name: str) -> dict:
    return json.loads((GOLDEN / f"manifests/{name}.json").read_text())


def meta_state_dict(shapes: dict) -> dict[str, Tensor]:
    """Return tensors of these shapes and types that use no memory."""
    return {k: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for k, (shape, kind) in shapes.items()}


def described(state_dict: dict[str, Tensor]) -> dict:
    return {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state_dict.items()}


def load(network: dict[str, Tensor], tokenizer: dict[str, Tensor], variant: str = "p") -> Infinity:
    shape = INFINITY_META[variant]
    return read_infinity(
        network, tokenizer, num_heads=shape["generator"]["heads"], scales=shape["schedule"], rotary_grid=(64, 64)
    )


def weights(variant: str = "p") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return dict(infinity_data(f"{variant}_weights")), dict(infinity_data(f"{variant}_vae_weights"))


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        expected = tensor.float() if tensor.is_floating_point() else tensor
        torch.testing.assert_close(ours[key], expected, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("name", RELEASES)
def test_keys_shapes_and_types_of_the_releases(name: str):
    network, tokenizer, count = (*map(manifest, RELEASES[name][:2]), RELEASES[name][2])
    family, release = releases()[name]
    generator = build_release(
        name, family, release, meta_state_dict(network["state_dict"]), meta_state_dict(tokenizer["state_dict"])
    )
    assert isinstance(generator, Infinity)
    config, published = network["config"], tokenizer["config"]
    assert generator.config == InfinityConfig(
        depth=config["depth"],
        width=config["width"],
        num_heads=config["heads"],
        feed_forward_width=config["ffn_hidden"],
        caption_width=config["text_channels"],
        num_caption_tokens=config["text_maxlen"],
        rotary_grid=(64, 64),
        block_chunks=config["block_chunks"],
        norm_eps=config["norm_eps"],
    )
    assert generator.config.pooling_heads == config["text_pool_heads"]
    shape = generator.tokenizer.config
    assert (shape.latent_channels, shape.bits) == (published["d"], config["bits_per_token"])
    assert (shape.base_channels, shape.num_res_blocks) == (published["base_channels"], published["num_res_blocks"])
    assert shape.channel_multipliers == tuple(published["channel_multipliers"])
    assert shape.downsampling == published["stride"]
    assert (shape.token_patch == 2) == config["patchify"] == published["patchify"]
    assert shape.image_size == (int(name.rpartition("-")[2]),) * 2
    assert generator.units == tuple(h * w * shape.bits for h, w in schedule("1.0", count))
    assert sum(generator.units) == BITS[name]
    assert sum(p.numel() for p in generator.network.parameters()) == network["n_parameters"]
    assert sum(p.numel() for p in generator.tokenizer.parameters()) == tokenizer["n_parameters"]
    assert generator.card.class_names == ()
    assert generator.card.settings == release.settings
    # The rotary table is not a weight, and has its values although the network was built on the meta device.
    assert generator.network.rotation.device.type == "cpu"
    exported, exported_tokenizer = write_infinity(generator)
    assert described(exported) == network["state_dict"]
    assert described(exported_tokenizer) == tokenizer["state_dict"]


@pytest.mark.parametrize("variant", ["p", "a"])
def test_round_trip(variant: str):
    exported, exported_tokenizer = write_infinity(golden_infinity(variant))
    network, tokenizer = weights(variant)
    same(exported, network)
    same(exported_tokenizer, tokenizer)


@pytest.mark.parametrize("wrapping", ["bare", "trainer", "folder", "safetensors folder"])
def test_published_wrappings(tmp_path: Path, wrapping: str):
    network, tokenizer = weights()
    path = tmp_path / "infinity.pth"
    if wrapping == "bare":
        torch.save(network, path)
    elif wrapping == "trainer":
        torch.save({"epoch": 1, "trainer": {"gpt_fsdp": network, "gpt_opt": {"state": {}}}}, path)
    else:
        path, half = tmp_path / "infinity_8b_weights", len(network) // 2
        path.mkdir()
        torch_files = wrapping == "folder"
        stem, ending = ("pytorch_model", "bin") if torch_files else ("model", "safetensors")
        shards = {f"{stem}-{i:05}-of-00002.{ending}": dict(part) for i, part in enumerate(_halves(network, half), 1)}
        for name, tensors in shards.items():
            (torch.save if torch_files else lambda content, file: save_file(content, file))(tensors, path / name)
        index = {"weight_map": {key: name for name, tensors in shards.items() for key in tensors}}
        (path / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    torch.save({"vae": tokenizer}, tmp_path / "vae.pth")
    generator = load(read_state_dict(path), read_state_dict(tmp_path / "vae.pth", "tokenizer"))
    same(write_infinity(generator)[0], weights()[0])
    same(write_infinity(generator)[1], weights()[1])


def _halves(tensors: dict[str, Tensor], half: int) -> list[list[tuple[str, Tensor]]]:
    items = list(tensors.items())
    return [items[:half], items[half:]]


def test_the_folder_of_a_sharded_release_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    folder = fetch("FoundationVision/Infinity", "infinity_8b_weights/", "weights")
    assert Path(folder) == tmp_path / "infinity_8b_weights"
    assert asked == [("FoundationVision/Infinity", ["infinity_8b_weights/*"])]


def test_names_without_chunks_and_without_suffixes():
    network, tokenizer = weights()
    plain = {
        k.replace("block_chunks.0.module.0.", "blocks.0.").replace("block_chunks.1.module.0.", "blocks.1."): v
        for k, v in network.items()
    }
    short = {
        k.replace(".conv.weight", ".weight").replace(".conv.bias", ".bias").replace(".norm.", "."): v
        for k, v in tokenizer.items()
    }
    assert plain.keys() != network.keys()
    assert short.keys() != tokenizer.keys()
    generator = load(plain, short)
    assert generator.config.block_chunks == 1
    exported, exported_tokenizer = write_infinity(generator)
    same(exported, plain)
    same(exported_tokenizer, tokenizer)  # always written with them


@pytest.mark.parametrize("file_format", ["pth", "safetensors"])
def test_files_of_an_export_load_back(tmp_path: Path, file_format: str):
    generator = tiny_infinity()
    save_model(tmp_path / "model", generator)
    files = export(str(tmp_path / "model"), tmp_path / "out", file_format)
    assert [file.name for file in files] == [f"infinity.{file_format}", f"vae.{file_format}"]
    if file_format == "pth":  # as in the original code
        assert list(torch.load(files[1], weights_only=True)) == ["vae"]
        assert "cfg_uncond" in torch.load(files[0], weights_only=True)
    network, tokenizer = (
        read_state_dict(file, field) for file, field in zip(files, ("weights", "tokenizer"), strict=True)
    )
    read = read_infinity(
        network,
        tokenizer,
        num_heads=2,
        scales=((1, 1), (2, 2), (3, 3)),
        rotary_grid=(3, 3),
        norm_groups=4,
        text_encoder="",
    )
    assert read.config == generator.config
    for ours, theirs in ((generator.network, read.network), (generator.tokenizer, read.tokenizer)):
        same(dict(theirs.state_dict()), dict(ours.state_dict()))


def test_missing_and_unknown_keys():
    # The published loader is not strict: it would leave initial weights in the model, and draw noise.
    network, tokenizer = weights()
    del network["block_chunks.1.module.0.ca.v_bias"]
    with bad_input("weights", "block_chunks.1.module.0.ca.v_bias", "1 keys are missing"):
        load(network, tokenizer)
    network, tokenizer = weights()
    with bad_input("weights", "extra", "1 are unknown"):
        load({**network, "extra": torch.zeros(1)}, tokenizer)
    with bad_input("tokenizer", "decoder.extra.weight"):
        load(network, {**tokenizer, "decoder.extra.conv.weight": torch.zeros(1)})
    network["head.weight"] = network["head.weight"][:-1]
    with bad_input("weights", "head.weight", "(39, 48)"):
        load(network, tokenizer)


def test_files_of_another_model():
    network, tokenizer = weights("p")[0], weights("a")[1]
    with bad_input("tokenizer", "8 channels", "20 bits", "with 5"):
        load(network, tokenizer)
    with bad_input("weights", "'word_embed.weight'"):
        load(vq_weights(), tokenizer)
    small = [meta_state_dict(manifest(name)["state_dict"]) for name in RELEASES["infinity-125m-256"][:2]]
    family, release = releases()["infinity-2b-1024"]
    with bad_input("weights", "depth 12", "infinity-2b-1024", "32", "infinity_2b_reg.pth"):
        build_release("infinity-2b-1024", family, release, *small)


def test_a_release_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`--model infinity-... --weights FILE --tokenizer FILE`, with the golden model in the place of the release."""
    family, release = releases()["infinity-125m-256"]
    shape = INFINITY_META["p"]
    needed = {"num_heads": shape["generator"]["heads"], "scales": shape["schedule"], "rotary_grid": (64, 64)}
    small = type(release)(**{**vars(release), "needed": needed, "facts": {"depth": 2, "width": 48, "bits": 20}})
    monkeypatch.setitem(family.releases, "infinity-125m-256", small)  # pyright: ignore[reportArgumentType]
    network, tokenizer = weights()
    torch.save(network, tmp_path / "infinity.pth")
    torch.save({"vae": tokenizer}, tmp_path / "vae.pth")
    generator = load_generator("infinity-125m-256", weights=tmp_path / "infinity.pth", tokenizer=tmp_path / "vae.pth")
    same(write_infinity(generator)[0], network)  # pyright: ignore[reportArgumentType]
    assert generator.card.settings.guidance == 4.0
