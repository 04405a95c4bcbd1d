"""Check the imports against the layer rule in docs/architecture.md."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/sfumato"
FAMILY_FILES = {"__init__.py", "generator.py", "network.py", "published.py", "releases.py", "tokenizer.py"}
"""Modules that every family's folder contains; the tokenizer may be one that families share."""


def layers() -> list[list[str]]:
    """Return the layers in the documentation, from the top."""
    text = (ROOT / "docs/architecture.md").read_text()
    rule = re.search(r"^    (cli >.*(?:\n    .*)*)", text, re.MULTILINE)
    assert rule is not None
    return [[name.strip() for name in layer.split("|")] for layer in " ".join(rule[1].split()).split(">")]


RANKS = {name: rank for rank, layer in enumerate(layers()) for name in layer}


def modules() -> Iterator[Path]:
    return (path for path in sorted(SOURCE.rglob("*.py")) if path.parent != SOURCE or not path.name.startswith("__"))


def room_of(path: Path) -> str:
    """Return the first part of a module's name below the package."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Yield the full names of all modules of this package that a file imports, at any place."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sfumato":
            assert node.level == 0
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sfumato")


def test_every_room_is_in_the_rule():
    assert {room_of(path) for path in modules()} - {"testing", "bundled"} == set(RANKS)


def test_imports_go_down():
    wrong = []
    for path in modules():
        room = room_of(path)
        for name in imports_of(path):
            other = name.split(".")[1] if "." in name else ""
            if room not in (other, "testing") and not RANKS.get(other, -1) > RANKS[room]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong


def test_families_are_known_to_themselves_alone():
    """Only `families/` imports modules of a family, and no family imports another."""
    wrong = []
    for path in modules():
        own = path.relative_to(SOURCE).parts[1] if room_of(path) == "families" else ""
        for name in imports_of(path):
            parts = name.split(".")
            inside = parts[:2] == ["sfumato", "families"] and len(parts) > 2
            if inside and (SOURCE / "families" / parts[2]).is_dir() and parts[2] != own:
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert not wrong


def test_basenames_can_be_found():
    """Module names are unique, except for the files of every family, and commands named after the module they call."""
    names = Counter(
        path.name for path in modules() if path.name != "__init__.py" and path.parent.parent != SOURCE / "families"
    )
    commands = {path.name for path in (SOURCE / "cli").glob("*.py")}
    repeated = {name for name, count in names.items() if count > 1}
    assert repeated <= commands | FAMILY_FILES


def test_a_family_is_one_folder():
    for folder in (path.parent for path in (SOURCE / "families").glob("*/__init__.py")):
        assert FAMILY_FILES - {path.name for path in folder.glob("*.py")} <= {"tokenizer.py"}
