"""Sampling settings: guidance, temperature and truncation."""

import math
from dataclasses import asdict, dataclass, fields, replace

from sfumato.errors import UserError

PerUnit = float | tuple[float, ...]
"""One number for all units, or one number per unit."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sampling settings of a model. A list has one value per unit, e.g. per scale of a next-scale model."""

    guidance: PerUnit | None = None
    """strength of classifier-free guidance; None or 0 turns it off. One number is applied as the model's authors do
    (VAR increases it over the scales); a list sets the strength of each unit"""
    temperature: PerUnit = 1.0
    """number that the logits are divided by"""
    top_k: int | tuple[int, ...] = 0
    """number of most likely tokens to keep; 0 keeps all"""
    top_p: PerUnit = 0.0
    """total probability of the most likely tokens to keep; 0 keeps all"""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # JSON stores tuples as lists
                object.__setattr__(self, field.name, tuple(value))
        if self.guidance == 0:
            object.__setattr__(self, "guidance", None)
        for name, least in (("guidance", "0 or more, or None"), ("top_k", "0 to keep all, or a positive number")):
            for value in _values(getattr(self, name)):
                if not 0 <= value < math.inf:
                    raise UserError(f"{name}: {value} is out of range; give {least}")
        for value in _values(self.temperature):
            if not 0 < value < math.inf:
                raise UserError(f"temperature: {value} must be above 0; 1 samples from the model as trained")
        for value in _values(self.top_p):
            if not 0 <= value <= 1:
                raise UserError(f"top_p: {value} is not between 0 and 1; 0 keeps all tokens")

    def at(self, name: str, units: int) -> tuple[float, ...]:
        """Return the value of a setting for each of `units` units; the setting must not be None.

        Raises:
            UserError: the setting is a list of the wrong length.
        """
        values = _values(getattr(self, name))
        if not isinstance(getattr(self, name), tuple):
            return values * units
        if len(values) != units:
            raise UserError(f"{name}: {len(values)} values for {units} units; give one number, or one per unit")
        return values

    @property
    def truncates(self) -> bool:
        """Whether top-k or top-p excludes some tokens from sampling."""
        return any(_values(self.top_k)) or any(_values(self.top_p))

    def __str__(self) -> str:
        shown = {name: _values(value) for name, value in asdict(self).items() if value is not None and value != 0}
        return ", ".join(f"{name.replace('_', '-')} {' '.join(f'{v:g}' for v in vs)}" for name, vs in shown.items())


def _values(value: PerUnit | None) -> tuple[float, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


PLAIN = Settings()
"""The distribution of the network itself: no guidance, temperature 1, all tokens."""


@dataclass(frozen=True, kw_only=True)
class SettingsOptions:
    """Sampling settings that override the model's own; those left at None keep the model's value."""

    guidance: PerUnit | None = None
    """strength of classifier-free guidance; 0 turns it off; the model's own by default"""
    temperature: PerUnit | None = None
    """number that the logits are divided by; the model's own by default"""
    top_k: int | tuple[int, ...] | None = None
    """number of most likely tokens to keep; 0 keeps all; the model's own by default"""
    top_p: PerUnit | None = None
    """total probability of the most likely tokens to keep; 0 keeps all; the model's own by default"""

    def __post_init__(self):
        self.settings(Settings())  # rejects values that are invalid for every model

    def settings(self, own: Settings) -> Settings:
        """Return a model's own settings with the given ones replaced.

        Raises:
            UserError: a setting is out of range.
        """
        given = {field.name: getattr(self, field.name) for field in fields(Settings)}
        return replace(own, **{name: value for name, value in given.items() if value is not None})
