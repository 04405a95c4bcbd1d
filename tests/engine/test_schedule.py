"""The cosine schedule at its edge cases."""

import math

import pytest

from sfumato.engine.schedule import cosine_schedule


def test_cosine():
    factor = cosine_schedule(8)
    assert [factor(step) for step in (0, 2, 4, 6, 8)] == pytest.approx(
        [1.0, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0.5 - 0.5 * math.cos(math.pi / 4), 0.0]
    )


def test_warmup_and_floor():
    factor = cosine_schedule(12, warmup_steps=4, floor=0.2)
    assert [factor(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factor(4) == pytest.approx(1.0)
    assert factor(8) == pytest.approx(0.6)
    assert factor(12) == factor(99) == pytest.approx(0.2)


def test_constant():
    factor = cosine_schedule(5, floor=1.0)
    assert [factor(step) for step in range(6)] == [1.0] * 6


def test_no_step_divides_by_zero():
    assert cosine_schedule(0)(0) == 1.0
    assert cosine_schedule(3, warmup_steps=3)(3) == 1.0
