"""`sfumato score REWARD IMAGES ...`."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from sfumato.cli.options import parse_options
from sfumato.data.images import IMAGE_SUFFIXES, find_images, read_rgb
from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards import WeightedSum, build_reward


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score image files, or all images in folders."""

    reward: tyro.conf.Positional[str]
    """name of a reward with its options, path/to/file.py:function, or the address of a reward server"""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """image files and folders"""
    caption: str | None = None
    """description of the images; if not given, the name of the folder of each image"""
    label: int = -1
    """class number of the images, for rewards that read it; if not given, they use the caption"""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print JSON instead of a table"""
    device: str = "auto"
    """device to run on: auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.engine.process import find_device

        files = find_pictures(self.images)
        reward, device = build_reward({self.reward: 1.0}).require_thresholds(), find_device(self.device)
        rows = [
            (str(path), None if score != score else score)
            for path, score in score_files(reward, files, self.caption, self.label, device)
        ]
        if any(score is None for _, score in rows):
            print("sfumato:", why_unscored(reward, rows), file=sys.stderr)  # noqa: T201
        if self.json:
            print(json.dumps([{"image": path, "score": score} for path, score in rows], indent=1))  # noqa: T201
            return 0
        table = Table("image", "score", box=None, header_style="bold")
        for path, score in rows:
            table.add_row(path, "none" if score is None else f"{score:.4f}")
        Console(markup=False).print(table)
        return 0


def why_unscored(reward: WeightedSum, rows: Sequence[tuple[str, float | None]]) -> str:
    """Say how many images have no score, and why, if a reward gives a reason."""
    reasons = filter(None, (getattr(part.reward, "last_failure", "") for part in reward.parts.values()))
    reason = "; ".join(dict.fromkeys(reasons))
    return f"{sum(score is None for _, score in rows)} of {len(rows)} images have no score{reason and f' ({reason})'}"


def find_pictures(paths: tuple[Path, ...]) -> list[Path]:
    """Return the image files among the paths, and those in the folders among the paths, sorted within each folder.

    Raises:
        UserError: a path does not exist, or none of them has an image.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += find_images(path)
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"images: {path} does not exist; give image files or folders")
    if not files:
        raise UserError(
            f"images: there are no {', '.join(sorted(IMAGE_SUFFIXES))} files in "
            f"{', '.join(map(str, paths)) or 'an empty list'}; give image files or folders"
        )
    return files


def score_files(
    reward: WeightedSum, files: list[Path], caption: str | None, label: int, device: torch.device, batch_size: int = 32
) -> Iterator[tuple[Path, float]]:
    """Yield every file with its score, NaN for no score; consecutive images of equal size are scored together."""
    pictures = ((path, read_picture(path)) for path in files)
    for _, neighbors in groupby(pictures, lambda pair: pair[1].shape):
        while pairs := list(islice(neighbors, batch_size)):
            batch = [path for path, _ in pairs]
            images = torch.stack([picture for _, picture in pairs]).to(device)
            captions = tuple(caption if caption is not None else path.resolve().parent.name for path in batch)
            labels = torch.full((len(batch),), label, device=device)
            total, _ = reward(images, Words(labels=labels, names=captions, captions=captions))
            yield from zip(batch, total.tolist(), strict=True)


def read_picture(path: Path) -> torch.Tensor:
    """Read a picture as a tensor (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(read_rgb(path, "images"))).permute(2, 0, 1).float() / 255


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato score`."""
    return parse_options(Score, "score", arguments)
