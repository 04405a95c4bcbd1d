"""Infinity's schedules: the token maps of an image, for each of its aspect ratios."""

from sfumato.errors import UserError

Scales = tuple[tuple[int, int], ...]
"""Height and width of each token map, coarse to fine."""

_UPRIGHT = {
    "1.0": (
        (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
        (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64),
    ),
    "1.25": (
        (1, 2, 3, 5, 10, 15, 20, 25, 30, 35, 45, 55, 70),
        (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 36, 44, 56),
    ),
    "1.333": (
        (1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 48, 60, 72),
        (1, 2, 3, 6, 9, 12, 15, 18, 21, 27, 36, 45, 54),
    ),
    "1.5": (
        (1, 2, 3, 6, 9, 15, 21, 27, 33, 39, 48, 63, 78),
        (1, 2, 2, 4, 6, 10, 14, 18, 22, 26, 32, 42, 52),
    ),
    "1.75": (
        (1, 2, 3, 7, 11, 14, 21, 28, 35, 42, 56, 70, 84),
        (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48),
    ),
    "2.0": (
        (1, 2, 4, 6, 10, 16, 22, 30, 38, 46, 60, 74, 90),
        (1, 2, 2, 3, 5, 8, 11, 15, 19, 23, 30, 37, 45),
    ),
    "2.5": (
        (1, 2, 5, 10, 15, 20, 25, 30, 40, 50, 65, 80, 100),
        (1, 2, 2, 4, 6, 8, 10, 12, 16, 20, 26, 32, 40),
    ),
    "3.0": (
        (1, 2, 6, 9, 15, 21, 27, 36, 45, 54, 72, 90, 111),
        (1, 2, 2, 3, 5, 7, 9, 12, 15, 18, 24, 30, 37),
    ),
}
"""Heights and widths by aspect ratio."""
_LYING = {"1.25": "0.8", "1.333": "0.75", "1.5": "0.666", "1.75": "0.571", "2.0": "0.5", "2.5": "0.4", "3.0": "0.333"}

SCHEDULES: dict[str, Scales] = {
    **{ratio: tuple(zip(*sides, strict=True)) for ratio, sides in _UPRIGHT.items()},
    **{_LYING[ratio]: tuple(zip(*sides[::-1], strict=True)) for ratio, sides in _UPRIGHT.items() if ratio in _LYING},
}
"""Published schedules by aspect ratio, height over width. Smaller images have the first 7, 10 or 12 of the 13 scales:
0.06, 0.25 or 0.6 instead of 1 megapixel."""


def schedule(ratio: str, count: int = 13) -> Scales:
    """Return the first scales of a published schedule.

    Args:
        ratio: height over width, as in the published code: "1.0", "0.75", "1.333", ...
        count: number of scales: 7, 10, 12 or 13 for 0.06, 0.25, 0.6 or 1 megapixel.

    Raises:
        UserError: there is no such schedule.
    """
    if ratio not in SCHEDULES:
        raise UserError(f"ratio: {ratio!r} has no schedule; give one of {', '.join(sorted(SCHEDULES, key=float))}")
    if not 1 <= count <= len(SCHEDULES[ratio]):
        raise UserError(f"count: {count} is out of range; give 1 to {len(SCHEDULES[ratio])} scales")
    return SCHEDULES[ratio][:count]
