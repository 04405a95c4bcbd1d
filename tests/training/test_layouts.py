"""Replicated and sharded runs on 4, 2 and 1 processes: the same numbers, and one run that goes through all of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import run_module
from run_folders import metrics_of
from several_runs import run
from tiny import (
    prompt_tokenizer,
    tiny_infinity,
    tiny_janus,
    tiny_llamagen,
    tiny_simplear,
    tiny_switti,
    tiny_var,
)

from sfumato.families.library import load_generator, save_model

RATES = {"learning_rate": 1e-3, "final_learning_rate": 1e-3}
READERS = ("infinity", "switti", "janus", "simplear")
"""Families that read captions; four processes, which all import transformers, are too many for them here."""
CASES: dict[str, dict[str, Any]] = {
    "var-dense": {"model": "var"},
    "var-full": {"model": "var", "sharding": "full", "ema_decay": 0.5},
    "var-hybrid": {"model": "var", "sharding": "hybrid", "activation_checkpointing": 1},
    "var-adapters": {"model": "var", "sharding": "full", "lora_rank": 2, "ema_decay": 0.5},
    "llamagen-full": {"model": "llamagen", "sharding": "full", "guidance": 1.5},
    "llamagen-adapters": {"model": "llamagen", "lora_rank": 2},
    **{
        f"{family}-full": {"model": family, "sharding": "full", "guidance": 2.0, "prompts": "emoji-captions"}
        for family in READERS
    },
}
"""Runs by name: their model, and how their config differs from the tiny one."""
HALF = {"model": "llamagen", "sharding": "full", "precision": "bf16", "gather_for_rollouts": False}


def case(models: Path, name: str, steps: int, *, resume: bool, local: int | None = None) -> dict[str, Any]:
    """Return the arguments of `several_runs.run`."""
    changes = {**CASES.get(name, HALF), **RATES, "steps": steps, "save_every": 1, "sample_every": 3}
    model = str(models / changes.pop("model"))
    return {"name": name, "model": model, "changes": changes, "resume": resume, "local": local}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders of runs of three steps: on one process, and on four (not those of READERS), then two, then one."""
    models, one, several = (tmp_path_factory.mktemp(name) for name in ("models", "one", "several"))
    save_model(models / "var", tiny_var())
    save_model(models / "llamagen", tiny_llamagen())
    save_model(models / "infinity", tiny_infinity(words=True))
    save_model(models / "switti", tiny_switti())
    save_model(models / "janus", tiny_janus(prompt_tokenizer(models)))
    save_model(models / "simplear", tiny_simplear(prompt_tokenizer(models)))
    for count, steps in ((4, 1), (2, 2)):
        launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
        names = [name for name in (*CASES, "half") if count < 4 or name.partition("-")[0] not in READERS]
        cases = [case(models, name, steps, resume=(several / name).exists(), local=2) for name in names]
        script = str(Path(__file__).parents[1] / "several_runs.py")
        result = run_module(*launcher, script, str(several), *map(json.dumps, cases))
        assert result.returncode == 0, result.stderr
    for name in (*CASES, "half"):
        run(several, **case(models, name, 3, resume=True))
        run(one, **case(models, name, 3, resume=False))
    return {"one": one, "several": several}


@pytest.mark.parametrize("name", CASES)
def test_numbers_do_not_depend_on_processes(runs: dict[str, Path], name: str):
    lines, others = (metrics_of(runs[kind] / name) for kind in ("one", "several"))
    assert len(lines) == 3
    for line, other in zip(lines, others, strict=True):
        assert line.keys() == other.keys()
        for metric, value in line.items():
            if not metric.startswith(("seconds/", "images_per_second", "peak_memory")):
                assert other[metric] == pytest.approx(value, rel=1e-4, abs=2e-5), (line["step"], metric)


@pytest.mark.parametrize("name", CASES)
def test_weights_do_not_depend_on_processes(runs: dict[str, Path], name: str):
    for weights in (None, "ema") if "ema_decay" in CASES[name] else (None,):
        ours, theirs = (load_generator(runs[kind] / name, weights=weights).network.state_dict() for kind in runs)
        # An update changes weights by 1e-3; Switti's, after three, differ by up to 1.1e-5.
        assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) < (2e-5 if "switti" in name else 1e-5)


@pytest.mark.parametrize("name", ["var-full", "var-hybrid", "llamagen-full"])
def test_sharded_checkpoints_hold_no_whole_network(runs: dict[str, Path], name: str):
    checkpoint = runs["several"] / name / "checkpoints/step-000002"
    assert {path.name for path in checkpoint.iterdir()} == {"model", "shards", "engine.pt", "state.pt"}
    assert {path.name for path in (checkpoint / "model").iterdir()} == {"config.json", "tokenizer.safetensors"}
    # Replicas of a hybrid layout are written once.
    assert len(list((checkpoint / "shards").glob("*.distcp"))) == 2


def test_adapters_are_small(runs: dict[str, Path]):
    model = runs["several"] / "var-adapters/checkpoints/step-000003/model"
    files = {path.name for path in model.iterdir()}
    assert files == {"config.json", "tokenizer.safetensors", "adapter.safetensors", "adapter_ema.safetensors"}


def test_half_precision_gathers_half(runs: dict[str, Path]):
    """Blocks compute with weights that were rounded before they were gathered; masters stay in float32."""
    ours, theirs = (load_generator(runs[kind] / "half").network.state_dict() for kind in runs)
    start = tiny_llamagen().network.state_dict()
    learned = sum((ours[key] - start[key]).square().sum().item() for key in ours)
    apart = sum((ours[key] - theirs[key]).square().sum().item() for key in ours)
    assert learned > 0.001
    assert apart < 0.4 * learned  # rounding turns small gradients around, and Adam makes them as large as others
    lines, others = (metrics_of(runs[kind] / "half") for kind in runs)
    assert others[0]["entropy"] == pytest.approx(lines[0]["entropy"], rel=1e-2)
