"""The papers' experiments: verdicts checked by hand, files that match the measurements, consistent definitions."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from errors import bad_input
from PIL import Image
from rich.console import Console
from tiny import tiny_config, tiny_llamagen, tiny_var

from sfumato.cli.main import main
from sfumato.evaluation.measurement import Figure
from sfumato.evaluation.runner import describe
from sfumato.evaluation.suites.diversity import Diversity
from sfumato.evaluation.suites.entropy import Entropy
from sfumato.evaluation.suites.guidance_sweep import GuidanceSweep
from sfumato.experiments import EXPERIMENTS, Listed, ScaleName
from sfumato.experiments.experiment import (
    BASE,
    Bars,
    Check,
    Claim,
    Curve,
    Experiment,
    Findings,
    Sweep,
    Verdict,
    all_of,
    curve_falls,
    ends_higher,
    falls,
    kept,
    over_seeds,
    rises,
)
from sfumato.experiments.jobs import Done, Job
from sfumato.experiments.outputs import running_mean, write_plot, write_summary
from sfumato.experiments.reproduction import (
    FILES,
    folder_name,
    reference_images,
    reproduce,
    reproduce_seeds,
    with_seed,
)
from sfumato.families import read_card
from sfumato.families.library import save_model
from sfumato.files import read_metrics
from sfumato.training.train import train

LOW, HIGH = Figure.mean([0.0, 0.1, 0.0, 0.1] * 25), Figure.mean([0.9, 1.0, 0.9, 1.0] * 25)
MIXED = Figure.mean([0.1, 0.0, 0.1, 0.0] * 25)
CURVE = [{"step": n, "entropy": 4.0 - 0.1 * n, "reward_mean": 0.1 * n} for n in range(1, 21)]
FOUND = Findings(
    curves={"run": CURVE, "flat": [{**row, "reward_mean": 1.0} for row in CURVE]},
    measured={"suite": {BASE: {"score": LOW}, "run": {"score": HIGH}, "flat": {"score": MIXED}}},
)


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (rises("suite", "run", "score"), True),
        (falls("suite", "run", "score"), False),
        (rises("suite", "flat", "score"), None),
        (falls("suite", "flat", "score", below="run"), True),
        (rises("suite", "flat", "score", over="run"), False),
        (kept("suite", "flat", "score", within=0.05), True),
        (kept("suite", "flat", "score", within=0.0), None),
        (curve_falls("run", "entropy", 0.3), True),  # from 3.7 to 2.2, two fifths
        (curve_falls("run", "entropy", 0.5), False),
        (ends_higher("run", "reward_mean", than="flat"), True),  # 1.8 at the end
        (ends_higher("flat", "reward_mean", than="run"), False),
        (all_of(rises("suite", "run", "score"), rises("suite", "flat", "score")), None),
        (all_of(rises("suite", "flat", "score"), falls("suite", "run", "score")), False),
        (all_of(rises("suite", "run", "score"), curve_falls("run", "entropy", 0.3)), True),
    ],
)
def test_verdicts(check: Check, holds: bool | None):
    assert check(FOUND).holds is holds


def test_evidence_names_the_numbers():
    assert rises("suite", "run", "score")(FOUND).evidence == "score of run: 0.050 to 0.950 (+0.900 [0.900, 0.900])"
    told = "entropy of run: 3.700 at the start, 2.200 at the end, a fall by 40.54 %"
    assert curve_falls("run", "entropy", 0.3)(FOUND).evidence == told
    told = "reward_mean at the end: 1.800 for run, 1.000 for flat (difference 0.800)"
    assert ends_higher("run", "reward_mean", than="flat")(FOUND).evidence == told
    lost = kept("suite", BASE, "score", within=0.1)
    swapped = Findings({}, {"suite": {BASE: {"score": LOW}}})
    told = "score of before: 0.050 to 0.050 (+0.000 [0.000, 0.000]), allowed loss 0.1"
    assert lost(swapped).evidence == told


@pytest.mark.parametrize("scale", ["emoji", "full"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_definitions(name: str, scale: ScaleName, tmp_path: Path):
    """The results of the runs and suites suffice to check every claim and draw every panel."""
    experiment = EXPERIMENTS[name].build(scale, tmp_path)
    for config in experiment.runs.values():
        config.validate()
    assert experiment.model.startswith("emoji-") is (scale == "emoji")
    assert len({folder_name(config) for config in experiment.runs.values()}) == len(experiment.runs)
    found = imagined(experiment)
    for curve in (panel for panel in experiment.panels if isinstance(panel, Curve)):
        for run in curve.runs or experiment.runs:
            assert found.curve(run, curve.metric)[0], (curve.metric, run)
    write_plot(experiment, found, tmp_path / "plot.png")
    write_summary(name, experiment, found, tmp_path / "summary.md")
    summary = (tmp_path / "summary.md").read_text()
    assert sum(summary.count(f"- **{w}**") for w in ("holds", "does not hold", "inconclusive")) == len(
        experiment.claims
    )


def imagined(experiment: Experiment) -> Findings:
    """Return made-up numbers with exactly the names that the runs and suites produce."""
    metrics = {"reward_mean": 0.5, "entropy": 2.0, "fixed/entropy": 2.0, "seconds/update": 1.0}
    curves = {}
    for run, config in experiment.runs.items():
        row = metrics | {f"reward/{part}": 0.1 for part in config.reward}
        row |= {"kl": 0.1} if config.objective.needs_reference else {}
        if config.held_out:
            judged = ["class_accuracy", "diversity"] if read_card(config.model).judge else []
            watched = [f"reward/{name}" for name in config.held_out] + judged
            row |= {f"held_out/{name}": 0.2 for name in watched}
        curves[run] = [{"step": step, **row} for step in range(1, 4)]
    measured = {
        name: {run: dict.fromkeys(figures_of(suite), LOW) for run in (BASE, *experiment.runs)}
        for name, suite in experiment.suites.items()
    }
    return Findings(curves, measured)


def figures_of(suite: object) -> list[str]:
    """Return the names of a suite's figures."""
    if isinstance(suite, GuidanceSweep):
        return [f"guidance {value:g}: {name}" for value in suite.values for name in figures_of(suite.of)]
    match type(suite).__name__:
        case "Alignment":
            names = [*suite.rewards, "top-1", "top-5"]  # pyright: ignore[reportAttributeAccessIssue]
            apart = ("", ", seen classes", ", unseen classes") if suite.seen else ("",)  # pyright: ignore
            return [name + which for which in apart for name in names]
        case "Diversity":
            return ["within-class distance"]
        case "ImageNet":
            return ["Inception Score", "FID", "sFID", "precision", "recall"]
    raise AssertionError(suite)


