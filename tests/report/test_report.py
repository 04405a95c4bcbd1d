"""The content of a report, without a browser."""

import base64
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_runs import NAMES, data_of, metrics, write_pretraining, write_rows, write_run
from PIL import Image
from rich.console import Console
from tiny import tiny_config

from sfumato.cli.main import main
from sfumato.data.pictures import COLUMNS, grid, save_picture, tiles
from sfumato.evaluation.measurement import Figure
from sfumato.evaluation.tables import to_json
from sfumato.report.folders import MAX_MOMENTS, MAX_POINTS
from sfumato.training.train import train


def report(*folders: Path, out: Path | None = None) -> dict[str, Any]:
    """Run the command and return the data of its report."""
    assert main(["report", *map(str, folders), *(["--out", str(out)] if out else [])]) == 0
    return data_of(out or folders[0] / "report.html")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pixels(address: str) -> np.ndarray:
    """Decode an embedded picture (H, W, 3)."""
    kind, data = address.split(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.array(picture.convert("RGB")).astype(int)


def test_a_real_run(tiny_model: Path, tmp_path: Path):
    config = tiny_config(tiny_model, steps=3, sample_every=2, eval_images=4)
    assert train(config, tmp_path / "run", console=Console(quiet=True))
    run = report(tmp_path / "run")["runs"][0]
    logged = rows_of(tmp_path / "run/metrics.jsonl")
    for name in logged[0].keys() - {"step"}:
        assert run["curves"][name] == [[1, 2, 3], [row[name] for row in logged]]
    fixed_set = rows_of(tmp_path / "run/fixed_set.jsonl")
    assert run["curves"]["fixed_set/entropy"] == [[0, 2, 3], [row["entropy"] for row in fixed_set]]
    assert [moment["step"] for moment in run["moments"]] == [0, 2, 3]
    assert [moment["rewards"] for moment in run["moments"]] == [row["rewards"] for row in fixed_set]
    assert run["names"] == fixed_set[0]["names"]
    assert run["evaluation"] == json.loads((tmp_path / "run/evaluation.json").read_text())
    assert (run["done"], run["steps"], run["images_per_step"], run["notes"]) == (3, 3, 8, [])
    with Image.open(tmp_path / "run/samples/step-000003.png") as sheet:
        drawn = [np.array(tile).astype(int) for tile in tiles(sheet.convert("RGB"), COLUMNS)]
    assert len(drawn) == len(run["moments"][-1]["images"]) == 32
    for address, tile in zip(run["moments"][-1]["images"], drawn, strict=True):
        assert np.abs(pixels(address) - tile).mean() < 16  # WebP of pixels that were enlarged to sharp squares


def test_held_out_rewards_begin_at_step_0(tiny_model: Path, tmp_path: Path):
    config = tiny_config(tiny_model, steps=2, eval_images=0, held_out=("dark",), held_out_every=1)
    assert train(config, tmp_path / "run", console=Console(quiet=True))
    run = report(tmp_path / "run")["runs"][0]
    held_out = rows_of(tmp_path / "run/held_out.jsonl")
    for name in ("optimized", "reward/dark", "entropy"):
        assert run["curves"][f"held_out/{name}"] == [[0, 1, 2], [row[name] for row in held_out]]
    assert "held_out/reward_std/dark" not in run["curves"]
    start = json.loads((tmp_path / "run/run.json").read_text())[0]
    assert run["starts"] == [start]
    assert start["seconds"] > 0
    assert run["weights"] == {"base": str(tiny_model), "trained": "checkpoints/step-000002"}


@pytest.mark.parametrize("content", ["[", "{}", "[1]"])
def test_a_broken_record_of_the_starts(tmp_path: Path, content: str):
    run = write_run(tmp_path / "run", weights="here.pth")
    (run / "run.json").write_text(content)
    shown = report(run)["runs"][0]
    assert (shown["starts"], shown["notes"]) == ([], ["run.json is broken and left out."])
    assert shown["weights"] == {"base": "emoji-var", "network": "here.pth"}


def test_a_pretraining_run(tmp_path: Path):
    (run,) = report(write_pretraining(tmp_path / "own"))["runs"]
    assert [(stage["name"], stage["done"], stage["steps"]) for stage in run["stages"]] == [
        ("tokenizer", 2, 2),
        ("generator", 3, 4),
    ]
    assert [[moment["step"] for moment in stage["moments"]] for stage in run["stages"]] == [[2], [2, 3]]
    assert len(run["stages"][1]["moments"][0]["images"]) == 16
    assert run["curves"]["generator/loss"] == [[1, 2, 3], [4.0, 2.0, 1]]
    assert run["curves"]["generator/val_loss"] == [[2, 3], [3.0, 3.5]]
    assert (run["images"], run["held_out"], run["classes"], run["notes"]) == (90, 5, 3, [])


def test_pictures_in_their_order(tmp_path: Path):
    run = report(write_run(tmp_path / "run"))["runs"][0]
    for moment in run["moments"]:
        colors = torch.rand(16, 3, generator=torch.Generator().manual_seed(moment["step"])).mul(255).round().int()
        found = [pixels(address) for address in moment["images"]]
        assert all(picture.shape == (16, 16, 3) for picture in found)
        assert np.abs(np.array([p.mean((0, 1)) for p in found]) - colors.numpy()).max() < 4


def test_long_runs_are_thinned(tmp_path: Path):
    run = report(write_run(tmp_path / "run", steps=2500, every=50))["runs"][0]
    logged = {step: metrics(step) for step in range(1, 2501)}
    for name, (steps, values) in run["curves"].items():
        if not name.startswith("fixed_set/"):
            assert values == [logged[step][name] for step in steps]
            assert len(steps) == (25 if name.startswith("held_out/") else MAX_POINTS)
    assert run["curves"]["kl"][0][0] == 1
    assert run["curves"]["kl"][0][-1] == 2500
    steps = [moment["step"] for moment in run["moments"]]
    assert len(steps) == MAX_MOMENTS
    assert (steps[0], steps[-1]) == (0, 2500)


def test_large_pictures_are_made_smaller(tmp_path: Path):
    run = write_run(tmp_path / "run")
    noise = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for path in (run / "samples").iterdir():
        save_picture(grid(torch.nn.functional.interpolate(noise, size=256, mode="bicubic"), COLUMNS), path)
    images = report(run)["runs"][0]["moments"][0]["images"]
    assert all(pixels(address).shape == (192, 192, 3) for address in images)
    assert sum(map(len, images)) / 16 < 10_000


def test_what_users_write_stays_text(tmp_path: Path):
    names = ["</script><script>alert(1)</script>", "<!-- <script>", "{{script}}", 'a "quoted" & \\ \u2028 naïve 猫'] * 4
    run = write_run(tmp_path / "run", names=names, model="<img src=x onerror=alert(1)>")
    data = report(run, out=tmp_path / "report.html")
    assert data["runs"][0]["names"] == names
    assert data["runs"][0]["model"] == "<img src=x onerror=alert(1)>"
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") == page.count("</script>") == 2
    assert page.count("<img") == 1  # of the enlarged picture
    assert "alert(1)</script>" not in page


def test_nothing_is_fetched(tmp_path: Path):
    report(write_run(tmp_path / "run"))
    page = (tmp_path / "run/report.html").read_text()
    assert re.findall(r"https?:[^\"]*", page) == ["http://www.w3.org/2000/svg"]
    assert all(address == "data:," or address[0] in "#`" for address in re.findall(r'(?:href|src)="(.*?)"', page))
    assert "default-src 'none'" in page


def test_settings_of_several_runs(tmp_path: Path):
    one = write_run(tmp_path / "one")
    other = write_run(
        tmp_path / "other", objective={"name": "grpo", "clip": 0.2, "kl_weight": 0.0}, reward={"dark": 1.0, "x.py:f": 2}
    )
    data = report(one, other)
    assert data["title"] == "one, other"
    differing = {row["name"]: row["values"] for row in data["settings"] if row["differs"]}
    assert differing == {"objective.kl_weight": ["0.1", "0.0"], "reward.x.py:f": [None, "2"]}
    same = {row["name"]: row["values"] for row in data["settings"] if not row["differs"]}
    assert same["objective.clip"] == ["0.2", "0.2"]
    assert same["model"] == ["emoji-var", "emoji-var"]
    assert not any(row["differs"] for row in report(one)["settings"])


def test_only_reports_are_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, out = write_run(tmp_path / "run"), tmp_path / "new/page.html"
    report(run, out=out)
    (run / "metrics.jsonl").write_text(json.dumps(metrics(1)) + "\n")
    assert report(run, out=out)["runs"][0]["done"] == 1
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    capsys.readouterr()
    notes = tmp_path / "notes.html"
    notes.write_text("mine")
    for path in (notes, run):
        assert main(["report", str(run), "--out", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("sfumato: out: ")
        assert str(path) in error
    assert notes.read_text() == "mine"


def test_an_unfinished_run_with_broken_files(tmp_path: Path):
    run = write_run(tmp_path / "run")
    good = [{**metrics(1), "kl": math.nan, "reward_mean": math.inf}, metrics(2)]
    write_rows(run / "metrics.jsonl", good)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"kl": 1}\n\n{"step": 3, "reward_me')
    (run / "evaluation.json").write_text("{")
    (run / "samples/step-000002.png").write_bytes(b"no picture")
    shown = report(run)["runs"][0]
    assert (shown["done"], shown["steps"], shown["evaluation"]) == (2, 4, {})
    assert shown["curves"]["kl"] == [[1, 2], [None, metrics(2)["kl"]]]
    assert shown["curves"]["reward_mean"] == [[1, 2], [None, metrics(2)["reward_mean"]]]
    assert [moment["step"] for moment in shown["moments"]] == [0, 4]
    assert shown["notes"] == [
        "metrics.jsonl: 4 broken lines are left out.",
        "step-000002.png cannot be read and is left out.",
        "evaluation.json is broken and left out.",
    ]


def test_a_run_of_version_0_1(tmp_path: Path):
    run = write_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    del config["groups_per_step"], config["objective"]
    config |= {"labels_per_step": 2, "loss": {"clip": 0.2, "kl_weight": 0.1}, "temperature": 0.7}
    (run / "config.json").write_text(json.dumps(config))
    data = report(run)
    assert data["runs"][0]["images_per_step"] == 8
    assert any(row["name"].endswith(".kl_weight") and row["values"] == ["0.1"] for row in data["settings"])


def test_an_older_run_and_one_that_has_just_begun(tmp_path: Path):
    older, begun = write_run(tmp_path / "older"), tmp_path / "begun"
    (older / "fixed_set.jsonl").unlink()
    begun.mkdir()
    (begun / "config.json").write_text((older / "config.json").read_text())
    first, second = report(older, begun)["runs"]
    assert first["names"] == []
    assert [moment["rewards"] for moment in first["moments"]] == [None] * 3
    assert first["notes"] == ["The rewards of individual pictures were not saved, so pairs cannot be sorted."]
    assert (second["done"], second["curves"], second["moments"], second["notes"]) == (0, {}, [], [])


def test_evaluations_are_shown_too(tmp_path: Path):
    run, folder = write_run(tmp_path / "run"), tmp_path / "accuracy"
    folder.mkdir()
    results = {"base": {"top-1": Figure.mean([0.0, 1.0, 1.0])}, "tuned": {"top-1": Figure.mean([1.0, 1.0, math.nan])}}
    (folder / "results.json").write_text(to_json(results))
    suite = {"name": "Accuracy", "images": 3, "drawing": {"seed": 0}}
    (folder / "evaluation.json").write_text(json.dumps({"suite": suite, "targets": {}}))
    (evaluation,) = report(run, folder)["evaluations"]
    assert (evaluation["name"], evaluation["suite"]) == ("accuracy", "Accuracy")
    assert evaluation["settings"] == {"images": "3", "drawing.seed": "0"}
    assert evaluation["targets"]["base"]["top-1"]["value"] == pytest.approx(2 / 3)
    assert evaluation["targets"]["tuned"]["top-1"]["difference"] == pytest.approx(1 / 2)  # of the two pairs


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        ([], ()),
        (["none"], ("none",)),
        (["empty"], ("empty", "`sfumato train`", "`evaluate --out`")),
        (["run", "./run"], ("run", "twice")),
        (["pretrained"], ("pretrained", "`sfumato train`", "config.json")),
        (["broken"], ("broken/config.json", "JSON", "Expecting")),
        (["list"], ("list/config.json", "JSON")),
        (["half"], ("run folder",)),
        (["run", "half"], ("half", "`sfumato evaluate`")),
        (["run", "own"], ("own is from `sfumato pretrain`", "run from `sfumato train`", "separately")),
    ],
)
def test_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    pieces: tuple[str, ...],
):
    write_run(tmp_path / "run", names=NAMES[:2])
    for name, config in (("empty", ""), ("pretrained", '{"steps": 3}'), ("broken", "{"), ("list", "[]"), ("half", "")):
        (tmp_path / name).mkdir()
        if config:
            (tmp_path / name / "config.json").write_text(config)
    write_pretraining(tmp_path / "own")
    (tmp_path / "half/evaluation.json").write_text('{"suite": {}}')
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sfumato: run: ")
    assert all(piece in error for piece in pieces)
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("**/*.html"))
