"""The files of a study: a Markdown page, a plot, and all numbers as CSV."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from sfumato.evaluation.plots import panels
from sfumato.evaluation.tables import number
from sfumato.experiments.seeds import Mean, mean_of, ranks
from sfumato.experiments.studies import ACCURACY, DISTANCE, KL, TIMES, Study
from sfumato.files import write_text
from sfumato.training.hooks.budget import PREFIX, TOTAL
from sfumato.training.train_config import TrainConfig

WINDOW = 256
"""Number of images of training over which a share is averaged."""
POINTS = 60
"""Number of points of a curve."""


@dataclass(frozen=True)
class Outcome:
    """The result of one arm with one seed."""

    measured: Mapping[str, float]
    """figures of fresh images, by name"""
    rows: Sequence[Mapping[str, float]]
    """metrics of the steps; none without training"""
    hardware: str
    config: TrainConfig

    def figure(self, name: str) -> float:
        """Return a figure, or a product of figures; NaN if it was not measured."""
        return math.prod(self.measured.get(factor, math.nan) for factor in name.split(TIMES))

    @property
    def processor(self) -> dict[str, float]:
        """Processor seconds of training by phase."""
        last = self.rows[-1] if self.rows else {}
        return {name.removeprefix(PREFIX): value for name, value in last.items() if name.startswith(PREFIX)}

    @property
    def window(self) -> int:
        """Number of steps that have `WINDOW` images."""
        return max(1, -(-WINDOW // self.config.images_per_step))

    def seconds_to(self, metric: str, goal: float) -> float:
        """Return the processor seconds after which the mean of a metric over the last steps stays at the goal or above
        to the end; NaN if it does not."""
        known = [row for row in self.rows if metric in row]
        means = trailing_means([row[metric] for row in known], self.window)
        reached = len(means)
        while reached and means[reached - 1] >= goal:
            reached -= 1
        return known[reached + self.window - 1][TOTAL] if reached < len(means) else math.nan


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A study with all its results."""

    study: Study
    outcomes: Mapping[str, Sequence[Outcome]]
    """one outcome for each seed, by arm"""
    options: Mapping[str, str]
    """words after `sfumato train`, by arm"""
    untrained: Sequence[str]
    """arms that are not trained"""
    swept: Mapping[str, Mapping[str, Sequence[float]]]
    """judged figure by arm, then by option, one for each seed of the sweep"""
    absent: Mapping[str, str]
    """why an arm is left out"""
    seconds: float
    command: str

    def values(self, arm: str, figure: str) -> list[float]:
        """Return a figure of every seed; NaN where it was not measured."""
        return [outcome.figure(figure) for outcome in self.outcomes[arm]]

    @property
    def trained(self) -> list[str]:
        """The arms that are trained."""
        return [arm for arm in self.outcomes if arm not in self.untrained]

    @property
    def figures(self) -> list[str]:
        """All figures of fresh images, those that matter most first."""
        names = dict.fromkeys(name for results in self.outcomes.values() for one in results for name in one.measured)
        return list(dict.fromkeys([*(name for name in self.plotted if name in names or TIMES in name), *names]))

    @property
    def plotted(self) -> list[str]:
        """The figures that matter most."""
        return list(dict.fromkeys([self.study.judged, self.study.curve, ACCURACY, DISTANCE, KL]))


def trailing_means(values: Sequence[float], window: int) -> list[float]:
    """Return the means of every `window` values in a row."""
    return [math.fsum(values[end - window : end]) / window for end in range(window, len(values) + 1)]


def write_study(name: str, finished: Finished, out: Path) -> None:
    """Write the page, the plot and the numbers."""
    write_numbers(finished, out / f"{name}.csv")
    write_plot(finished, out / f"{name}.png")
    write_text(out / f"{name}.md", page(name, finished))