def small(model: Path, steps: int = 2) -> Experiment:
    """Two runs on a tiny model."""
    return Experiment(
        title="Title",
        source="Source",
        about="About.",
        runs={
            "first": tiny_config(model, steps=steps, device="auto"),
            "second": tiny_config(model, steps=steps, device="auto", seed=1),
        },
        suites={"entropy": Entropy(images=4), "diversity": Diversity(per_class=2)},
        panels=(
            Curve("reward_mean", "reward", runs=("first",)),
            Bars("entropy", "entropy", "entropy"),
            Bars("diversity", "within-class distance", "distance"),
        ),
        claims=(Claim("it rises", ends_higher("first", "reward_mean", than="second")),),
    )


def test_reproduce(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_model(tmp_path / "model", tiny_var())
    experiment, work, out = small(tmp_path / "model"), tmp_path / "work", tmp_path / "out"
    assert reproduce("name", experiment, out, work, "cpu", Console())
    place = out / "name"
    assert sorted(path.name for path in place.iterdir()) == sorted(FILES)
    rows = list(csv.DictReader((place / "numbers.csv").read_text().splitlines()))
    folder = work / "runs" / folder_name(experiment.runs["first"])
    logged = [row for row in rows if (row["source"], row["run"], row["name"]) == ("training", "first", "reward_mean")]
    assert [float(row["value"]) for row in logged] == pytest.approx(
        [line["reward_mean"] for line in read_metrics(folder)], rel=1e-5
    )
    fixed = [row for row in rows if row["run"] == "first" and row["name"] == "fixed/entropy"]
    assert [row["step"] for row in fixed] == ["0", "2"]
    measured = {row["run"]: row for row in rows if row["source"] == "entropy" and row["name"] == "entropy"}
    assert list(measured) == [BASE, "first", "second"]
    assert float(measured[BASE]["value"]) == pytest.approx(float(fixed[0]["value"]), rel=0.2)  # other classes and seeds
    assert float(measured[BASE]["low"]) < float(measured[BASE]["value"]) < float(measured[BASE]["high"])
    assert "sfumato reproduce name" in (place / "summary.md").read_text()
    with Image.open(place / "pictures.png") as pictures:
        assert pictures.height > 3 * 24

    # Existing runs are not repeated, and another experiment shares the run.
    moments = {path: path.stat().st_mtime_ns for path in work.rglob("metrics.jsonl")}
    other = replace(experiment, runs={"renamed": experiment.runs["first"]}, claims=())
    other = replace(other, panels=(Bars("entropy", "entropy", "entropy"),))
    assert reproduce("name", experiment, out, work, "cpu", Console())
    assert reproduce("other", other, out, work, "cpu", Console())
    assert {path: path.stat().st_mtime_ns for path in work.rglob("metrics.jsonl")} == moments
    assert len(list((work / "runs").iterdir())) == 2


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An interrupted run is resumed; nothing is written for an experiment before it is complete."""
    save_model(tmp_path / "model", tiny_llamagen())
    experiment = small(tmp_path / "model")
    calls = []

    def stops(config, folder, *, resume, console):
        calls.append(resume)
        train(replace(config, steps=1), folder, resume=resume, console=console)
        return False

    monkeypatch.setattr("sfumato.experiments.reproduction.train", stops)
    assert not reproduce("name", experiment, tmp_path / "out", tmp_path / "work", "cpu", Console())
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert reproduce("name", experiment, tmp_path / "out", tmp_path / "work", "cpu", Console())
    assert calls == [False]


def test_verdicts_over_seeds():
    """By hand, for three seeds: 0.1, 0.2 and 0.3 have the mean 0.2 ± 0.248; 0.2, 0.2 and 0.3 have 0.233 ± 0.143; falls
    by 50, 45 and 40 % have 45 ± 12.4."""

    def seed(difference: float, end: float) -> Findings:
        curve = [{"step": 1, "entropy": 2.0, "x": 1.0}, {"step": 2, "entropy": end}]
        flat = [{"step": 1, "entropy": 2.0}, {"step": 2, "entropy": 2.0}]
        measured = {BASE: {"score": Figure.mean([0.5, 0.5])}, "run": {"score": Figure.mean([0.5 + difference] * 2)}}
        return Findings({"run": curve, "flat": flat}, {"suite": measured})

    unsure = over_seeds([seed(0.1, 1.0), seed(0.2, 3.0), seed(0.3, 1.0)])
    sure = over_seeds([seed(0.2, 1.0), seed(0.2, 1.1), seed(0.3, 1.2)])
    assert rises("suite", "run", "score")(unsure) == Verdict(
        None, "score of run: 0.500 to 0.700 (+0.200 [-0.048, 0.448])"
    )
    assert rises("suite", "run", "score")(sure).holds is True
    assert kept("suite", "run", "score", within=0.05)(unsure).holds is True
    assert curve_falls("run", "entropy", 0.2)(sure) == Verdict(
        True, "entropy of run: 2.000 at the start, 1.100 at the end, a fall by 45.00 [32.58, 57.42] %"
    )
    assert curve_falls("run", "entropy", 0.5)(unsure).holds is None
    assert ends_higher("flat", "entropy", than="run")(sure).holds is True
    assert ends_higher("run", "entropy", than="flat")(sure).holds is False
    assert sure.curve("run", "x") == ([1], [1.0])
    assert sure.figure("suite", "run", "score").interval() == pytest.approx(
        (0.7333 - 0.1434, 0.7333 + 0.1434), abs=1e-4
    )


def test_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every seed is a run and a measurement of its own; the summary has their means."""
    save_model(tmp_path / "model", tiny_var())
    experiment, work = small(tmp_path / "model", steps=1), tmp_path / "work"
    place = (tmp_path / "out", work, "cpu", Console(quiet=True))

    def run_here(jobs: Sequence[Job], workers: int, say: object) -> Done:
        for seed, _ in enumerate(jobs):
            assert reproduce("name", experiment, tmp_path / f"seed-{seed}", *place[1:], seed=seed)
        return Done({}, False)

    jobs = [Job(f"seed {seed}", (), tmp_path / "log") for seed in range(2)]
    monkeypatch.setattr("sfumato.experiments.reproduction.run_jobs", run_here)
    assert reproduce_seeds("name", experiment, *place, "command", jobs, 1)
    assert len(list((work / "runs").iterdir())) == 3  # the second run of seed 0 is the first run of seed 1

    def values(folder: Path) -> dict[tuple[str, ...], float]:
        rows = csv.DictReader((folder / "name/numbers.csv").read_text().splitlines())
        names = ("source", "run", "step", "name")
        return {tuple(row[name] for name in names): float(row["value"]) for row in rows}

    both, each = values(tmp_path / "out"), [values(tmp_path / f"seed-{seed}") for seed in range(2)]
    assert both.keys() == each[0].keys()
    for key, value in both.items():
        assert value == pytest.approx((each[0][key] + each[1][key]) / 2, rel=1e-4, abs=1e-4), key
    before = ("entropy", BASE, "", "entropy")
    assert each[0][before] != each[1][before]
    assert "2 seeds" in (tmp_path / "out/name/summary.md").read_text()
    monkeypatch.setattr("sfumato.experiments.reproduction.run_jobs", lambda *_: Done({"seed 1": "it broke"}, False))
    with bad_input("seeds", "1 failed", "seed 1: it broke"):
        reproduce_seeds("name", experiment, *place, "command", jobs, 1)
    monkeypatch.setattr("sfumato.experiments.reproduction.run_jobs", lambda *_: Done({}, True))
    assert not reproduce_seeds("name", experiment, *place, "command", jobs, 1)


def test_seed_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(
        "sfumato.experiments.reproduction.reproduce_seeds", lambda *arguments: calls.append(arguments) or True
    )
    words = ["reproduce", "var-kl", "--work", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*words, "--seeds", "3", "--jobs", "2"]) == 0
    *_, command, jobs, workers = calls[0]
    assert (command, len(jobs), workers) == ("sfumato reproduce var-kl --seeds 3", 3, 2)
    assert jobs[2].command[1:7] == ["-m", "sfumato", "reproduce", "var-kl", "--seed", "2"]
    monkeypatch.setattr("sfumato.experiments.reproduction.reproduce", lambda *given: calls.append(given) or True)
    assert main(list(jobs[2].command[3:])) == 0
    name, _, out, work, *_, seed = calls[1]
    assert (name, out, work, seed) == ("var-kl", tmp_path / "seeds/seed-2", tmp_path, 2)
    for option, field in (("--seeds", "seeds"), ("--jobs", "jobs")):
        assert main([*words, option, "0"]) == 2
        assert capsys.readouterr().err.startswith(f"sfumato: {field}: 0 ")
    assert main([*words, "--seeds", "2", "--seed", "1"]) == 2
    assert capsys.readouterr().err.startswith("sfumato: seed: 1 ")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_other_seeds(name: str, tmp_path: Path):
    """Another seed changes every run and every measured image, and nothing else."""
    experiment = EXPERIMENTS[name].build("emoji", tmp_path)
    other = with_seed(experiment, 3)
    assert [config.seed for config in other.runs.values()] == [config.seed + 3 for config in experiment.runs.values()]
    for suite, first in zip(other.suites.values(), experiment.suites.values(), strict=True):
        inner, known = (describe(getattr(each, "of", each)) for each in (suite, first))
        known["drawing"]["seed"] += 3_000_000
        assert inner == known


