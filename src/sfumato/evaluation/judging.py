"""Judges: classifiers for the classes of some models, by their name in a model's card. Only evaluation uses them."""

from collections.abc import Callable, Mapping

from sfumato.emoji.judges import Classifier, load_classifier
from sfumato.errors import UserError

JUDGES: Mapping[str, Callable[[], Classifier]] = {"emoji": load_classifier}
"""Judges by name."""


def check_judge(name: str | None) -> None:
    """Check that there is a judge with this name; None names none.

    Raises:
        UserError: there is none.
    """
    if name is not None and name not in JUDGES:
        raise UserError(f"judge: unknown judge {name!r}; give one of {', '.join(JUDGES)} in the model's config.json")


def load_judge(name: str | None) -> Classifier | None:
    """Load the judge that a card names. If the card names none, return None and load nothing.

    Raises:
        UserError: there is no judge with this name.
    """
    check_judge(name)
    return None if name is None else JUDGES[name]()
