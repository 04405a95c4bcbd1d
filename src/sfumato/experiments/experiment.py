"""Experiments of a paper: training runs, measurements, and checks of the paper's claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.runner import Suite
from sfumato.evaluation.tables import number, with_interval
from sfumato.experiments.seeds import OverSeeds, mean_of
from sfumato.objectives import GRPO
from sfumato.training.train_config import TrainConfig

BASE = "before"
"""Name of the model before training, among the names of the runs."""
TAIL = 5
"""Number of last (or first) steps whose mean represents the end (or start) of a curve."""


@dataclass(frozen=True)
class Findings:
    """All results of an experiment."""

    curves: Mapping[str, Sequence[Mapping[str, float]]]
    """rows of `metrics.jsonl` and, if they exist, of the fixed and held-out sets, by run"""
    measured: Mapping[str, Mapping[str, Measurement]]
    """measurements by suite, then by run, including the model before training"""
    seeds: Sequence["Findings"] = ()
    """results of each seed, if these are means over several"""

    def figure(self, suite: str, run: str, name: str) -> Figure:
        """Return one figure of one run."""
        return self.measured[suite][run][name]

    def curve(self, run: str, name: str) -> tuple[list[int], list[float]]:
        """Return the steps at which a metric was measured, and its values."""
        rows = [row for row in self.curves[run] if name in row]
        return [int(row["step"]) for row in rows], [row[name] for row in rows]

    def ends(self, run: str, name: str) -> tuple[float, float]:
        """Return the means of a metric over its first and over its last few rows."""
        values = self.curve(run, name)[1]
        few = max(1, min(TAIL, len(values) // 2))
        return sum(values[:few]) / few, sum(values[-few:]) / few


def over_seeds(seeds: Sequence[Findings]) -> Findings:
    """Return means over seeds: figures with intervals over the seeds, and the mean of every metric at every step."""
    first = seeds[0]
    curves = {run: _mean_rows([findings.curves[run] for findings in seeds]) for run in first.curves}
    measured = {
        suite: {
            run: {name: OverSeeds.of([findings.figure(suite, run, name) for findings in seeds]) for name in measurement}
            for run, measurement in measurements.items()
        }
        for suite, measurements in first.measured.items()
    }
    return Findings(curves, measured, seeds)


def _mean_rows(runs: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Return the mean of the n-th rows of all runs, which have the same steps, by metric."""
    return [
        {name: mean_of([row[name] for row in rows]).value for name in rows[0] if all(name in row for row in rows)}
        for rows in zip(*runs, strict=True)
    ]


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds (None if the measurement is inconclusive), with the evidence as text."""

    holds: bool | None
    evidence: str


Check = Callable[[Findings], Verdict]


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, in our words, and its check."""

    text: str
    check: Check


@dataclass(frozen=True)
class Curve:
    """A panel with a metric of the runs over their steps."""

    metric: str
    title: str
    runs: tuple[str, ...] = ()
    """runs to show; all if empty"""


@dataclass(frozen=True)
class Bars:
    """A panel with a figure of a suite, one bar per run."""

    suite: str
    name: str
    title: str


@dataclass(frozen=True)
class Sweep:
    """A panel with a figure of a suite that was measured at several values of guidance, one line per run."""

    suite: str
    name: str
    title: str
    values: tuple[float, ...]

    def at(self, value: float) -> str:
        """Return the figure's name at this guidance."""
        return f"guidance {value:g}: {self.name}"


Panel = Curve | Bars | Sweep
REWARD, KL, ENTROPY = Curve("reward_mean", "reward"), Curve("kl", "KL (nats per token)"), Curve("entropy", "entropy")
"""Panels that most experiments have."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A set of runs with its evaluation, its plot and the paper's claims."""

    title: str
    source: str
    """paper, and figure or table"""
    about: str
    """description of the setup in two or three sentences"""
    runs: Mapping[str, TrainConfig]
    """runs by their names in the plot; all start from the same model"""
    suites: Mapping[str, Suite]
    """suites by name, which measure the model before training and every run"""
    panels: tuple[Panel, ...]
    claims: tuple[Claim, ...]
    minutes: int | None = None
    """measured minutes on two CPU cores; None for released weights"""

    @property
    def model(self) -> str:
        """The model that all runs start from."""
        (model,) = {config.model for config in self.runs.values()}
        return model