def test_refusals(tmp_path: Path):
    save_model(tmp_path / "model", tiny_var())
    (tmp_path / "out/name").mkdir(parents=True)
    (tmp_path / "out/name/thesis.tex").write_text("precious")
    with bad_input("out", str(tmp_path / "out/name"), "thesis.tex", "--out"):
        reproduce("name", small(tmp_path / "model"), tmp_path / "out", tmp_path / "work", "cpu", Console())
    assert not (tmp_path / "work").exists()
    file = tmp_path / "out/name/thesis.tex"
    with bad_input("out", str(file), "--out"):
        reproduce("name", small(tmp_path / "model"), file, tmp_path / "work", "cpu", Console())
    with bad_input("work", str(file), "--work"):
        reproduce("name", small(tmp_path / "model"), tmp_path / "fresh", file, "cpu", Console())
    with bad_input("reference", str(tmp_path / "nowhere"), ".npz"):
        reference_images(tmp_path / "nowhere", tmp_path)
    assert reference_images(tmp_path / "out", tmp_path) == tmp_path / "out"
    config = tiny_config("m")
    assert folder_name(config) == folder_name(replace(config, device="cuda")) != folder_name(replace(config, seed=1))


def test_running_mean():
    assert running_mean([0.0, 3.0, 6.0, 0.0, 9.0], 3) == [1.5, 3.0, 3.0, 5.0, 4.5]
    assert running_mean([1.0], 7) == [1.0]


