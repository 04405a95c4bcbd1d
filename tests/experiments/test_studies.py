"""Studies: statistics by hand, jobs that fail or are interrupted, trials on a tiny model, and the page."""

import csv
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from command import run_module
from errors import bad_input
from PIL import Image
from tiny import tiny_config

from sfumato.cli.main import main
from sfumato.cli.reproduce import plan_of
from sfumato.experiments.jobs import Done, Job, run_jobs
from sfumato.experiments.seeds import mean_of, ranks, t_quantile
from sfumato.experiments.studies import DISTANCE, STUDIES, Study
from sfumato.experiments.study import Option, Plan, run_study, settled
from sfumato.experiments.study_page import Outcome
from sfumato.experiments.trial import run_trial
from sfumato.files import read_metrics
from sfumato.objectives import DrGRPO
from sfumato.rewards import REWARDS, build_reward
from sfumato.rewards.names import split_name


def test_intervals():
    """The numbers are those of tables of Student's t."""
    assert [t_quantile(n) for n in (1, 4, 30)] == pytest.approx([12.7062, 2.7764, 2.0423], abs=1e-4)
    mean = mean_of([1.0, 2.0, 3.0, math.nan])
    assert mean.value == 2.0
    assert mean.interval == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-4)
    assert mean_of([5.0]).interval is None
    assert math.isnan(mean_of([math.nan]).value)


def test_ranks():
    placed = ranks({"low": [0.1, 0.2], "one": [0.8, 0.9], "same": [0.8, 0.9], "top": [1.0, 1.0]})
    assert [list(placed)[at] for at in (0, -1)] == ["top", "low"]
    assert (placed["top"].mean, placed["top"].interval, placed["top"].best) == (1.0, (1.0, 1.0), 1.0)
    assert placed["low"].beats == {"one": 0.0, "same": 0.0, "top": 0.0}
    assert placed["one"].beats["same"] == pytest.approx(0.5, abs=0.02)
    assert placed["one"].mean + placed["same"].mean == pytest.approx(5.0)
    tied = ranks({"a": [1.0, 1.0], "b": [1.0, 1.0]})
    assert [(rank.mean, rank.best) for rank in tied.values()] == [(1.5, 0.5), (1.5, 0.5)]


def test_seconds_to_a_goal():
    config = tiny_config("m", groups_per_step=32, group_size=4)  # 128 images: the mean is over two steps
    values = [0.2, 1.0, 1.0, 0.6, 1.0, 0.9]  # means 0.6, 1.0, 0.8, 0.8, 0.95
    rows = [{"step": n, "processor_seconds": 10.0 * n, "share": v} for n, v in enumerate(values, start=1)]
    outcome = Outcome({}, rows, "", config)
    assert outcome.seconds_to("share", 0.75) == 30.0
    assert outcome.seconds_to("share", 0.9) == 60.0
    assert outcome.seconds_to("share", 0.5) == 20.0
    assert math.isnan(outcome.seconds_to("share", 0.97))
    assert math.isnan(outcome.seconds_to("other", 0.1))


def test_product_of_figures():
    outcome = Outcome({"share": 0.5, "accuracy": 0.8}, [], "", tiny_config("m"))
    assert outcome.figure("share × accuracy") == 0.4
    assert outcome.figure("share") == 0.5
    assert math.isnan(outcome.figure("share × other"))


def script(tmp_path: Path, name: str, code: str) -> Job:
    return Job(name, [sys.executable, "-c", code], tmp_path / f"{name}.txt")


def test_jobs(tmp_path: Path):
    said: list[str] = []
    fails = script(tmp_path, "fails", "print('first'); raise SystemExit('no such thing')")
    threads = script(tmp_path, "threads", "import os; print(os.environ['OMP_NUM_THREADS'])")
    done = run_jobs([fails, threads], 2, said.append)
    assert done == Done({"fails": "no such thing"}, False)
    assert (tmp_path / "threads.txt").read_text() == "1\n"
    assert len(said) == 2
    assert said[-1].startswith("2 of 2: ")


def test_interrupted_jobs(tmp_path: Path):
    """What the terminal sends reaches the job as SIGTERM, and no other job starts."""
    code = f"import os, signal, time; os.kill({os.getpid()}, signal.SIGINT); time.sleep(60)"
    done = run_jobs([script(tmp_path, "one", code), script(tmp_path, "two", "")], 1, lambda line: None)
    assert done == Done({}, True)
    assert not (tmp_path / "two.txt").exists()


def run_here(jobs: Sequence[Job], workers: int, say: object) -> Done:
    """Run trials in this process."""
    for job in jobs:
        assert run_trial(Path(job.command[-1]))
    return Done({}, False)


STUDY = Study(
    help="which is better",
    about="A question.",
    base="",
    arms={"one": "", "two": ""},
    rewards=("brightness",),
    judged=f"reward/brightness × {DISTANCE}",
    goal=0.0,
    sweep=("--learning-rate 1e-3", "--learning-rate 1e-2"),
)


