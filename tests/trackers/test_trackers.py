"""Trackers: what they get, resumed runs, and trackers that fail."""

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from errors import bad_input
from PIL import Image
from tensorboardX.proto import event_pb2
from tiny import TOKENIZER, TRANSFORMER, tiny_config
from wandb.proto import wandb_internal_pb2

from sfumato.pretraining.pretrain_config import PretrainConfig
from sfumato.pretraining.tokenizer_stage import TokenizerTraining
from sfumato.pretraining.tracked import TrackedStages
from sfumato.trackers import TRACKERS, Tracked, Tracker, Trackers, find_tracker, open_trackers
from sfumato.trackers.tensorboard_tracker import TensorBoard
from sfumato.training.train import train

EVENT = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
RECORD = wandb_internal_pb2.Record  # pyright: ignore[reportAttributeAccessIssue]

OWN = '''
"""A tracker that writes lines of JSON."""
import json


class Lines:
    def __init__(self, run):
        self.file = (run.folder / "lines.jsonl").open("a")
        self.write("start", run.first_step, run.config["seed"])

    def write(self, *parts):
        self.file.write(json.dumps(parts) + "\\n")

    def log(self, metrics, step):
        self.write("log", step, sorted(metrics))

    def picture(self, name, path, step):
        self.write("picture", step, name, path.stat().st_size)

    def close(self):
        self.write("close")
        self.file.close()
'''


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red picture of 4 x 4 pixels."""
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_a_run_tells_its_trackers(tiny_model: Path, tmp_path: Path):
    (tmp_path / "own.py").write_text(OWN)
    config = tiny_config(tiny_model, steps=2, sample_every=2, save_every=1, track=(f"{tmp_path}/own.py:Lines",))
    assert train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/lines.jsonl").read_text().splitlines()]
    assert [line[:2] for line in lines] == [
        ["start", 0], ["picture", 0], ["log", 1], ["log", 2], ["picture", 2], ["picture", 2], ["close"],
    ]  # fmt: skip
    assert [line[2] for line in lines if line[0] == "picture"] == ["samples", "samples", "before_after"]
    assert {"reward_mean", "kl", "seconds/update"} <= set(lines[2][2])
    assert "step" not in lines[2][2]


def test_stages_of_pretraining_follow_one_another(tmp_path: Path):
    (tmp_path / "own.py").write_text(OWN)
    tokenizer = TokenizerTraining(steps=5)
    config = PretrainConfig(tokenizer=TOKENIZER, transformer=TRANSFORMER, tokenizer_training=tokenizer, seed=3)
    trackers = TrackedStages((f"{tmp_path}/own.py:Lines",), tmp_path, config)
    trackers.log("tokenizer", 5, {"loss": 1.0, "val_loss": float("nan")})
    trackers.log("generator", 1, {"loss": 2.0})
    trackers.close()
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert lines == [
        ["start", 4, 3], ["log", 5, ["tokenizer/loss"]], ["log", 6, ["generator/loss"]], ["close"],
    ]  # fmt: skip
    with bad_input("track", "'nope'"):
        TrackedStages(("nope",), tmp_path, config)


def test_trackers_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with bad_input("track", "'wandbb'", *TRACKERS):
        find_tracker("wandbb")
    assert find_tracker("tensorboard") is TensorBoard
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in TRACKERS:
        with bad_input("track", "not installed", f"pip install 'sfumato[{name}]'"):
            tiny_config(tmp_path, track=(name,)).validate()


class Failing:
    """Tracker that fails where it is told to."""

    def __init__(self, where: str, calls: list[str]):
        self.where, self.calls = where, calls

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.where:
            raise ConnectionError("the service is away\nand more")

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.call("log")

    def picture(self, name: str, path: Path, step: int) -> None:
        self.call("picture")

    def close(self) -> None:
        self.call("close")


@pytest.mark.parametrize("where", ["log", "picture", "close"])
def test_a_tracker_that_fails_is_left_out(picture: Path, where: str):
    notes, calls, others = [], [], []
    trackers = Trackers({"bad": Failing(where, calls), "good": Failing("", others)}, notes.append)
    trackers.log({"step": 1, "kl": 0.5})
    trackers.picture("samples", picture, 1)
    trackers.picture("samples", picture.with_name("removed.png"), 1)
    trackers.close()
    assert calls == ["log", "picture", "close"][: ["log", "picture", "close"].index(where) + 1]
    assert others == ["log", "picture", "close"]
    (note,) = notes
    assert "bad failed" in note
    assert note.endswith("(ConnectionError: the service is away)")


def test_a_tracker_that_cannot_start_is_left_out(tmp_path: Path):
    (tmp_path / "own.py").write_text("def Own(run):\n    raise OSError('no network')\n")
    notes = []
    trackers = open_trackers((f"{tmp_path}/own.py:Own",), Tracked(tmp_path, {}, 0), notes.append)
    assert trackers.open == {}
    assert "no network" in notes[0]


def test_a_resumed_run_keeps_its_identity(tmp_path: Path):
    names = iter("abc")
    create: Callable[[], str] = lambda: next(names)  # noqa: E731
    assert Tracked(tmp_path, {}, 0).identity("wandb", create) == "a"
    assert Tracked(tmp_path, {}, 5).identity("wandb", create) == "a"
    assert Tracked(tmp_path, {}, 5).identity("mlflow", create) == "b"  # added on resuming
    assert Tracked(tmp_path, {}, 0).identity("wandb", create) == "c"  # started again from the first step
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "c", "mlflow": "b"}


def started(name: str, folder: Path, first_step: int) -> Tracker:
    return find_tracker(name)(Tracked(folder, {"seed": 3, "policy": {"temperature": 0.5}}, first_step))


def track(name: str, folder: Path, first_step: int, picture: Path) -> None:
    """Track three steps after the first."""
    tracker = started(name, folder, first_step)
    assert isinstance(tracker, Tracker)
    for step in range(first_step + 1, first_step + 4):
        tracker.log({"kl": step / 2, "reward/a?b=c:d": -1.0}, step)
    tracker.picture("samples", picture, first_step + 3)
    tracker.close()


def test_tensorboard(tmp_path: Path, picture: Path):
    track("tensorboard", tmp_path / "run", 0, picture)
    time.sleep(1.1)  # names of event files have whole seconds
    track("tensorboard", tmp_path / "run", 2, picture)
    scalars, images, purges = [], [], []
    for file in sorted((tmp_path / "run/tensorboard").iterdir(), key=os.path.getmtime):
        for event in events(file.read_bytes()):
            for value in event.summary.value:
                if value.tag == "kl":
                    scalars.append((event.step, value.simple_value))
                elif value.HasField("image"):
                    images.append((event.step, value.tag, value.image.width))
            if event.HasField("session_log"):
                purges.append(event.step)
    assert sorted(scalars) == [(1, 0.5), (2, 1.0), (3, 1.5), (3, 1.5), (4, 2.0), (5, 2.5)]
    assert sorted(images) == [(3, "samples", 4), (5, "samples", 4)]
    assert purges == [3]


def events(data: bytes) -> list[Any]:
    """Read the records of an event file: length (8 bytes), checksum (4), content, checksum (4)."""
    found, position = [], 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        found.append(EVENT.FromString(data[position + 12 : position + 12 + length]))
        position += 16 + length
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the package
def test_wandb_offline(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    run = tmp_path / "run"
    run.mkdir()
    track("wandb", run, 0, picture)
    time.sleep(1.1)  # names of folders have whole seconds
    track("wandb", run, 3, picture)  # a resumed run
    found, names = {}, set()
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    deadline = time.monotonic() + 60
    while not all("exit" in dict(records(file)) for file in files):  # another process writes the files
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for file in files:
        for kind, record in records(file):
            if kind == "history":
                values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.item}
                found |= {(values["_step"], name): value for name, value in values.items()}
            elif kind == "run":
                names.add((record.run_id, record.project, record.display_name))
    assert {step: value for (step, name), value in found.items() if name == "kl"} == {i: i / 2 for i in range(1, 7)}
    assert found[3, "reward/a?b=c:d"] == -1.0
    assert len(names) == 1  # one run with one identity
    assert names.pop()[1:] == ("sfumato", "run")
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/samples_*.png"))) == 2


def records(file: Path) -> Iterator[tuple[str, Any]]:
    """Read the records of an offline run, which are in LevelDB's log format: parts of records in blocks of 32 kB, each
    with a checksum (4 bytes), a length (2) and a kind (1 whole, 2 first, 3 middle, 4 last)."""
    data, position, whole = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # no part begins here
            position += 32768 - position % 32768
        length, part = struct.unpack_from("<HB", data, position + 4)
        if position + 7 + length > len(data):  # it is still being written
            return
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if part in (1, 4):
            record, whole = RECORD.FromString(whole), b""
            kind = record.WhichOneof("record_type")
            yield kind, getattr(record, kind)


@pytest.mark.filterwarnings("ignore")  # of the package
def test_mlflow(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    run = tmp_path / "run"
    run.mkdir()
    track("mlflow", run, 0, picture)
    track("mlflow", run, 2, picture)
    client = mlflow.MlflowClient()
    known = client.get_run(json.loads((run / "trackers.json").read_text())["mlflow"])
    assert known.data.params == {"seed": "3", "policy.temperature": "0.5"}
    assert (known.info.run_name, known.info.status) == ("run", "FINISHED")
    history = {point.step: point.value for point in client.get_metric_history(known.info.run_id, "kl")}
    assert history == {step: step / 2 for step in range(1, 6)}
    assert [file.path for file in client.list_artifacts(known.info.run_id, "samples")] == ["samples/red.png"]


@pytest.mark.filterwarnings("ignore")  # of the package
def test_swanlab_offline(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    run = tmp_path / "run"
    run.mkdir()
    track("swanlab", run, 0, picture)
    assert any(file.stat().st_size for file in (run / "swanlog").rglob("*") if file.is_file())