def test_sweep_panel(tmp_path: Path):
    values = (1.0, 2.0)
    panel = Sweep("sweep", "top-1", "title", values)
    figures: Mapping[str, Figure] = {panel.at(1.0): LOW, panel.at(2.0): HIGH}
    experiment = replace(small(tmp_path), panels=(panel,), claims=())
    found = Findings({}, {"sweep": {BASE: figures, "first": figures, "second": figures}})
    write_plot(experiment, found, tmp_path / "plot.png")
    assert panel.at(2.0) == "guidance 2: top-1"
    with Image.open(tmp_path / "plot.png") as plot:
        assert len(plot.convert("RGB").getcolors(2**24) or []) > 10


def test_reference_of_emoji(tmp_path: Path):
    package = tmp_path / "package"
    (package / "img/google/64").mkdir(parents=True)
    Image.new("RGBA", (64, 64), (255, 0, 0, 255)).save(package / "img/google/64/apple.png")
    entry = {"name": "RED APPLE", "category": "Food & Drink", "subcategory": "food", "sort_order": 1}
    (package / "emoji.json").write_text(json.dumps([{**entry, "has_img_google": True, "image": "apple.png"}]))
    folder = reference_images(package, tmp_path / "reference", count=70)
    assert [path.name for path in sorted(folder.iterdir())] == [f"{n:05d}.png" for n in range(70)]
    pictures = [np.array(Image.open(path)) for path in sorted(folder.iterdir())]
    lit = [picture for picture in pictures if picture[32, 32, 0] == 255]
    assert len(lit) > 20  # the others are in dim light
    assert all((picture[32, 32] == [255, 0, 0]).all() for picture in lit)
    assert len({tuple(picture[0, 0]) for picture in pictures}) > 5  # scenes
    written = folder.stat().st_mtime_ns
    assert reference_images(package, tmp_path / "reference", count=70) == folder
    assert folder.stat().st_mtime_ns == written


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert main(["reproduce"]) == 0
    assert "Figure 7: the weight of the KL penalty" in capsys.readouterr().out
    assert main(["reproduce", "var-kll"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sfumato: experiment: ")
    assert all(piece in error for piece in ("'var-kll'", "did you mean var-kl"))
    assert error.count("\n") == 1
    assert main(["reproduce", "ar-grpo-quality", "--work", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("sfumato: reference: ")
    assert not list(tmp_path.rglob("checkpoints"))  # the error came before any training
    save_model(tmp_path / "model", tiny_var())
    experiment = small(tmp_path / "model")
    monkeypatch.setattr(Listed, "build", lambda self, scale, reference: experiment)
    words = ["reproduce", "var-kl", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 0
    assert f"Look at {tmp_path}/out/var-kl/summary.md" in capsys.readouterr().out
