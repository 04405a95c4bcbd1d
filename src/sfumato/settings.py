"""How images are drawn from a model outside training: guidance, temperature, and which tokens are kept."""

from dataclasses import asdict, dataclass, fields, replace

from sfumato.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inference:
    """Settings that a model carries: its authors', or those at which it draws best."""

    guidance: float = 0.0
    """classifier-free guidance; 0 is none"""
    temperature: float = 1.0
    """divides the logits"""
    top_k: int = 0
    """keep the k likeliest tokens; 0 keeps all"""
    top_p: float = 0.0
    """keep the likeliest tokens up to this probability in all; 0 keeps all"""

    def __post_init__(self):
        for name in ("guidance", "top_k"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name}: {getattr(self, name)} is negative; give 0 for none, or a positive number")
        check_temperature(self.temperature)
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p} is not between 0 and 1")

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in asdict(self).items() if value)


def check_temperature(temperature: float) -> None:
    """Refuse what logits cannot be divided by.

    Raises:
        UserError: it is not above 0.
    """
    if not temperature > 0:
        raise UserError(f"temperature: {temperature} must be above 0 (1 draws from the model as it was trained)")


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """What is asked for in place of a model's own settings."""

    guidance: float | None = None
    """classifier-free guidance, 0 for none; the model's own setting if not given"""
    temperature: float | None = None
    """divides the logits; the model's own if not given"""
    top_k: int | None = None
    """keep the k likeliest tokens, 0 for all; the model's own if not given"""
    top_p: float | None = None
    """keep the likeliest tokens up to this probability in all, 0 for all; the model's own if not given"""

    def __post_init__(self):
        self.inference(Inference())  # refuses what no model could have

    def inference(self, own: Inference) -> Inference:
        """A model's settings with what is asked for in their place.

        Raises:
            UserError: a setting is out of range.
        """
        asked = {setting.name: getattr(self, setting.name) for setting in fields(Inference)}
        return replace(own, **{name: value for name, value in asked.items() if value is not None})
