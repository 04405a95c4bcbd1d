"""What can be measured, by name."""

from sfumato.evaluation.suites.accuracy import AccuracySuite

AnySuite = AccuracySuite

SUITES: dict[str, type[AnySuite]] = {
    "accuracy": AccuracySuite,
}
"""Suites by name; each class's docstring says what it measures, and its fields are the options."""