def write_numbers(finished: Finished, path: Path) -> None:
    """Write every figure of every run: arm, seed, name, value."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "seed", "name", "value"])
        for arm, outcomes in finished.outcomes.items():
            for outcome in outcomes:
                last = {"steps": len(outcome.rows), **{f"{PREFIX}{n}": v for n, v in outcome.processor.items()}}
                for figure, value in {**outcome.measured, **(last if outcome.rows else {})}.items():
                    writer.writerow([arm, outcome.config.seed, figure, f"{value:.6g}"])


def page(name: str, finished: Finished) -> str:
    """Return the page as Markdown."""
    study, counts = finished.study, sorted({len(outcomes) for outcomes in finished.outcomes.values()})
    hardware = sorted({outcome.hardware for outcomes in finished.outcomes.values() for outcome in outcomes})
    lines = [f"# {study.help[0].upper()}{study.help[1:]}", "", study.about, ""]
    lines += [f"    {finished.command}", ""]
    lines += [
        f"Every arm is trained with {' to '.join(map(str, counts))} seeds for {finished.seconds:g} processor seconds "
        f"each (drawing, decoding, reward, reference and update), at a constant learning rate, and judged by 256 fresh "
        f"images (64 classes or captions × 4) per seed. Hardware: {'; '.join(hardware)}. Numbers are means over seeds "
        f"[95 % interval by Student's t]. This page is written by the command; `{name}.csv` has all numbers.",
        "",
    ]
    lines += [f"![plot]({name}.png)", "", "## Fresh images", "", *table(finished), ""]
    lines += ["## Order", "", *order(finished), "", "## Cost", "", *costs(finished), ""]
    if finished.swept:
        lines += ["## Sweep", "", *sweep(finished), ""]
    lines += ["## Arms", ""]
    lines += [
        f"- {arm}: `sfumato train {words}`{', before training' if arm in finished.untrained else ''}"
        for arm, words in finished.options.items()
    ]
    lines += [f"- left out, {arm}: {reason}" for arm, reason in finished.absent.items()]
    return "\n".join(lines) + "\n"


def table(finished: Finished) -> list[str]:
    """Return the figures of all arms, one row for each arm, the best by the judged figure first."""
    figures = finished.figures
    judged = {arm: mean_of(finished.values(arm, finished.study.judged)).value for arm in finished.outcomes}
    arms = sorted(judged, key=lambda arm: -judged[arm] if not math.isnan(judged[arm]) else math.inf)
    rows = [[arm, *(told(mean_of(finished.values(arm, figure))) for figure in figures)] for arm in arms]
    return as_table([["arm", *figures], *rows])


def order(finished: Finished) -> list[str]:
    """Return the ranks of the trained arms and how sure they are."""
    judged = finished.study.judged
    placed = ranks({arm: finished.values(arm, judged) for arm in finished.trained})
    arms, rows = list(placed), []
    for place, (arm, rank) in enumerate(placed.items()):
        following = arms[place + 1] if place + 1 < len(arms) else None
        ahead = "" if following is None else percent(rank.beats[following])
        low, high = rank.interval
        rows.append([arm, f"{rank.mean:.1f} [{low:g}, {high:g}]", percent(rank.best), ahead])
    lines = [
        f"By {judged}, from 10,000 bootstrap resamples of the seeds (a few seeds tell the spread only roughly, so the "
        "shares are somewhat too sure):",
        "",
    ]
    return [*lines, *as_table([["arm", "mean rank [95 %]", "is the best", "is ahead of the next"], *rows])]


def costs(finished: Finished) -> list[str]:
    """Return what the budget went to, and how long the goal took."""
    study = finished.study
    phases = list(dict.fromkeys(p for arm in finished.trained for one in finished.outcomes[arm] for p in one.processor))
    timed = f"seconds to {percent(study.goal)} of `{study.curve}`" if study.goal is not None else None
    header = ["arm", "steps", "processor seconds", *phases, *([timed] if timed else [])]
    rows = []
    for arm in finished.trained:
        outcomes = finished.outcomes[arm]
        row = [arm, told(mean_of([len(one.rows) for one in outcomes]))]
        row.append(number(mean_of([sum(one.processor.values()) for one in outcomes]).value))
        row += [number(mean_of([one.processor.get(phase, 0.0) for one in outcomes]).value) for phase in phases]
        if study.goal is not None:
            seconds = [one.seconds_to(study.curve, study.goal) for one in outcomes]
            reached = sum(not math.isnan(each) for each in seconds)
            mean = f"{told(mean_of(seconds))}, " if reached else ""
            row.append(f"{mean}{reached} of {len(seconds)} seeds")
        rows.append(row)
    lines = as_table([header, *rows])
    if timed:
        lines += [
            "",
            f"The goal counts as reached when the mean over the last {WINDOW} images or more of training stays there "
            "to the end; the mean leaves out seeds that do not get there.",
        ]
    return lines


def sweep(finished: Finished) -> list[str]:
    """Return what the sweep measured."""
    options = list(dict.fromkeys(words for swept in finished.swept.values() for words in swept))
    seeds = len(next(iter(next(iter(finished.swept.values())).values())))
    lines = [f"Mean of {finished.study.judged} over {seeds} seeds of the sweep's own; the highest was taken.", ""]
    short = {words: words.split("--")[-1] for words in options}
    names = list(dict.fromkeys(short.values()))
    rows = []
    for arm, swept in finished.swept.items():
        found = {short[words]: mean_of(values).value for words, values in swept.items()}
        rows.append([arm, *(number(found[name]) if name in found else "" for name in names)])
    return [*lines, *as_table([["arm", *names], *rows])]


def as_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first row is the header."""
    header, *rest = rows
    return [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rest]]


