"""Weight files as people have them: checkpoints of trainers, averages, wrappers, shards, other files."""

import argparse
import json
import pathlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from errors import bad_input
from golden_data import tokenizer_weights, transformer_weights
from torch import Tensor

from sfumato.families import FAMILIES, load_generator, load_published
from sfumato.families.weight_files import read_state_dict

RAW, AVERAGED = (
    {"a.weight": torch.ones(2), "b": torch.zeros(3)},
    {"a.weight": torch.full((2,), 9.0), "b": torch.ones(3)},
)
VAE = {"encoder.conv_in.weight": torch.full((1,), 5.0)}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def same(read: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return read.keys() == expected.keys() and all(torch.equal(read[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "content",
    [
        RAW,
        {"model": RAW},
        {"module": RAW},
        {"state_dict": RAW, "epoch": 3, "loss": torch.tensor(1.0)},
        {"model_state_dict": RAW, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        {"model": RAW, "ema": AVERAGED, "optimizer": {"state": {}, "param_groups": []}, "steps": 5},
        {"ema": AVERAGED, "model": prefixed("module._orig_mod.", RAW)},
        {"trainer": {"var_wo_ddp": RAW, "vae_local": VAE, "var_opt": {"state": {"a": {"exp_avg": torch.ones(2)}}}}},
        {"a.weight": RAW["a.weight"], "b": RAW["b"], "config": {"depth": 2}, "epoch": 3},
        {"net": RAW, "rng": {"cpu": torch.zeros(5)}, "cuda_rng_state": torch.zeros(4, dtype=torch.uint8)},
        prefixed("module.", RAW),
        prefixed("_orig_mod.", RAW),
        prefixed("module._orig_mod.", RAW),
        {"n_averaged": torch.tensor(7), **prefixed("module.", RAW)},
        {"initted": torch.tensor(True), **prefixed("online_model.", RAW), **prefixed("ema_model.", AVERAGED)},
        {"a._orig_mod.weight": RAW["a.weight"], "b": RAW["b"]},
    ],
)
def test_where_state_dicts_are(tmp_path: Path, content: dict[str, Any]):
    torch.save(content, tmp_path / "w.pt")
    assert same(read_state_dict(tmp_path / "w.pt"), RAW)


def test_averages_are_chosen_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "w.pt"
    torch.save({"model": RAW, "ema": AVERAGED}, path)
    assert same(read_state_dict(path), RAW)
    assert "took 'model' (raw)" in capsys.readouterr().err
    assert same(read_state_dict(f"{path}::ema"), AVERAGED)
    assert "took 'ema' (averages)" in capsys.readouterr().err
    with bad_input("weights", str(path), "'best'", "'model'", "'ema'"):
        read_state_dict(f"{path}::best")
    # Under another name, as ema-pytorch and others write them.
    torch.save({**prefixed("online_model.", RAW), **prefixed("ema_model.", AVERAGED)}, path)
    assert same(read_state_dict(f"{path}::ema"), AVERAGED)
    torch.save({"ema_state": {"decay": 0.9, "shadow": AVERAGED}}, path)
    assert same(read_state_dict(path), AVERAGED)
    assert same(read_state_dict(f"{path}::ema"), AVERAGED)
    assert not same(AVERAGED, RAW)


def test_a_file_with_colons_in_its_name(tmp_path: Path):
    torch.save(RAW, tmp_path / "w::ema")
    assert same(read_state_dict(tmp_path / "w::ema"), RAW)


def test_two_networks_are_told_apart(tmp_path: Path):
    path = tmp_path / "w.pt"
    torch.save({"small": RAW, "large": AVERAGED}, path)
    with bad_input("weights", f"{path}::small", f"{path}::large"):
        read_state_dict(path)
    assert same(read_state_dict(f"{path}::large"), AVERAGED)


def test_one_checkpoint_for_transformer_and_tokenizer(tmp_path: Path):
    weights, tokenizer = transformer_weights("a"), tokenizer_weights()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    args = argparse.Namespace(depth=2, out=pathlib.Path("runs/x"), lr=np.float64(1e-4), n=np.int64(3), bf16=np.bool_(1))
    trainer = {"var_wo_ddp": weights, "vae_local": tokenizer, "var_opt": optimizer.state_dict()}
    torch.save({"args": args, "trainer": trainer, "where": pathlib.PureWindowsPath("C:/x")}, tmp_path / "ckpt.pth")
    read, read_tokenizer = (read_state_dict(tmp_path / "ckpt.pth", field) for field in ("weights", "tokenizer"))
    assert same(read, weights)
    assert same(read_tokenizer, tokenizer)
    load_published("var", read, read_tokenizer, patch_nums=(1, 2, 3, 4), num_heads=2)


def test_a_release_from_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    release = replace(
        FAMILIES["var"].releases["var-d16"],
        needed={"patch_nums": (1, 2, 3, 4), "num_heads": 2},
        facts={},
        class_names=lambda: tuple(
            f"c{number}" for number in range(len(transformer_weights("a")["class_emb.weight"]) - 1)
        ),
    )
    monkeypatch.setitem(FAMILIES, "var", replace(FAMILIES["var"], releases={"tiny": release}))
    file, raw = tmp_path / "all.pt", transformer_weights("a")
    doubled = {**raw, "head.weight": raw["head.weight"] * 2}
    torch.save({"model": raw, "ema": prefixed("module.", doubled), "vae": tokenizer_weights()}, file)
    heads = [
        load_generator("tiny", weights=weights, tokenizer=file).network.state_dict()["head.weight"]
        for weights in (file, f"{file}::ema", Path(f"{file}::model"))
    ]
    assert torch.equal(heads[0], raw["head.weight"].float())
    assert torch.equal(heads[1], doubled["head.weight"].float())
    assert torch.equal(heads[2], heads[0])


class Calls:
    """Calls a function when it is unpickled without precautions."""

    def __reduce__(self):
        return print, ("called",)


def test_a_pickle_that_calls_a_function_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"model": RAW, "args": argparse.Namespace(inner=Calls())}, tmp_path / "w.pt")
    with bad_input("weights", str(tmp_path / "w.pt"), "print", "state dict alone"):
        read_state_dict(tmp_path / "w.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype):
    halves, tokenizer = (
        {k: v.to(dtype) for k, v in w.items()} for w in (transformer_weights("a"), tokenizer_weights())
    )
    halves |= {k: v for k, v in transformer_weights("a").items() if k == "lvl_1L"}
    torch.save(halves, tmp_path / "w.pth")
    read = read_state_dict(tmp_path / "w.pth")
    generator = load_published("var", read, tokenizer, patch_nums=(1, 2, 3, 4), num_heads=2)
    assert {p.dtype for p in generator.network.parameters()} == {torch.float32}
    assert torch.equal(generator.network.state_dict()["head.weight"], halves["head.weight"].float())


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_and_folders(tmp_path: Path, suffix: str):
    write: Callable[..., object] = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    for number, name in enumerate(RAW):
        write({name: RAW[name]}, tmp_path / f"model-{number}.{suffix}")
    index = tmp_path / f"model.{suffix}.index.json"
    with bad_input("weights", str(tmp_path), f"model-0.{suffix}", f"model-1.{suffix}"):
        read_state_dict(tmp_path)
    index.write_text(json.dumps({"weight_map": {name: f"model-{n}.{suffix}" for n, name in enumerate(RAW)}}))
    assert same(read_state_dict(index), RAW)
    assert same(read_state_dict(tmp_path), RAW)
    (tmp_path / f"model-1.{suffix}").unlink()
    with bad_input("weights", f"model-1.{suffix}"):
        read_state_dict(tmp_path)
    index.write_text("[]")
    with bad_input("weights", str(index)):
        read_state_dict(index)
    index.unlink()
    assert list(read_state_dict(tmp_path)) == ["a.weight"]
    (tmp_path / f"model-0.{suffix}").unlink()
    with bad_input("weights", str(tmp_path), "no weight file"):
        read_state_dict(tmp_path)


def test_the_first_bytes_tell_the_format(tmp_path: Path):
    safetensors.torch.save_file(RAW, tmp_path / "w.pt")
    torch.save(RAW, tmp_path / "w.safetensors")
    assert same(read_state_dict(tmp_path / "w.pt"), RAW)
    assert same(read_state_dict(tmp_path / "w.safetensors"), RAW)


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        (b"", ("empty",)),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", ("Git LFS", "git lfs pull")),
        (b"\n<!DOCTYPE html>\n<html>", ("web page", "/resolve/")),
        (b"<html><head><title>404</title>", ("web page",)),
        (b"PK\x03\x04 and then nothing", ("truncated",)),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_of_something_else(tmp_path: Path, name: str, content: bytes, pieces: tuple[str, ...]):
    (tmp_path / name).write_bytes(content)
    with bad_input("tokenizer", name, *pieces):
        read_state_dict(tmp_path / name, "tokenizer")
