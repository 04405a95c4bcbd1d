"""Build the page of a report: data, style and script in one self-contained file."""

import html
import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from sfumato.errors import UserError
from sfumato.evaluation.runner import label
from sfumato.files import check_writable, finite, write_text
from sfumato.report.folders import Row, check_distinct, differences, read_evaluation, read_run
from sfumato.report.stages import is_pretraining, read_pretraining

HERE = Path(__file__).parent
MARK = '<meta name="generator" content="sfumato report">'
"""Mark that identifies files of this package."""


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write a report on runs and evaluations, or on pre-training runs, to the first run's folder if `out` is not given.

    Raises:
        UserError: a folder is neither a run nor an evaluation, or `out` is an existing file that is not a report.
    """
    data = collect(folders)
    out = out or next(folder for folder in folders if is_run(folder)) / "report.html"
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page(data))
    return out


def collect(folders: Sequence[Path]) -> Row:
    """Collect the data of the page.

    Raises:
        UserError: a folder is neither a run nor an evaluation, or is given twice; none is a run; or runs of `sfumato
            train` and of `sfumato pretrain` are mixed.
    """
    for folder in folders:
        if not is_run(folder) and not is_evaluation(folder):
            state = (
                "was not written by `sfumato train`, `pretrain` or `evaluate --out`"
                if folder.exists()
                else "is missing"
            )
            raise UserError(f"run: {folder} {state}; give run folders, such as runs/emoji-dark")
    check_distinct(folders)
    if not any(map(is_run, folders)):
        raise UserError("run: no run folder is given; give one, such as runs/emoji-dark")
    of_kind = {is_pretraining(folder): folder for folder in folders if is_run(folder)}
    if len(of_kind) > 1:
        raise UserError(
            f"run: {of_kind[True]} is from `sfumato pretrain` and {of_kind[False]} from `sfumato train`; report on "
            "each kind separately"
        )
    read = read_pretraining if True in of_kind else read_run
    named = list(zip(folders, label([str(folder.resolve()) for folder in folders]), strict=True))
    runs, settings = zip(*[read(folder, name) for folder, name in named if is_run(folder)], strict=True)
    return {
        "title": ", ".join(run["name"] for run in runs),
        "version": version("sfumato"),
        "runs": list(runs),
        "settings": differences(settings),
        "evaluations": [read_evaluation(folder, name) for folder, name in named if not is_run(folder)],
    }


def is_run(folder: Path) -> bool:
    """Return whether this looks like a run folder."""
    return (folder / "config.json").is_file()


def is_evaluation(folder: Path) -> bool:
    """Return whether `sfumato evaluate` wrote this folder."""
    return (folder / "evaluation.json").is_file() and not is_run(folder)


def check_out(out: Path) -> None:
    """Refuse to overwrite anything but a report.

    Raises:
        UserError: the path is a folder, a file that is not a report, or in a folder that is not writable.
    """
    if out.is_dir():
        raise UserError(f"out: {out} is a folder; name a file")
    if out.exists() and MARK.encode() not in out.read_bytes()[:1000]:
        raise UserError(f"out: {out} exists and is not a report of Sfumato; choose another --out")
    check_writable("out", out.parent)


def page(data: Row) -> str:
    """Return the content of the file. Names and captions come from users, so they are escaped in HTML, and every `<` is
    escaped in the script's JSON, so that they cannot end the script."""
    parts = {
        "mark": MARK,
        "title": html.escape(data["title"]),
        "style": (HERE / "style.css").read_text("utf-8"),
        "script": "".join((HERE / f"{part}.js").read_text("utf-8") for part in ("curves", "pictures", "report")),
        "data": json.dumps(finite(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    # In one pass, so that inserted text is not searched for placeholders.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (HERE / "page.html").read_text("utf-8"))
