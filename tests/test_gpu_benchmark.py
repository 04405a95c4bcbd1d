"""The script that accepts a GPU, on the CPU: its measurements at small sizes, its processes and its report."""

import importlib
import json
import pickle
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import LLAMAGEN, TOKENIZER, TRANSFORMER, VQ_TOKENIZER, tiny_config

from sfumato.engine.engine_config import EngineConfig
from sfumato.families import releases
from sfumato.policy import Policy
from sfumato.recipes import TRAIN_RECIPES
from sfumato.settings import Settings
from sfumato.testing import class_request
from sfumato.training.plan import GIB, make_plan

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(BENCHMARKS)
    gpu, measuring, sections = (importlib.import_module(name) for name in ("gpu", "measuring", "sections"))
CPU = torch.device("cpu")
SHAPES = {
    "var-d16": {"transformer": vars(TRANSFORMER), "tokenizer": vars(TOKENIZER)},
    "llamagen-b-256": {"transformer": vars(LLAMAGEN), "tokenizer": vars(VQ_TOKENIZER)},
}
ROWS = """
import os, time
def good():
    yield {"way": "eager", "seconds": 1234.567, "share": None}
    yield {"way": "graphs", "seconds": 0.0123456, "tokens": 12345}
def bad():
    yield {"number": 1}
    raise ValueError("no | memory\\nat all")
def slow():
    yield {"number": 1}
    time.sleep(60)
def dead():
    yield {"number": 1}
    os._exit(3)
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two releases have tiny shapes."""
    real = releases()
    tiny = {}
    for name, shape in SHAPES.items():
        family, release = real[name]
        names = vars(release) | {"shape": shape, "class_names": lambda: ("ant", "bee", "cat", "dog", "elk")}
        tiny[name] = family, type(release)(**names)
    monkeypatch.setattr(measuring, "releases", lambda: tiny)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", SHAPES)
def test_every_layer_of_a_random_release_has_an_effect(name: str):
    torch.manual_seed(0)
    generator = measuring.build_generator(name, CPU)
    policy, request = Policy(generator, Settings()), class_request([0, 1, 2, 3] * 8)
    drawn = policy.sample(request, torch.arange(32))
    logits = generator.logits(request.inputs, drawn.tokens, Settings())
    assert logits.std(-1).mean().item() == pytest.approx(measuring.LOGIT_SPREAD, rel=0.25)
    policy.log_probs(request, drawn.tokens).sum().backward()
    for parameter_name, parameter in generator.network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 1e-4, parameter_name
    with torch.no_grad():
        assert policy.decode(drawn.tokens).std() > 0.01


