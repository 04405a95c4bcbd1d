"""The files and folders that the tables of bad inputs name in braces: good ones, and everything that can be wrong."""

import csv
import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_runs import write_pretraining, write_run
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny import CLASS_NAMES, tiny_config, tiny_llamagen, tiny_var

from sfumato.families.library import save_model
from sfumato.training.train import train


class Call:
    """When unpickled without care, it creates a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


TEXTS = {
    "page.pth": "<!DOCTYPE html><html><body>404</body></html>",
    "lfs.pth": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "text.pth": "hello",
    "empty.pth": "",
    "wrong.index.json": "[]",
    "lost.index.json": '{"weight_map": {"a": "nowhere.safetensors"}}',
    # prompts
    "empty.txt": "",
    "comments.txt": "# nothing\n\n",
    "two.txt": "a cat\na dog\n",
    "two.md": "a cat\na dog\n",
    "broken.jsonl": '{"caption": "a"}\n{"caption": \n',
    "number.jsonl": '{"caption": 3}\n',
    "blank.jsonl": '{"caption": " "}\n',
    "keyless.jsonl": '{"words": "a"}\n',
    "list.jsonl": "[1]\n",
    "half.jsonl": '{"caption": "\\ud800"}\n',
    "deep.jsonl": "[" * 100_000,
    "broken.json": "{",
    "object.json": '{"a": 1}',
    "deep.json": "[" * 100_000,
    "columns.csv": "a,b\n1,2\n",
    "short.csv": "caption,b\n1\n",
    "twice.csv": "caption,b,b\n1,2,3\n",
    "quotes.csv": 'caption,b\n"a"x,2\n',
    "named.jsonl": '{"file_name": "0.png", "caption": "a"}\n',
    "others.jsonl": '{"file_name": "x.png", "caption": "a"}\n{"file_name": "y.png", "caption": "a"}\n',
    # own code
    "syntax.py": "def reward(images, words):\n    return (",
    "raises.py": "raise RuntimeError('at import')\n",
    "exits.py": "raise SystemExit(3)\n",
    "lost.py": "import no_such_package\n",
    "empty.py": "",
    "rewards.py": """\
import torch

NUMBER = 3

def raising(images, words):
    raise KeyError("at call")

def wrong_shape(images, words):
    return torch.zeros(len(images) + 1)

def text(images, words):
    return "high"

def nothing(images, words):
    return None

def infinite(images, words):
    return torch.full((len(images),), torch.inf)

def needs_three(images, words, third):
    return torch.zeros(len(images))

class Option:
    def __init__(self, side: int, kind: str = "a"):
        if side < 0:
            raise ValueError("side: it is negative")
        self.side = side

    def __call__(self, images, words):
        return torch.zeros(len(images))

class NotCallable:
    pass