def with_kl(config: TrainConfig, weight: float) -> TrainConfig:
    """Return the same run with another weight of the KL penalty; the KL is logged even if the weight is 0."""
    assert isinstance(config.objective, GRPO)
    return replace(config, objective=replace(config.objective, kl_weight=weight, report_kl=not weight))


def rises(suite: str, run: str, name: str, *, over: str = BASE) -> Check:
    """Check that a figure is higher than that of another run, and that the interval of the difference excludes 0."""

    def check(findings: Findings) -> Verdict:
        return _difference(findings, suite, run, name, over, sign=1)

    return check


def falls(suite: str, run: str, name: str, *, below: str = BASE) -> Check:
    """Check that a figure is lower than that of another run, and that the interval of the difference excludes 0."""

    def check(findings: Findings) -> Verdict:
        return _difference(findings, suite, run, name, below, sign=-1)

    return check


def kept(suite: str, run: str, name: str, *, within: float) -> Check:
    """Check that training lowers a figure by at most `within`, according to the lower end of the interval."""

    def check(findings: Findings) -> Verdict:
        figure, first = findings.figure(suite, run, name), findings.figure(suite, BASE, name)
        difference, interval = figure.difference(first)
        low, high = interval or (difference, difference)
        holds = True if low >= -within else False if high < -within else None
        return Verdict(holds, f"{name} of {run}: {_told(first, figure)}, allowed loss {within:g}")

    return check


def curve_falls(run: str, name: str, by: float) -> Check:
    """Check that a training metric ends lower than it starts, by this share of its start."""

    def check(findings: Findings) -> Verdict:
        def fall(one: Findings) -> float:
            start, end = one.ends(run, name)
            return 100 * (1 - end / start)

        start, end = findings.ends(run, name)
        holds, percent = _above(findings, fall, 100 * by)
        evidence = f"{name} of {run}: {number(start)} at the start, {number(end)} at the end, a fall by {percent} %"
        return Verdict(holds, evidence)

    return check


def ends_higher(run: str, name: str, *, than: str) -> Check:
    """Check that a training metric ends higher in one run than in another."""

    def check(findings: Findings) -> Verdict:
        def difference(one: Findings) -> float:
            return one.ends(run, name)[1] - one.ends(than, name)[1]

        here, there = findings.ends(run, name)[1], findings.ends(than, name)[1]
        holds, more = _above(findings, difference, 0.0)
        return Verdict(
            holds, f"{name} at the end: {number(here)} for {run}, {number(there)} for {than} (difference {more})"
        )

    return check


def all_of(*checks: Check) -> Check:
    """Check that all of the checks hold: False if one does not hold, otherwise None if one is inconclusive."""

    def check(findings: Findings) -> Verdict:
        verdicts = [each(findings) for each in checks]
        outcomes = {verdict.holds for verdict in verdicts}
        holds = False if False in outcomes else None if None in outcomes else True
        return Verdict(holds, "; ".join(verdict.evidence for verdict in verdicts))

    return check


def _above(findings: Findings, statistic: Callable[[Findings], float], bar: float) -> tuple[bool | None, str]:
    """Return whether a number is above a bar: the interval of its mean over seeds is. Return also the mean as text.
    A single run, whose curve has no interval, is taken at its word."""
    mean = mean_of([statistic(one) for one in findings.seeds or (findings,)])
    low, high = mean.interval or (mean.value, mean.value)
    holds = True if low > bar else False if high < bar else None
    return holds, with_interval(number(mean.value), mean.interval)


def _difference(findings: Findings, suite: str, run: str, name: str, other: str, sign: int) -> Verdict:
    figure, first = findings.figure(suite, run, name), findings.figure(suite, other, name)
    difference, interval = figure.difference(first)
    low, high = sorted(sign * end for end in interval or (difference, difference))
    holds = True if low > 0 else False if high < 0 else None
    named = f"{name} of {run}" if other == BASE else f"{name}, {other} → {run}"
    return Verdict(holds, f"{named}: {_told(first, figure)}")


def _told(first: Figure, figure: Figure) -> str:
    difference, interval = figure.difference(first)
    return f"{number(first.value)} to {number(figure.value)} ({with_interval(number(difference, sign='+'), interval)})"
