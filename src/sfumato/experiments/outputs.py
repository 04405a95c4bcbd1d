"""Write the files of an experiment: a plot, pictures, numbers and a summary."""

import csv
import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from sfumato.data.pictures import COLUMNS
from sfumato.evaluation.plots import draw_line, panels
from sfumato.evaluation.tables import to_markdown
from sfumato.experiments.experiment import BASE, Bars, Curve, Experiment, Findings, Sweep
from sfumato.files import write_text
from sfumato.objectives import name_of

FEW, WINDOW = 12, 7
"""Largest number of points of a curve without smoothing, and window of the running mean for longer curves."""
PICTURE_ROWS = 2
"""Number of rows to show from a run's sheet of samples."""


def write_numbers(findings: Findings, path: Path) -> None:
    """Write all numbers as CSV, one line per value: source, run, step, name, value and the ends of its interval."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["source", "run", "step", "name", "value", "low", "high"])
        for run, rows in findings.curves.items():
            for row in rows:
                for name, value in row.items():
                    if name != "step" and not name.startswith("seconds/") and math.isfinite(value):
                        writer.writerow(["training", run, int(row["step"]), name, f"{value:.6g}", "", ""])
        for suite, measurements in findings.measured.items():
            for run, measurement in measurements.items():
                for name, figure in measurement.items():
                    ends = [f"{end:.6g}" for end in figure.interval() or ()] or ["", ""]
                    writer.writerow([suite, run, "", name, f"{figure.value:.6g}", *ends])


def write_plot(experiment: Experiment, findings: Findings, path: Path) -> None:
    """Plot the experiment's panels with one color per run."""
    colors = {run: f"C{number}" for number, run in enumerate(experiment.runs)} | {BASE: "0.6"}
    plot, axes = panels([panel.title for panel in experiment.panels])
    for panel, axis in zip(experiment.panels, axes, strict=True):
        match panel:
            case Curve():
                _draw_curves(axis, panel, findings, colors)
            case Bars():
                _draw_bars(axis, panel, findings, colors)
            case Sweep():
                _draw_sweep(axis, panel, findings, colors)
    plot.savefig(path, dpi=110)


def _draw_curves(axis: Axes, panel: Curve, findings: Findings, colors: Mapping[str, str]) -> None:
    for run in panel.runs or findings.curves:
        steps, values = findings.curve(run, panel.metric)
        many = len(steps) > FEW
        if many:  # steps have different classes with different rewards; the mean shows what is learned
            axis.plot(steps, values, color=colors[run], linewidth=0.8, alpha=0.3)
            values = running_mean(values, WINDOW)
        axis.plot(steps, values, color=colors[run], label=run, linewidth=1.6, marker="" if many else ".")
    axis.set_xlabel("step")
    axis.legend(fontsize=8)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return, for each value, the mean over half a window before and after it; the window is shorter at the ends."""
    half = window // 2
    parts = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _draw_bars(axis: Axes, panel: Bars, findings: Findings, colors: Mapping[str, str]) -> None:
    for place, (run, measurement) in enumerate(findings.measured[panel.suite].items()):
        figure = measurement[panel.name]
        low, high = figure.interval() or (figure.value, figure.value)
        axis.bar(place, figure.value, color=colors[run], width=0.7)
        axis.plot([place, place], [low, high], color="black", linewidth=1.2)
    runs = list(findings.measured[panel.suite])
    axis.set_xticks(range(len(runs)), runs, rotation=20, ha="right", fontsize=8)


def _draw_sweep(axis: Axes, panel: Sweep, findings: Findings, colors: Mapping[str, str]) -> None:
    for run, measurement in findings.measured[panel.suite].items():
        draw_line(axis, {value: measurement[panel.at(value)] for value in panel.values}, run, colors[run])
    axis.set_xlabel("guidance at inference")
    axis.legend(fontsize=8)


def write_pictures(folders: Mapping[str, Path], path: Path) -> None:
    """Draw a band of samples of the model before training and of every run at its end, for the same conditions and
    seeds."""
    sheets = {run: sorted((folder / "samples").glob("step-*.png")) for run, folder in folders.items()}
    first = next(iter(sheets.values()))[0]
    bands = [(BASE, _band(first)), *((run, _band(paths[-1])) for run, paths in sheets.items())]
    title, width = 24, max(band.width for _, band in bands)
    sheet = Image.new("RGB", (width, sum(title + band.height for _, band in bands)), "white")
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.truetype(findfont("DejaVu Sans"), 14), 0
    for name, band in bands:
        draw.text((4, top + 3), name, fill="black", font=font)
        sheet.paste(band, (0, top + title))
        top += title + band.height
    sheet.save(path)


def _band(sheet: Path) -> Image.Image:
    """Return the first rows of a sheet of samples."""
    with Image.open(sheet) as picture:
        tile = picture.width / COLUMNS
        return picture.convert("RGB").crop((0, 0, picture.width, round(min(PICTURE_ROWS * tile, picture.height))))


def write_summary(command: str, experiment: Experiment, findings: Findings, path: Path) -> None:
    """Write the settings of the runs, the verdicts on the claims, and the tables, as Markdown."""
    words = {True: "holds", False: "does not hold", None: "inconclusive"}
    lines = [f"# {experiment.title}", "", f"*{experiment.source}.* {experiment.about}", "", "## Claims", ""]
    for claim in experiment.claims:
        verdict = claim.check(findings)
        lines += [f"- **{words[verdict.holds]}**: {claim.text}.", f"  {verdict.evidence}."]
    lines += ["", "![plot](plot.png)", "", "![pictures](pictures.png)", "", "## Measurements", ""]
    for suite, measurements in findings.measured.items():
        lines += [f"{suite}: value [95 % interval]; difference to the first column", "", to_markdown(measurements)]
    lines += ["## Runs", "", f"    {command}", ""]
    lines += [f"The model is `{experiment.model}`, and all numbers are in `numbers.csv`. The runs:", ""]
    if findings.seeds:
        lines[-2] = (
            f"The experiment was done with {len(findings.seeds)} seeds. Numbers are means over the seeds, intervals "
            f"are Student's t over the seeds, and pictures are those of the first seed. {lines[-2]}"
        )
    for run, config in experiment.runs.items():
        seconds = sum(v for row in findings.curves[run] for n, v in row.items() if n.startswith("seconds/"))
        rewards = " + ".join(f"{weight:g} × {reward}" for reward, weight in config.reward.items())
        lines += [
            f"- {run}: {rewards}; {config.steps} steps of {config.groups_per_step} × {config.group_size} images, "
            f"{name_of(config.objective)} ({options(config.objective)}), "
            f"learning rate {config.engine.learning_rate:g}, {config.policy}, seed {config.seed}; "
            f"{seconds / 60:.1f} minutes"
        ]
    lines += ["", f"Hardware: {hardware()}."]
    write_text(path, "\n".join(lines) + "\n")


def options(objective: object) -> str:
    """Return an objective's options as readable text."""
    assert dataclasses.is_dataclass(objective)
    return ", ".join(f"{f.name.replace('_', ' ')} {getattr(objective, f.name)}" for f in dataclasses.fields(objective))


def hardware() -> str:
    """Describe the hardware that this process uses."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    return f"{torch.get_num_threads()} thread(s) of an {platform.machine()} CPU, PyTorch {torch.__version__}"