def told(mean: Mean) -> str:
    """Return a mean with its interval as text."""
    if math.isnan(mean.value):
        return ""
    ends = "" if mean.interval is None else f" [{number(mean.interval[0])}, {number(mean.interval[1])}]"
    return number(mean.value) + ends


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.0f} %"


def write_plot(finished: Finished, path: Path) -> None:
    """Plot the main figures of all arms, the curves over processor seconds, and the seconds per step by phase."""
    figures, curve = [name for name in finished.figures if name in finished.plotted], finished.study.curve
    plot, axes = panels([*figures, f"training: {curve}", "processor seconds per step"])
    colors = {arm: f"C{place}" for place, arm in enumerate(finished.trained)} | dict.fromkeys(finished.untrained, "0.5")
    for figure, axis in zip(figures, axes, strict=False):
        _draw_dots(axis, finished, figure, colors)
    _draw_curves(axes[-2], finished, curve, colors)
    _draw_phases(axes[-1], finished)
    plot.savefig(path, dpi=110)


def _draw_dots(axis: Axes, finished: Finished, figure: str, colors: Mapping[str, str]) -> None:
    """Draw every seed as a dot, and the mean with its interval."""
    for place, arm in enumerate(finished.outcomes):
        values = finished.values(arm, figure)
        mean = mean_of(values)
        low, high = mean.interval or (mean.value, mean.value)
        axis.plot(values, [place] * len(values), ".", color=colors[arm], alpha=0.5)
        axis.plot([low, high], [place, place], color="black", linewidth=1.2)
        axis.plot([mean.value], [place], "|", color="black", markersize=9)
    _name_rows(axis, list(finished.outcomes))


def _draw_curves(axis: Axes, finished: Finished, metric: str, colors: Mapping[str, str]) -> None:
    """Draw the mean over seeds of a metric of training, as a running mean over images."""
    for arm in finished.trained:
        lines = []
        grid = np.linspace(0, finished.seconds, POINTS)
        for outcome in finished.outcomes[arm]:
            known = [row for row in outcome.rows if metric in row]
            means = trailing_means([row[metric] for row in known], outcome.window)
            if means:
                times = [row[TOTAL] for row in known[outcome.window - 1 :]]
                lines.append(np.interp(grid, times, means, left=np.nan, right=means[-1]))
        if lines:
            axis.plot(grid, np.mean(lines, axis=0), color=colors[arm], label=arm, linewidth=1.5)
    axis.set_xlabel("processor seconds")
    if axis.lines:
        axis.legend(fontsize=6)


def _draw_phases(axis: Axes, finished: Finished) -> None:
    """Draw stacked bars of the seconds per step."""
    arms, phases = finished.trained, {}
    for place, arm in enumerate(arms):
        left = 0.0
        for phase in dict.fromkeys(phase for one in finished.outcomes[arm] for phase in one.processor):
            color = phases.setdefault(phase, f"C{len(phases)}")
            width = mean_of([one.processor.get(phase, 0.0) / len(one.rows) for one in finished.outcomes[arm]]).value
            axis.barh(place, width, left=left, color=color, height=0.6)
            left += width
    for phase, color in phases.items():
        axis.barh(0, 0, color=color, label=phase)
    _name_rows(axis, arms)
    if phases:
        axis.legend(fontsize=6)


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Name the rows of a panel, the first at the top."""
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.invert_yaxis()
