"""What an experiment of a paper is: runs, what is measured of them, and what the paper says comes out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sfumato.evaluation.measurement import Figure, Measurement
from sfumato.evaluation.runner import Suite
from sfumato.evaluation.tables import number, with_interval
from sfumato.training.config import GRPOConfig

BASE = "before"
"""name of the model before training among the runs"""
TAIL = 5
"""last (or first) steps whose mean stands for the end (or start) of a curve"""


@dataclass(frozen=True)
class Findings:
    """All that came out of an experiment."""

    curves: Mapping[str, Sequence[Mapping[str, float]]]
    """rows of a run's `metrics.jsonl`, and of its fixed and held-out sets where it has them, by run"""
    measured: Mapping[str, Mapping[str, Measurement]]
    """figures by suite, then by run (and of the model before training)"""

    def figure(self, suite: str, run: str, name: str) -> Figure:
        """One figure of one run."""
        return self.measured[suite][run][name]

    def curve(self, run: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it was measured."""
        rows = [row for row in self.curves[run] if name in row]
        return [int(row["step"]) for row in rows], [row[name] for row in rows]

    def ends(self, run: str, name: str) -> tuple[float, float]:
        """Means of a metric over its first and its last few rows."""
        values = self.curve(run, name)[1]
        few = max(1, min(TAIL, len(values) // 2))
        return sum(values[:few]) / few, sum(values[-few:]) / few


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds; None if the measurement cannot tell."""

    holds: bool | None
    evidence: str


Check = Callable[[Findings], Verdict]


@dataclass(frozen=True)
class Claim:
    """What a paper says, in our words, and how it is checked here."""

    text: str
    check: Check


@dataclass(frozen=True)
class Curve:
    """A panel: a metric of the runs over their steps."""

    metric: str
    title: str
    runs: tuple[str, ...] = ()
    """all if none is named"""


@dataclass(frozen=True)
class Bars:
    """A panel: a figure of a suite, a bar a run."""

    suite: str
    name: str
    title: str


@dataclass(frozen=True)
class Sweep:
    """A panel: a figure of a suite that was measured at several values of guidance, a line a run."""

    suite: str
    name: str
    title: str
    values: tuple[float, ...]

    def at(self, value: float) -> str:
        """The figure's name at this guidance."""
        return f"guidance {value:g}: {self.name}"


Panel = Curve | Bars | Sweep
REWARD, KL, ENTROPY = Curve("reward_mean", "reward"), Curve("kl", "KL (nats a token)"), Curve("entropy", "entropy")
"""panels that most experiments have"""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A sweep of runs, its evaluation, its plot and the paper's claims."""

    title: str
    source: str
    """paper and figure or table"""
    about: str
    """what stands for what, in two or three sentences"""
    runs: Mapping[str, GRPOConfig]
    """by the name that the plot shows; all of the same model"""
    suites: Mapping[str, Suite]
    """what is measured of the model before training and of every run, by name"""
    panels: tuple[Panel, ...]
    claims: tuple[Claim, ...]
    minutes: int | None = None
    """on two CPU cores, as measured; None for released weights"""

    @property
    def model(self) -> str:
        """The model that all runs start from."""
        (model,) = {config.model for config in self.runs.values()}
        return model


def with_kl(config: GRPOConfig, weight: float) -> GRPOConfig:
    """The same run with another weight of the KL penalty."""
    return replace(config, loss=replace(config.loss, kl_weight=weight))


def rises(suite: str, run: str, name: str, *, over: str = BASE) -> Check:
    """A figure is higher than another run's, beyond its interval."""

    def check(found: Findings) -> Verdict:
        return _difference(found, suite, run, name, over, sign=1)

    return check


def falls(suite: str, run: str, name: str, *, below: str = BASE) -> Check:
    """A figure is lower than another run's, beyond its interval."""

    def check(found: Findings) -> Verdict:
        return _difference(found, suite, run, name, below, sign=-1)

    return check


def kept(suite: str, run: str, name: str, *, within: float) -> Check:
    """A figure has not fallen by more than `within` since before training, at the interval's lower end."""

    def check(found: Findings) -> Verdict:
        figure, first = found.figure(suite, run, name), found.figure(suite, BASE, name)
        difference, interval = figure.difference(first)
        low, high = interval or (difference, difference)
        holds = True if low >= -within else False if high < -within else None
        return Verdict(holds, f"{name} of {run}: {_told(first, figure)}, at most {within:g} less was asked for")

    return check


def curve_falls(run: str, name: str, by: float) -> Check:
    """A metric of training ends lower than it starts by this share of its start."""

    def check(found: Findings) -> Verdict:
        start, end = found.ends(run, name)
        return Verdict(
            end < start * (1 - by), f"{name} of {run}: {number(start)} at the start, {number(end)} at the end"
        )

    return check


def ends_higher(run: str, name: str, *, than: str) -> Check:
    """A metric of training ends higher in one run than in another."""

    def check(found: Findings) -> Verdict:
        here, there = found.ends(run, name)[1], found.ends(than, name)[1]
        return Verdict(here > there, f"{name} at the end: {number(here)} for {run}, {number(there)} for {than}")

    return check


def all_of(*checks: Check) -> Check:
    """All hold; one that does not hold decides, then one that cannot be told."""

    def check(found: Findings) -> Verdict:
        verdicts = [each(found) for each in checks]
        outcomes = {verdict.holds for verdict in verdicts}
        holds = False if False in outcomes else None if None in outcomes else True
        return Verdict(holds, "; ".join(verdict.evidence for verdict in verdicts))

    return check


def _difference(found: Findings, suite: str, run: str, name: str, other: str, sign: int) -> Verdict:
    figure, first = found.figure(suite, run, name), found.figure(suite, other, name)
    difference, interval = figure.difference(first)
    low, high = sorted(sign * end for end in interval or (difference, difference))
    holds = True if low > 0 else False if high < 0 else None
    named = f"{name} of {run}" if other == BASE else f"{name} of {run} beside {other}"
    return Verdict(holds, f"{named}: {_told(first, figure)}")


def _told(first: Figure, figure: Figure) -> str:
    difference, interval = figure.difference(first)
    return f"{number(first.value)} to {number(figure.value)} ({with_interval(number(difference, sign='+'), interval)})"
