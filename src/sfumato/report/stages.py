"""Read the folders of pre-training runs for the page: a stage per model, each with curves and pictures."""

from pathlib import Path

from sfumato.evaluation.runner import flat
from sfumato.report.folders import Row, curves, read_moments, read_object, read_optional, read_rows, read_starts

STAGES = {
    "tokenizer": (2, "Each image is followed by its reconstruction."),
    "generator": (4, "Four seeds for each class or caption."),
    "classifier": (1, "Augmented images, as the classifier sees them."),
    "image-text": (1, "Degraded images, as the model sees them."),
}
"""Stages in the order of training: how many adjacent pictures belong together, and what the pictures are."""
MAX_MOMENTS = 10
"""Largest number of steps with pictures per stage; each has up to 64."""


def is_pretraining(folder: Path) -> bool:
    """Return whether `sfumato pretrain` wrote this folder."""
    return (folder / "config.json").is_file() and (folder / "data.json").is_file()


def read_pretraining(folder: Path, name: str) -> tuple[Row, Row]:
    """Return the data of a pre-training run for the page, and its settings with dotted names. The name of a curve
    begins with its stage.

    Raises:
        UserError: `config.json` is not a JSON object.
    """
    config = read_object(folder / "config.json")
    notes: list[str] = []
    data = read_optional(folder / "data.json", notes)
    stages, points = [], {}
    for stage in filter(lambda stage: (folder / stage).is_dir(), STAGES):
        rows = read_rows(folder / stage / "metrics.jsonl", notes)
        points |= curves(rows, f"{stage}/")
        stages.append(
            {
                "name": stage,
                "steps": (config.get(f"{stage}_training") or config.get("training") or {}).get("steps"),
                "done": rows[-1]["step"] if rows else 0,
                "moments": read_moments(folder / stage / "samples", (), notes, MAX_MOMENTS),
                "together": STAGES[stage][0],
                "hint": STAGES[stage][1],
            }
        )
    run = {
        "name": name,
        "start_from": config.get("start_from"),
        "images": data.get("items"),
        "held_out": len(data.get("held_out") or ()),
        "classes": len(data.get("class_names") or ()),
        "stages": stages,
        "evaluation": {},
        "curves": points,
        "starts": read_starts(folder, notes),
        "notes": notes,
    }
    return run, flat(config)
