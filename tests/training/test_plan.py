"""Plans of runs: their memory against that of real tensors, their work against that of whole runs, and the command."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from errors import bad_input
from tiny import tiny_config

from sfumato.cli.main import main
from sfumato.engine.fake_kernels import FusedNorm
from sfumato.engine.meter import Meter, Phase
from sfumato.engine.process import Process
from sfumato.families import load_generator
from sfumato.objectives import GRPO
from sfumato.recipes import TRAIN_RECIPES
from sfumato.training import plan as planning
from sfumato.training.plan import GIB, Plan, find_remedies, make_plan, measure, require_fit, run_phases
from sfumato.training.train_config import TrainConfig


def bundled(model: str, **changes: Any) -> TrainConfig:
    return tiny_config(model, groups_per_step=4, minibatch_size=16, **changes)


@pytest.mark.parametrize("model", ["emoji-var", "emoji-llamagen", "emoji-t2i"])
def test_memory_is_that_of_real_tensors(model: str, monkeypatch: pytest.MonkeyPatch):
    """The fake GPU against the same phases on the CPU, where tensors are real and all units are drawn.

    They differ in kernels of attention and in caches, whose length is rounded up on a GPU.
    """
    # On the CPU, a norm is several kernels that keep more than the one of a GPU.
    monkeypatch.setattr(torch.nn.RMSNorm, "forward", lambda self, x: FusedNorm.apply(x, self.weight))
    config, cpu = bundled(model, guidance=2.0, cuda_graphs=False), torch.device("cpu")
    planned = make_plan(config)
    monkeypatch.setattr(planning, "EXECUTED", 1000)
    with Meter(cpu) as meter:
        generator = load_generator(model)
        meter.add(generator.network)
        meter.add(generator.tokenizer)
        if model == "emoji-t2i":
            generator.reader.use_zeros()  # pyright: ignore[reportAttributeAccessIssue]
        real = run_phases(config, generator, meter, cpu, 1, drawing=True, updating=True)
    assert planned.static == pytest.approx(real["static"], rel=0.005)
    for name, phase in real["phases"].items():
        # A text model reads each caption once; the plan assumes that all are different.
        rel = 0.1 if (model, name) == ("emoji-t2i", "sample") else 0.02
        assert planned.phases[name].peak == pytest.approx(phase.peak, rel=rel), name


def test_an_excerpt_counts_all_units(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sfumato.families.next_token_generator.key_block", lambda device: 1)  # work grows linearly
    config = bundled("emoji-llamagen", guidance=2.0, sample_batch_size=2, cuda_graphs=False)
    excerpt = measure(config, 1, drawing=True, updating=False)["phases"]["sample"]
    monkeypatch.setattr(planning, "EXECUTED", 1000)
    whole = measure(config, 1, drawing=True, updating=False)["phases"]["sample"]
    assert (excerpt.kernels, excerpt.flops) == (whole.kernels, whole.flops)
    assert excerpt.peak == pytest.approx(whole.peak, abs=64 * 3 * 512)  # without the results of each unit


def test_graphs_count_all_units_and_keep_their_memory():
    graphs = make_plan(bundled("emoji-llamagen", precision="bf16", guidance=2.0))
    plain = make_plan(bundled("emoji-llamagen", precision="bf16", guidance=2.0, cuda_graphs=False))
    # 64 keys are read for each token, so operations do not grow linearly, as assumed without graphs.
    assert graphs.phases["sample"].flops == pytest.approx(plain.phases["sample"].flops, rel=0.01)
    assert graphs.phases["sample"].kernels == pytest.approx(plain.phases["sample"].kernels, rel=0.1)
    copied = graphs.static["reference"] - plain.static["reference"]  # the network that draws
    kept = graphs.phases["update"].peak - plain.phases["update"].peak - copied
    rows, keys, width, depth = 2 * 8, 64, 192, 6
    assert kept == pytest.approx(rows * keys * width * depth * 2 * 2, rel=0.05)  # keys and values of 2 bytes


def test_micro_batches_count_as_often_as_they_run():
    four, two, one = (
        measure(bundled("emoji-var", micro_batch_size=size), 1, drawing=False, updating=True)["phases"]["update"]
        for size in (4, 8, 16)
    )
    assert four.kernels == one.kernels + 3 * (two.kernels - one.kernels)
    assert four.flops == two.flops == one.flops


def test_needed_memory():
    phases = {"sample": Phase(peak=10 * GIB), "update": Phase(peak=20 * GIB)}
    plan = Plan(static={}, phases=phases, processes=1, reward_memory=2.0 * GIB)
    assert plan.peak == 20 * GIB
    assert plan.needed("update") == (21 + 1.5 + 2) * GIB
    assert dataclasses.replace(plan, processes=2).needed("update") == (21 + 1.5 + 1 + 2) * GIB
    assert plan.too_large(24.5 * GIB) == []
    assert plan.too_large(24.4 * GIB) == ["update"]
    assert plan.too_large(13 * GIB) == ["sample", "update"]


def test_sharding_divides_what_lasts():
    config = bundled("emoji-var", precision="bf16", micro_batch_size=2, sharding="full")
    static = {"weights": 800, "tokenizer": 100, "reference": 400, "gradients": 800, "optimizer": 1600}
    phases = {name: Phase(peak=10_000) for name in ("sample", "decode", "update")}
    planning.divide(static, phases, config, 4, in_use=40)
    assert static == {"weights": 200, "tokenizer": 100, "reference": 100, "gradients": 200, "optimizer": 400}
    others = 600 + 300 + 1200
    peaks = {name: phase.peak for name, phase in phases.items()}
    assert peaks == {"sample": 10_400 - others, "decode": 10_020 - others, "update": 10_020 - others - 600}


def test_processes_share_the_images():
    config = bundled("emoji-var", group_size=8, sample_batch_size=64)  # 32 images
    alone, shared = make_plan(config), make_plan(config, processes=4)
    assert shared.static == alone.static
    assert shared.phases["sample"].flops * 4 == alone.phases["sample"].flops
    assert shared.phases["update"].flops * 4 == alone.phases["update"].flops


def test_no_reference_and_averages():
    plan = make_plan(bundled("emoji-var", objective=GRPO(kl_weight=0.0)))
    assert plan.static["reference"] == 0
    assert plan.phases.keys() == {"sample", "decode", "update"}
    averaged = make_plan(bundled("emoji-var", objective=GRPO(kl_weight=0.0), ema_decay=0.9))
    assert averaged.static["reference"] == pytest.approx(plan.static["weights"], rel=0.01)


def test_remedies_fit():
    config = bundled("emoji-var", micro_batch_size=16, group_size=16, sample_batch_size=64)
    plan = make_plan(config)
    memory = plan.needed("sample") - 1
    assert plan.too_large(memory) == ["sample", "update"]
    remedies = find_remedies(config, plan, memory)
    assert [remedy.keys() for remedy in remedies] == [
        {"sample_batch_size", "micro_batch_size"},
        {"sample_batch_size", "activation_checkpointing"},
    ]
    assert remedies[0]["sample_batch_size"] == 32
    for remedy in remedies:
        assert make_plan(planning.changed(config, remedy)).too_large(memory) == []
    assert find_remedies(config, plan, 1.5 * GIB) == []


def test_train_refuses_what_does_not_fit(monkeypatch: pytest.MonkeyPatch):
    config, process = bundled("emoji-var", micro_batch_size=16), Process(rank=0, count=1, device=torch.device("cuda"))
    needed = make_plan(config).needed("update")

    def of_size(memory: float) -> None:
        properties = SimpleNamespace(total_memory=int(memory))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    of_size(needed + 1)
    require_fit(config, process)
    of_size(needed - 2**20)
    with bad_input("micro_batch_size", "'update' needs", "--micro-batch-size 8, or --activation-checkpointing 1"):
        require_fit(config, process)


def test_command(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "emoji-dark"]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("sample", "decode", "reference", "update", "--reward-memory", "Fits 80 GiB"))
    assert main(["plan", "emoji-dark", "--memory", "2", "--sample-batch-size", "8", "--json"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["fits"] is False
    assert values["phases"].keys() == {"sample", "decode", "reference", "update"}
    assert values["phases"]["update"]["peak_gib"] > values["phases"]["sample"]["peak_gib"] > 0.05
    assert values["phases"]["update"]["kernels"] > 500
    assert values["phases"]["update"]["tflop"] > 0.01
    assert {"activation_checkpointing": 1} in values["remedies"]


@pytest.mark.parametrize(
    "options", [["--memory", "-1"], ["--gpus", "0"], ["--gpus", "3"], ["--model", "nothing"], ["--stepz", "3"]]
)
def test_bad_input_to_the_command(options: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "emoji-dark", *options]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("recipe", ["var-d16-bright", "llamagen-b-256", "llamagen-xl-t2i"])
def test_recipes_of_released_models_fit(recipe: str):
    assert make_plan(TRAIN_RECIPES[recipe].build()).too_large(80 * GIB) == []


def test_options_that_save_memory():
    plain = make_plan(bundled("emoji-var", precision="bf16"))
    small = make_plan(bundled("emoji-var", precision="bf16", optimizer="adamw8bit"))
    adapters = make_plan(bundled("emoji-var", precision="bf16", lora_rank=4))
    numbers = plain.static["gradients"] / 4
    assert plain.static["optimizer"] == pytest.approx(8 * numbers, rel=0.01)
    assert small.static["optimizer"] == pytest.approx(2.03 * numbers, rel=0.01)
    assert small.phases["update"].peak < plain.phases["update"].peak - 5 * numbers
    assert adapters.static["gradients"] < 0.1 * plain.static["gradients"]
    assert adapters.static["reference"] == 0
    assert adapters.static["weights"] < 0.7 * plain.static["weights"]  # frozen linear layers are in bfloat16