def plan(model: Path) -> Plan:
    config = tiny_config(model)
    faster = replace(config, engine=replace(config.engine, learning_rate=1e-2))
    one = [Option("m --learning-rate 1e-3", config), Option("m --learning-rate 1e-2", faster)]
    two = [Option("m --objective dr-grpo", replace(config, objective=DrGRPO()))]
    absent = {"three": "objective: unknown objective 'three'"}
    return Plan(
        study=STUDY, arms={"one": one, "two": two}, untrained={"untrained": Option("m", config)}, absent=absent,
        seeds=2, seconds=0.1, device="cpu",
    )  # fmt: skip


def test_study(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sfumato.experiments.study.run_jobs", run_here)
    monkeypatch.setattr("sfumato.experiments.trial.GROUPS", 4)
    monkeypatch.setattr("sfumato.experiments.study_page.WINDOW", 8)
    said: list[str] = []

    def run() -> bool:
        return run_study(
            "study-x", plan(tiny_model), out=tmp_path / "out", work=tmp_path / "work", jobs=2, command="command",
            say=said.append,
        )  # fmt: skip

    assert run()
    assert said[0] == "study-x: leaving out three: objective: unknown objective 'three'"
    assert said[1] == "study-x, sweep: 0 of 4 runs are done, 4 to do"
    assert said[2] == "study-x: 0 of 6 runs are done, 6 to do"
    folders = sorted((tmp_path / "work").iterdir())
    assert len(folders) == 10
    trained = [folder for folder in folders if not folder.name.startswith("untrained-")]
    for folder in trained:
        rows = read_metrics(folder / "run")
        assert rows[-1]["processor_seconds"] >= 0.1 > (rows[-2]["processor_seconds"] if len(rows) > 1 else 0)
    rows = list(csv.DictReader((tmp_path / "out/study-x.csv").read_text().splitlines()))
    assert {(row["arm"], row["seed"]) for row in rows} == {
        (arm, seed) for arm in ("untrained", "one", "two") for seed in "01"
    }
    moved = {row["arm"]: float(row["value"]) for row in rows if row["name"] == "KL per image (nats)"}
    assert moved["untrained"] == 0
    assert moved["one"] != 0
    page = (tmp_path / "out/study-x.md").read_text()
    assert page.startswith("# Which is better\n")
    for piece in ("    command\n", "- left out, three: ", "mean rank", "2 of 2 seeds", "2 seeds of the sweep"):
        assert piece in page
    assert "- untrained: `sfumato train m`, before training\n" in page
    assert "- two: `sfumato train m --objective dr-grpo`\n" in page
    two = {(row["seed"], row["name"]): float(row["value"]) for row in rows if row["arm"] == "two"}
    mean = mean_of([two[seed, "reward/brightness"] * two[seed, DISTANCE] for seed in "01"])
    assert f"| two | {mean.value:.3f} [" in page
    with Image.open(tmp_path / "out/study-x.png") as plot:
        assert len(plot.convert("RGB").getcolors(2**24) or []) > 10

    # Nothing is repeated, and the page is the same.
    moments = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*") if path.is_file()}
    assert run()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*") if path.is_file()} == moments
    assert (tmp_path / "out/study-x.md").read_text() == page


def test_failed_trials(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sfumato.experiments.study.run_jobs", lambda *_: Done({"one, seed 1": "it broke"}, False))
    place = {"out": tmp_path / "out", "work": tmp_path / "work"}
    with bad_input("arms", "1 runs failed", "one, seed 1: it broke", str(tmp_path / "work")):
        run_study("study-x", plan(tiny_model), **place, jobs=1, command="", say=lambda line: None)
    monkeypatch.setattr("sfumato.experiments.study.run_jobs", lambda *_: Done({}, True))
    assert not run_study("study-x", plan(tiny_model), **place, jobs=1, command="", say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_trial_is_a_command(tiny_model: Path, tmp_path: Path):
    made = run_module("sfumato.experiments.trial", str(tmp_path))
    assert made.returncode == 1
    assert "trial.json" in made.stderr


@pytest.mark.parametrize("name", STUDIES)
def test_definitions(name: str, tmp_path: Path):
    """Every option of every arm is one that `sfumato train` knows, and so is every reward."""
    study, data = STUDIES[name], tmp_path / "real images"
    data.mkdir()
    made = plan_of(study, 5, 60.0, "cpu", data)
    assert made.absent == {}
    assert made.arms.keys() == study.arms.keys()
    settings = [option.config for options in made.arms.values() for option in options]
    assert len({repr(config) for config in settings}) == len(settings)
    for config in settings:
        settled(config, 0, made).validate()
        assert {split_name(reward)[0] for reward in config.reward} <= REWARDS.keys()
    build_reward(dict.fromkeys(study.rewards, 1.0))
    needing = {arm for arm, words in study.arms.items() if "{data}" in words}
    assert {arm for arm, options in made.arms.items() if str(data) in repr(options[0].config)} == needing
    assert plan_of(study, 5, 60.0, "cpu", None).absent == dict.fromkeys(needing, "it needs real images; give --data")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["reproduce"]) == 0
    assert "study-scales" in capsys.readouterr().out
    assert main(["reproduce", "study-scales", "--seeds", "1", "--work", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("sfumato: seeds: 1 ")
    assert main(["reproduce", "study-scales", "--jobs", "0", "--work", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("sfumato: jobs: 0 ")
    assert main(["reproduce", "study-scales", "--seconds", "0", "--work", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("sfumato: stop_after_seconds: 0")
