"""Families of generators: one folder per family, listed by name in `FAMILIES`."""

from sfumato.families.family import Family, Release
from sfumato.families.library import (
    FAMILIES,
    bundled_models,
    find_family,
    load,
    load_generator,
    load_published,
    read_card,
    releases,
)

__all__ = [
    "FAMILIES",
    "Family",
    "Release",
    "bundled_models",
    "find_family",
    "load",
    "load_generator",
    "load_published",
    "read_card",
    "releases",
]
