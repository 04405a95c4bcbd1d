"""Assertions on errors: on their type, field and values, not on their wording."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sfumato.errors import UserError


@contextmanager
def bad_input(field: str, *pieces: str) -> Iterator[None]:
    """Check that the block raises a one-line UserError for this field, with these pieces in its message."""
    with pytest.raises(UserError) as error:
        yield
    message = str(error.value)
    assert error.value.field == field, message
    assert "\n" not in message
    for piece in pieces:
        assert piece in message
