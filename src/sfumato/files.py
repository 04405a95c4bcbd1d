"""Files that are complete or absent, what JSON can hold, and whether files have changed."""

import hashlib
import math
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """A file that is complete or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON has not: None in their place."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def state(path: Path) -> str:
    """What changes when a file does, or any file in a folder: path, size and time."""
    if not path.is_dir():
        return f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256("\n".join(map(state, files)).encode()).hexdigest()[:16]
    return f"{path.resolve()} {len(files)} files {digest}"