@pytest.mark.parametrize("model", ["emoji-var", "emoji-llamagen"])
def test_scores_are_compared(model: str):
    rows = list(gpu.compare_scores([model], [None, 2.0], 2, "cpu"))
    assert [(row["model"], row["guidance"]) for row in rows] == [(model, None), (model, 2.0)]
    policy = Policy(measuring.build_generator(model, CPU), Settings(guidance=2.0))
    names = policy.generator.card.class_names
    request = class_request([0, len(names) - 1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        drawn = policy.sample(request, torch.arange(2))
        change = policy.log_probs(request, drawn.tokens) - drawn.log_probs
    expected = (change.abs().mean(), change.abs().max(), change.exp().mean() - 1, drawn.entropy.mean())
    columns = ("mean difference", "max difference", "mean ratio - 1", "entropy")
    for column, value in zip(columns, expected, strict=True):
        assert rows[1][column] == pytest.approx(value.item(), rel=1e-3), column
    assert 0 < rows[1]["mean difference"] < rows[1]["max difference"] < 1


@pytest.mark.parametrize("model", ["emoji-var", "emoji-llamagen"])
def test_phases_are_compared_with_their_plan(model: str, monkeypatch: pytest.MonkeyPatch):
    config = tiny_config(model, groups_per_step=4, group_size=2, minibatch_size=2, sample_batch_size=4)
    plan = make_plan(config)
    monkeypatch.setattr(measuring, "peak_memory", lambda device: 2 * GIB)
    monkeypatch.setattr(gpu, "matmul_peak", lambda device, dtype: {torch.float32: 2e12}[dtype])
    *rows, step = gpu.measure_phases({"tiny": config}, 1, "cpu")
    assert [row["phase"] for row in rows] == ["sample", "decode", "reference", "update"]
    assert [row["images"] for row in rows] == [4, 4, 4, 2]
    total = 0.0
    for row in rows:
        phase, took = plan.phases[row["phase"]], row["seconds"]
        total += took * 8 / row["images"]
        assert row["images/s"] == pytest.approx(row["images"] / took)
        assert row["TFLOP/s"] == pytest.approx(phase.flops / took / 1e12)
        assert row["share of peak"] == pytest.approx(row["TFLOP/s"] / 2)
        assert (row["GiB"], row["planned GiB"]) == (2, pytest.approx(phase.peak / GIB))
        assert row["measured / planned"] == pytest.approx(2 * GIB / phase.peak)
    assert (step["images"], step["seconds"]) == (8, pytest.approx(total))


def test_the_largest_memory_of_each_phase(monkeypatch: pytest.MonkeyPatch):
    peaks, resets = iter([3, 5, 1]), []
    monkeypatch.setattr(measuring, "peak_memory", lambda device: next(peaks))
    monkeypatch.setattr(measuring, "reset_peak_memory", resets.append)
    timer = measuring.MemoryTimer(CPU)
    for phase in ("sample", "decode", "sample"):
        with timer(phase):
            pass
    assert timer.peaks == {"sample": 3, "decode": 5}
    assert resets == [CPU] * 3
    assert timer.seconds.keys() == {"sample", "decode"}


def test_ways_to_draw_are_compared():
    ways = {"eager": gpu.EAGER, "other": EngineConfig(precision="fp32")}
    eager, other = gpu.compare_drawing(["emoji-llamagen"], ways, 2, 1, "cpu")
    assert (eager["way"], other["way"]) == ("eager", "other")
    assert eager["equal tokens"] == 1
    assert 0 < other["equal tokens"] < 1  # other arithmetic, so some tokens differ
    assert eager["images/s"] == pytest.approx(2 / eager["seconds"])
    assert eager["ms per token"] == pytest.approx(eager["seconds"] * 1000 / 64)


def test_training_ends_at_the_target():
    config = tiny_config("emoji-var", groups_per_step=1, group_size=4, sample_batch_size=4)
    rows = list(gpu.train_until(config, 0.1, (0, 1), "cpu"))  # of the mean brightness: met by the first images
    assert [(row["seed"], row["steps"]) for row in rows] == [(0, 1), (1, 1)]
    assert 0.1 < rows[0]["share"] != rows[1]["share"]
    assert rows[0]["images/s"] == pytest.approx(4 / rows[0]["seconds"])


def test_a_target_that_is_missed_is_an_error():
    config = tiny_config("emoji-var", groups_per_step=1, group_size=4, sample_batch_size=4)
    rows = gpu.train_until(config, 1.1, (0,), "cpu")
    assert next(rows)["steps"] == config.steps
    with pytest.raises(RuntimeError, match=r"seed 0: .* after 2 steps, below 110%"):
        next(rows)


@pytest.mark.parametrize(
    ("output", "status", "row", "error"),
    [
        ("..s\n2 passed, 1 skipped in 3s", 0, (2, 0, 1), ""),
        ("sss\n3 skipped in 3s", 0, (0, 0, 3), "3 skipped in 3s"),
        (".F\nFAILED a.py::b - no\n1 failed, 1 passed in 3s", 1, (1, 1, 0), "1 failed, 1 passed in 3s; FAILED a.py::b"),
        ("", 4, (0, 0, 0), "nothing"),
    ],
)
def test_tests_count(
    output: str, status: int, row: tuple[int, int, int], error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    done = SimpleNamespace(stdout=output, stderr="", returncode=status)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: done)
    rows = gpu.run_tests(tmp_path, 1.0)
    assert next(rows) == dict(zip(("passed", "failed", "skipped"), row, strict=True))
    if error:
        with pytest.raises(RuntimeError, match=f"^{error}"):
            next(rows)
    else:
        assert list(rows) == []


def test_the_tests_for_a_gpu_are_skipped_without_one():
    rows = gpu.run_tests(gpu.ROOT / "tests/cuda", 300.0)
    counts = next(rows)
    assert (counts["passed"], counts["failed"]) == (0, 0)
    assert counts["skipped"] > 20
    with pytest.raises(RuntimeError, match="skipped"):
        next(rows)


@pytest.fixture
def rows_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that makes a section from a name in ROWS, which other processes can import."""
    (tmp_path / "made_rows.py").write_text(ROWS)
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("made_rows")
    return lambda name, limit=60.0: sections.Section(title=name, rows=getattr(module, name), limit=limit, note="Note.")


def test_a_failing_section_does_not_stop_the_others(rows_of: Callable[..., Any], tmp_path: Path):
    named = {name: rows_of(name) for name in ("bad", "dead", "good")} | {"slow": rows_of("slow", 5.0)}
    assert sections.accept(named, "a machine", "a command", tmp_path) == 1
    values = json.loads((tmp_path / "gpu.json").read_text())
    assert (values["machine"], values["command"]) == ("a machine", "a command")
    errors = {name: values[name]["error"] for name in named}
    assert errors == {
        "bad": "ValueError: no | memory",
        "dead": "its process ended with status 3",
        "good": "",
        "slow": "not finished after 5 s",
    }
    assert [values[name]["rows"] for name in ("bad", "dead", "slow")] == [[{"number": 1}]] * 3
    assert 5 <= values["slow"]["seconds"] < 30
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("# Acceptance on a GPU\n\n    a command\n\na machine\n\n## bad\n\nNote.\n\n| number |\n")
    assert "| way | seconds | share | tokens |\n| --- | --- | --- | --- |\n| eager | 1235 |  |  |\n" in page
    assert "| graphs | 0.0123 |  | 12345 |\n" in page
    assert page.count("**Failed** after") == 3
    assert "`ValueError: no | memory`" in page


def test_success(rows_of: Callable[..., Any], tmp_path: Path):
    assert sections.accept({"good": rows_of("good")}, "a machine", "a command", tmp_path) == 0
    assert "Failed" not in (tmp_path / "gpu.md").read_text()


@pytest.mark.parametrize("quick", [False, True])
def test_the_sections_name_what_exists(quick: bool):
    named = gpu.build_sections(quick, "cuda:0")
    assert tuple(named) == gpu.Name.__args__
    assert sum(section.limit for section in named.values()) <= 600
    for section in named.values():
        assert pickle.loads(pickle.dumps(section.rows)).args == section.rows.args  # for another process
    models, *_ = named["mismatch"].rows.args
    drawn, ways, *_ = named["drawing"].rows.args
    assert {*models, *drawn} <= releases().keys()
    assert ("CUDA graphs, compiled" in ways) != quick
    for config in (*named["phases"].rows.args[0].values(), named["dark"].rows.args[0]):
        config.validate()
    dark, original = named["dark"].rows.args[0], TRAIN_RECIPES["emoji-dark"].build()
    updates = [c.images_per_step / c.minibatch_size for c in (dark, original)]
    assert updates[0] == updates[1]
    assert replace(dark.engine, micro_batch_size=original.engine.micro_batch_size) == original.engine


def test_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(gpu.Arguments()) == 2
    assert "there is no GPU" in capsys.readouterr().err


def test_some_sections_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    calls = []
    machine = SimpleNamespace(name="H100", total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: machine)
    monkeypatch.setattr(gpu, "accept", lambda *arguments: calls.append(arguments) or 1)
    assert gpu.main(gpu.Arguments(only=("dark", "tests"))) == 1
    ((named, description, command, folder),) = calls
    assert tuple(named) == ("tests", "dark")
    assert description.startswith(f"H100, 80 GiB, torch {torch.__version__}, ")
    assert command.startswith("python benchmarks/gpu.py")
    assert folder == BENCHMARKS
