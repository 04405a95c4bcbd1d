"""Each rule on a made-up run that has its trouble, and none on a healthy one."""

from pathlib import Path
from typing import Any

import pytest
from made_runs import write_run

from sfumato.cli.doctor import PAGE
from sfumato.cli.main import main
from sfumato.training.diagnosis import examine

CONFIG = {"groups_per_step": 4, "model": "emoji-var"}


def healthy(steps: int = 8, **changes: Any) -> list[dict[str, float]]:
    """Return metrics of a run that learns; a change is a number, or a function of the step from 0 to 1."""
    rows = []
    for step in range(steps):
        progress = step / (steps - 1)
        row = {
            "step": step + 1, "reward_mean": 0.2 + 0.5 * progress, "reward_std": 0.2, "equal_groups": 0.1,
            "kl": 0.1 * progress, "entropy": 2.0 - 0.5 * progress, "clip_fraction": 0.05, "mismatch/mean": 0.001,
            "unscored": 0.0,
        }  # fmt: skip
        rows.append({**row, **{k.replace("__", "/"): v(progress) if callable(v) else v for k, v in changes.items()}})
    return rows


TROUBLES: dict[str, tuple[dict[str, Any], str, str]] = {
    "equal groups": ({"equal_groups": 0.8}, "80% of the groups", "--group-size"),
    "met already": (
        {"equal_groups": 1.0, "reward_std": 0.0, "reward_mean": 1.0, "kl": 0.0},
        "has the reward 1",
        "met already",
    ),
    "runaway": ({"kl": lambda t: 3 * t}, "nats per token", "kl-weight"),
    "collapse": ({"entropy": lambda t: 2.0 - 1.9 * t}, "entropy fell to", "--temperature"),
    "no gain": ({"kl": lambda t: 0.7 * t, "reward_mean": 0.5}, "did not rise (0.5 to 0.5)", "--learning-rate"),
    "clipping": ({"clip_fraction": 0.5}, "50% of the tokens", "--minibatch-size"),
    "mismatch": ({"mismatch__mean": 0.2}, "0.2 nats per token", "--recompute-log-probs"),
    "flat": ({"reward_std": 0.001}, "hardly differ", "sfumato report"),
    "unscored": ({"unscored": 0.08}, "8% of the images", "NaN"),
}
"""Changes of a healthy run, and pieces of the cause and of the advice."""


@pytest.mark.parametrize("name", TROUBLES)
def test_a_trouble_is_the_first_finding(name: str):
    changes, cause, advice = TROUBLES[name]
    findings = examine(healthy(**changes), CONFIG)
    assert cause in findings[0].cause
    assert advice in findings[0].advice
    assert len(findings) == 1


def test_a_healthy_run_has_no_findings():
    assert examine(healthy(), CONFIG, conditions=16) == []
    assert examine(healthy(3, equal_groups=1.0), CONFIG) == []  # too few steps to say


def test_conditions_that_never_come_twice():
    (finding,) = examine(healthy(), CONFIG, conditions=17)
    assert "drew 32 times from 17" in finding.cause
    assert "--classes" in finding.advice


def test_metrics_of_version_0_1_and_numbers_that_are_not():
    rows = [{"step": n, "reward_mean": 0.5, "reward_std": None} for n in range(1, 9)]
    assert examine(rows, {}) == []  # pyright: ignore[reportArgumentType]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path / "run", steps=8)
    assert main(["doctor", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "sfumato" not in captured.err
    assert captured.out.splitlines()[-1] == f"More: {PAGE}"
    assert (Path(__file__).parents[2] / PAGE).is_file()
    write_run(tmp_path / "few", steps=8, classes=["0", "1", "2", "3"])
    assert main(["doctor", str(tmp_path / "few")]) == 0
    assert capsys.readouterr().out == "Nothing conspicuous in 8 steps.\n"
    assert main(["doctor", str(tmp_path)]) == 2
    assert "run: " in capsys.readouterr().err
