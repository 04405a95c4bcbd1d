"""`sfumato score REWARD IMAGES ...`."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sfumato.cli.options import parse_options, take_option
from sfumato.data.images import IMAGE_SUFFIXES, class_of, find_images, read_rgb
from sfumato.data.prompts import Prompt, prompt_words, read_prompts
from sfumato.errors import UserError
from sfumato.files import finite
from sfumato.notes import note
from sfumato.request import Words
from sfumato.rewards import WeightedSum, build_reward
from sfumato.rewards.base import join_seen

FILE_KEYS = ("file_name", "image", "file", "filename", "path")
"""Possible keys of an image's name in a file of captions, in any case; the first is that of Hugging Face's folders."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score image files, or all images in folders. Images that cannot be read are left out. Rewards that compare images
    compare those with the same caption."""

    reward: tyro.conf.Positional[str]
    """name of a reward with its options, path/to/file.py:function, or the address of a reward server; or --reward"""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """image files and folders"""
    caption: str | None = None
    """description of the images; if not given, the name of the folder of each image"""
    prompts: Path | None = None
    """file of captions (.jsonl, .json, .csv, .tsv, .txt) and other data for rewards: lines that name their image under
    file_name, or one line per image in the order of the images"""
    label: int = -1
    """class number of the images, for rewards that read it; if not given, they use the caption"""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print JSON instead of a table"""
    device: str = "auto"
    """device to run on: auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.engine.process import find_device
        from sfumato.evaluation.image_sets import readable, shown

        found = find_pictures(self.images)
        words = self.describe(found)
        reward, device = build_reward({self.reward: 1.0}).require_thresholds(), find_device(self.device)
        sizes = readable(found, "images")
        files = [path for path in found if path in sizes]
        kept = words[torch.tensor([number for number, path in enumerate(found) if path in sizes])]
        # Batches are of consecutive images, so that their results are in the order of the files.
        seen = [
            reward.see(read_batch([files[n] for n in batch], device), kept[torch.tensor(batch)].to(device))
            for batch in shown(batches_of(files, sizes), "images")
        ]
        scores = reward.finish(join_seen(seen), kept)[0].tolist()
        rows = [(str(file), finite(score)) for file, score in zip(files, scores, strict=True)]
        if any(score is None for _, score in rows):
            print("sfumato:", why_unscored(reward, rows), file=sys.stderr)  # noqa: T201
        if self.json:
            print(json.dumps([{"image": path, "score": score} for path, score in rows], indent=1))  # noqa: T201
            return 0
        table = Table("image", "score", box=None, header_style="bold")
        for path, score in rows:
            shown_path = path.encode(errors="backslashreplace").decode()  # names of files need not be UTF-8
            table.add_row(shown_path, "none" if score is None else f"{score:.4f}")
        console = Console(markup=False)
        if not console.is_terminal:  # programs that read the table expect a line for each image
            console = Console(markup=False, width=max(map(len, map(str, files))) * 4 + 40)
        console.print(table)
        return 0

    def describe(self, files: list[Path]) -> Words:
        """Return the words of all images.

        Raises:
            UserError: the captions do not fit the images.
        """
        if self.prompts is None:
            whole = [path.resolve() for path in files]
            names = [class_of(p, p.parent.parent) if self.caption is None else self.caption for p in whole]
            return Words(labels=torch.full((len(files),), self.label), names=tuple(names))
        if self.caption is not None:
            raise UserError(f"caption: {self.caption!r} is given besides --prompts; leave one of them out")
        words = prompt_words(match(read_prompts(self.prompts), files, self.images, self.prompts))
        return dataclasses.replace(words, labels=torch.full((len(files),), self.label))


def match(prompts: Sequence[Prompt], files: Sequence[Path], places: Sequence[Path], source: Path) -> list[Prompt]:
    """Return the prompt of each image file.

    If prompts name images, by path in one of the places, by path next to their own file, or by file name alone, they go
    by these names; otherwise by order.

    Args:
        prompts: the prompts in a file.
        files: the image files.
        places: the files and folders in which they were found.
        source: the file of the prompts.

    Raises:
        UserError: an image has no prompt or more than one, or a name fits several images.
    """
    named = [name_of(prompt) for prompt in prompts]
    if not any(named):
        if len(prompts) != len(files):
            raise UserError(
                f"prompts: {source} has {len(prompts)} captions for {len(files)} images; give one line per image, or "
                "lines with file_name"
            )
        return list(prompts)
    if not all(named):
        line = named.index("") + 1
        raise UserError(f"prompts: {source} names an image in some lines, but not in caption {line}; add its file_name")
    by_path: dict[str, set[Path]] = {}
    by_name: dict[str, set[Path]] = {}
    for file in files:
        by_name.setdefault(file.name, set()).add(file)
        for path in paths_of(file, [*places, source.parent]):
            by_path.setdefault(path, set()).add(file)
    chosen: dict[Path, Prompt] = {}
    unused = []
    for name, prompt in zip(named, prompts, strict=True):
        fitting = by_path.get(Path(name).as_posix()) or by_name.get(name, set())
        if len(fitting) > 1:
            raise UserError(f"prompts: {source}: {name} is the name of {len(fitting)} images; give paths in the folder")
        if not fitting:
            unused.append(name)
            continue
        (file,) = fitting
        if file in chosen:
            raise UserError(f"prompts: {source} has two captions for {file}; remove one")
        chosen[file] = prompt
    missing = [str(file) for file in files if file not in chosen]
    if missing:
        others = f", and {few(unused)} is missing or cannot be read as an image" if unused else ""
        raise UserError(
            f"prompts: {source} has no caption for {len(missing)} of {len(files)} images ({few(missing)}){others}; "
            "correct its names or add lines"
        )
    if unused:
        note(f"prompts: {len(unused)} of {len(prompts)} captions in {source} are for other images ({few(unused)})")
    return [chosen[file] for file in files]


def name_of(prompt: Prompt) -> str:
    """Return the name of the image that a prompt names; empty if it names none."""
    keys = {key.lower(): value for key, value in prompt.metadata.items()}
    return str(next((keys[key] for key in FILE_KEYS if key in keys), ""))


def paths_of(file: Path, places: Sequence[Path]) -> Iterator[str]:
    """Yield the paths of an image: as it was found, and relative to the places that contain it."""
    yield file.as_posix()
    for place in places:
        if file.is_relative_to(place) and file != place:
            yield file.relative_to(place).as_posix()


def few(names: Sequence[str]) -> str:
    """Return the first names of a list for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


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


def batches_of(files: Sequence[Path], sizes: Mapping[Path, tuple[int, int]], batch_size: int = 32) -> list[list[int]]:
    """Return the numbers of the files in batches: consecutive images of equal size are scored together."""
    batches = []
    for _, neighbors in groupby(range(len(files)), lambda number: sizes[files[number]]):
        while batch := list(islice(neighbors, batch_size)):
            batches.append(batch)
    return batches


def read_batch(files: Sequence[Path], device: torch.device) -> Tensor:
    """Return images of one size (B, 3, H, W), in [0, 1]."""
    pixels = np.stack([np.array(read_rgb(path, "images")) for path in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 255


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato score`."""
    reward, rest = take_option("reward", "", arguments)
    return parse_options(Score, "score", [reward, *rest] if reward else rest)