""",
    # settings
    "empty.yaml": "",
    "list.yaml": "- a\n",
    "text.yaml": "hello",
    "brackets.yaml": "steps: [1\n",
    "tab.yaml": "engine:\n\tcompile: true\n",
    "unknown.yaml": "recipe: emoji-dark\nstpes: 3\n",
    "nomodel.yaml": "steps: 3\n",
    "norecipe.yaml": "recipe: emoji-drak\n",
    "type.yaml": "recipe: emoji-dark\n\nsteps: [1, 2]\n",
    "zero.yaml": "recipe: emoji-dark\nsteps: 0\n",
    "twice.yaml": "recipe: emoji-dark\nsteps: 1\nsteps: 2\n",
    "nan.yaml": "recipe: emoji-dark\nlearning_rate: nan\n",
    "section.yaml": "recipe: emoji-dark\nengine: 3\n",
    "nested.yaml": "recipe: emoji-dark\nsteps: {a: 1}\n",
    "tag.yaml": "recipe: emoji-dark\nsteps: !!python/object/apply:os.getcwd []\n",
    "anchor.yaml": "steps: *a\n",
    "deep.yaml": "a: " + "[" * 5000,
    "control.yaml": "steps: \x01\n",
    "objective.yaml": "recipe: emoji-dark\nobjective: {name: grpo, temperature: 3}\n",
    "rewards.yaml": "recipe: emoji-dark\nreward: [dark]\n",
    "object.yaml": "recipe: emoji-dark\nreward: {dark: x}\n",
}
BYTES = {
    "binary.pth": bytes(range(256)) * 9,
    "zip.pth": b"PK\x03\x04" + bytes(99),
    "latin.txt": "café".encode("latin-1"),
    "latin.yaml": "model: café".encode("latin-1"),
    "binary.yaml": bytes(range(256)),
    "binary.txt": bytes(range(256)),
    "null.py": b"\x00",
    "latin.py": "'café'".encode("latin-1"),
    "text.npz": b"hello",
    "empty.npz": b"",
}


def make_inputs(root: Path) -> dict[str, str]:
    """Create all inputs in a folder; return what stands for the names in braces."""
    for name, text in TEXTS.items():
        (root / name).write_text(text, "utf-8")
    for name, content in BYTES.items():
        (root / name).write_bytes(content)
    make_weights(root)
    make_models(root)
    make_runs(root)
    make_pictures(root)
    for name in ("nothing", "cwd", "home"):
        (root / name).mkdir()
    paths = {path.name: str(path) for path in root.iterdir()}
    assert len(paths) == len(list(root.iterdir()))
    return {**paths, "new": str(root / "new"), "root": str(root)}


def make_weights(root: Path) -> None:
    """Write weight files that hold no weights, or not those of the tiny model, and pickles that call a function."""
    for name in ("call.pth", "call.pt"):
        with (root / name).open("wb") as file:
            pickle.dump({"weight": Call(root / "called")}, file, protocol=2)
    torch.save({"weight": Call(root / "called")}, root / "call.zip.pth")
    torch.save([1, 2], root / "list.pth")
    torch.save({"a": {"weight": torch.ones(1)}, "b": {"weight": torch.ones(1)}}, root / "several.pth")
    save_file({"x": torch.ones(1)}, root / "other.safetensors")
    content = (root / "other.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(content[:-2])
    (root / "long.safetensors").write_bytes(b"\xff" * 8 + content[8:])
    np.savez(root / "call.npz", arr_0=np.array([Call(root / "called")], dtype=object))
    np.savez(root / "names.npz", pictures=np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(root / "floats.npz", arr_0=np.full((2, 8, 8, 3), np.nan, np.float32))
    np.savez(root / "flat.npz", arr_0=np.zeros((2, 8, 8), np.uint8))
    np.savez(root / "none.npz", arr_0=np.zeros((0, 8, 8, 3), np.uint8))
    np.savez(root / "good.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    content = (root / "good.npz").read_bytes()
    (root / "cut.npz").write_bytes(content[: len(content) // 2])


def make_models(root: Path) -> None:
    """Write tiny models, and copies in which one thing is wrong."""
    save_model(root / "model", tiny_var())
    save_model(root / "llamagen", tiny_llamagen())
    twins = tiny_var()
    twins.card = replace(twins.card, class_names=("Crane", "crane", "3", "12", "elk"))
    save_model(root / "twins", twins)
    config = json.loads((root / "model/config.json").read_text())
    changes: dict[str, Any] = {
        "family": {"family": "vra"},
        "classes": {"class_names": 3},
        "shape": {"transformer": {**config["transformer"], "depth": 9}},
        "negative": {"transformer": {**config["transformer"], "depth": -1}},
        "key": {"transformer": {**config["transformer"], "colour": 1}},
        "types": {"transformer": {**config["transformer"], "width": "wide"}},
        "no-shape": {"transformer": None},
        "setting": {"settings": {"temperature": "hot"}},
        "nan": {"settings": {"temperature": float("nan")}},
        "judge": {"judge": "nobody"},
    }
    for name, change in changes.items():
        shutil.copytree(root / "model", root / f"model-{name}")
        (root / f"model-{name}/config.json").write_text(json.dumps(config | change))
    for name, text in {"json": "{", "list": "[]", "text": '"a"', "deep": "[" * 100_000, "object": "{}"}.items():
        shutil.copytree(root / "model", root / f"model-{name}")
        (root / f"model-{name}/config.json").write_text(text)
    for part in ("transformer", "tokenizer"):
        file = root / f"model/{part}.safetensors"
        for name, content in {
            "cut": file.read_bytes()[:-9],
            "empty": b"",
            "page": TEXTS["page.pth"].encode(),
            "lfs": TEXTS["lfs.pth"].encode(),
        }.items():
            shutil.copytree(root / "model", root / f"model-{part}-{name}")
            (root / f"model-{part}-{name}/{part}.safetensors").write_bytes(content)
        shutil.copytree(root / "model", root / f"model-{part}-less")
        tensors = dict(list(load_file(file).items())[1:])
        save_file(tensors, root / f"model-{part}-less/{part}.safetensors")
    shutil.copytree(root / "model", root / "model-no-tokenizer")
    (root / "model-no-tokenizer/tokenizer.safetensors").unlink()
    shutil.copytree(root / "model", root / "model-no-config")
    (root / "model-no-config/config.json").unlink()
    shutil.copytree(root / "model", root / "model-no-network")
    (root / "model-no-network/transformer.safetensors").unlink()


def make_runs(root: Path) -> None:
    """Write a run of two steps, copies in which one thing is wrong, and other kinds of runs."""
    config = tiny_config(root / "model", temperature=1.0, save_every=1, sample_every=2, keep_checkpoints=1)
    train(config, root / "run", console=Console(quiet=True))
    values = json.loads((root / "run/config.json").read_text())
    texts = {
        "json": "{",
        "list": "[]",
        "empty": "",
        "deep": "[" * 100_000,
        "nan": json.dumps({**values, "engine": {**values["engine"], "learning_rate": float("nan")}}),
        "types": json.dumps({**values, "steps": "two"}),
        "setting": json.dumps({**values, "colour": 3}),
        "less": json.dumps({name: value for name, value in values.items() if name != "engine"}),
        "objective": json.dumps({**values, "objective": {"name": "gone"}}),
        "moved": json.dumps({**values, "model": str(root / "gone")}),
        "latin": "\udce9",
    }
    for name, text in texts.items():
        shutil.copytree(root / "run", root / f"run-{name}")
        (root / f"run-{name}/config.json").write_text(text, errors="surrogateescape")
    for name in ("state.pt", "engine.pt", "model/transformer.safetensors"):
        file = root / "run/checkpoints/step-000002" / name
        short = file.name.partition(".")[0]
        for kind, content in {"cut": file.read_bytes()[:99], "empty": b"", "binary": BYTES["binary.pth"]}.items():
            shutil.copytree(root / "run", root / f"run-{short}-{kind}")
            (root / f"run-{short}-{kind}/checkpoints/step-000002/{name}").write_bytes(content)
    for name in ("state", "engine"):
        shutil.copytree(root / "run", root / f"run-{name}-call")
        shutil.copy(root / "call.pt", root / f"run-{name}-call/checkpoints/step-000002/{name}.pt")
    shutil.copytree(root / "run", root / "run-no-engine")
    (root / "run-no-engine/checkpoints/step-000002/engine.pt").unlink()
    shutil.copytree(root / "run", root / "run-no-metrics")
    (root / "run-no-metrics/metrics.jsonl").unlink()
    shutil.copytree(root / "run", root / "run-no-config")
    (root / "run-no-config/config.json").unlink()
    shutil.copytree(root / "run", root / "run-no-checkpoint")
    shutil.rmtree(root / "run-no-checkpoint/checkpoints")
    write_run(root / "written")
    write_run(root / "unscored", reward={})
    write_pretraining(root / "pretraining")


def make_pictures(root: Path) -> None:
    """Write pictures and broken ones, alone and in folders."""
    stream = io.BytesIO()
    Image.effect_noise((24, 24), 50).convert("RGB").save(stream, "PNG")
    picture = stream.getvalue()
    pictures = {
        "good.png": picture,
        "cut.png": picture[:300],
        "zero.png": b"",
        "text.png": b"hello",
        "page.png": TEXTS["page.pth"].encode(),
        "lfs.png": TEXTS["lfs.pth"].encode(),
        # A header of 65000 x 65000 pixels.
        "bomb.png": picture[:16] + (65000).to_bytes(4, "big") * 2 + picture[24:],
    }
    for name, content in pictures.items():
        (root / name).write_bytes(content)
    for folder, names in {
        "pictures": ("good.png", "good.png"),
        "broken": ("cut.png", "zero.png", "text.png"),
        "data/red": ("good.png",) * 4,
        "data/blue": ("good.png",) * 4,
        "data-broken/red": ("cut.png", "zero.png"),
        "data-one/red": ("good.png",),
        "no-pictures": (),
    }.items():
        (root / folder).mkdir(parents=True)
        for number, name in enumerate(names):
            (root / folder / f"{number}.png").write_bytes(pictures[name])
    (root / "no-pictures/notes.txt").write_text("none")
    (root / "data-empty/red").mkdir(parents=True)
    (root / "two-sizes").mkdir()
    for side in (8, 9):
        Image.new("RGB", (side, side)).save(root / f"two-sizes/{side}.png")
    with (root / "table.csv").open("w") as file:
        csv.writer(file).writerow(CLASS_NAMES)
