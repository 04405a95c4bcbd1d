"""The commands about rewards: list them, score images, serve one."""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from sfumato.data.images import IMAGE_SUFFIXES, find_images, read_rgb
from sfumato.errors import UserError
from sfumato.rewards import COMPOSITIONS, REWARDS, SERVER, Entry, WeightedSum, build_reward
from sfumato.rewards.needs import EXTRAS
from sfumato.rollout import Conditions


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """List all rewards: what they return, what they need, and whether that is here."""

    def __call__(self) -> int:
        titles = ("reward", "range", "extra", "weights", "runs on", "on this machine")
        table = Table(*titles, box=None, header_style="bold")
        for name, entry in REWARDS.items():
            table.add_row(name, entry.range, entry.extra, entry.weights, entry.runs_on, readiness(entry))
        console = Console() if Console().is_terminal else Console(width=180)
        console.print(table)
        console.print("\nSums of rewards:\n", highlight=False)
        for name, parts in COMPOSITIONS.items():
            console.print(f"  {name}: {' + '.join(parts)}", highlight=False, markup=False, soft_wrap=True)
        return 0


def readiness(entry: Entry) -> str:
    """Whether a reward's packages and weights are here."""
    missing = [module for module in EXTRAS.get(entry.extra, ()) if importlib.util.find_spec(module) is None]
    if missing:
        remedy = f"pip install 'sfumato\\[{entry.extra}]'"
        return f"ready for {entry.without_extra}; {remedy}" if entry.without_extra else remedy
    if entry.runs_on == SERVER:
        return "when its server runs"
    if "/" in entry.weights:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        try:
            cached = entry.weights in {repository.repo_id for repository in scan_cache_dir().repos}
        except CacheNotFound:
            cached = False
        return "ready" if cached else "fetched at first use"
    return "ready" if not entry.weights else "fetched at first use"


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score image files, or all images in folders."""

    reward: tyro.conf.Positional[str]
    """name with options, path/to/file.py:function, or the address of a server"""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """image files and folders"""
    caption: str | None = None
    """what the images should show; the name of each one's folder if not given"""
    label: int = -1
    """class number, for rewards that read it; if not given they go by the caption"""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print JSON, not a table"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.engine.process import join

        files = find_pictures(self.images)
        reward, device = build_reward({self.reward: 1.0}).require_thresholds(), join(self.device).device
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
        Console().print(table)
        return 0


def why_unscored(reward: WeightedSum, rows: Sequence[tuple[str, float | None]]) -> str:
    """How many images have no score, and why if a reward says so."""
    reasons = filter(None, (getattr(part.reward, "last_failure", "") for part in reward.parts.values()))
    reason = "; ".join(dict.fromkeys(reasons))
    return f"{sum(score is None for _, score in rows)} of {len(rows)} images have no score{reason and f' ({reason})'}"


def find_pictures(paths: tuple[Path, ...]) -> list[Path]:
    """The image files among the paths and in the folders among them, sorted within a folder.

    Raises:
        UserError: a path is not there, or there is no image at all.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += find_images(path)
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"images: {path} is not there; give image files or folders")
    if not files:
        raise UserError(
            f"images: no {', '.join(sorted(IMAGE_SUFFIXES))} in {', '.join(map(str, paths)) or 'nothing'}; give some"
        )
    return files


def score_files(
    reward: WeightedSum, files: list[Path], caption: str | None, label: int, device: torch.device, batch_size: int = 32
) -> Iterator[tuple[Path, float]]:
    """Every file and its score, NaN for none; neighbours of equal size are scored together."""
    pictures = ((path, read_picture(path)) for path in files)
    for _, neighbours in groupby(pictures, lambda pair: pair[1].shape):
        while pairs := list(islice(neighbours, batch_size)):
            batch = [path for path, _ in pairs]
            images = torch.stack([picture for _, picture in pairs]).to(device)
            captions = tuple(caption if caption is not None else path.resolve().parent.name for path in batch)
            labels = torch.full((len(batch),), label, device=device)
            total, _ = reward(images, Conditions(labels=labels, names=captions, captions=captions))
            yield from zip(batch, total.tolist(), strict=True)


def read_picture(path: Path) -> torch.Tensor:
    """A picture (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(read_rgb(path, "images"))).permute(2, 0, 1).float() / 255


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a reward over HTTP from this environment; http://HOST:PORT is then a reward elsewhere."""

    reward: tyro.conf.Positional[str]
    """name with options, or path/to/file.py:function"""
    host: str = "127.0.0.1"
    """address to listen on; one that others can reach needs a token in SFUMATO_REWARD_TOKEN"""
    port: int = 8100
    """port to listen on"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.engine.process import join
        from sfumato.rewards.server import check_host, serve

        token = os.environ.get("SFUMATO_REWARD_TOKEN", "")
        check_host(self.host, token)
        (name, part), *others = build_reward({self.reward: 1.0}).parts.items()
        if others:
            raise UserError(f"reward: {self.reward} is a sum; serve its rewards one by one")
        if part.levels and not part.thresholds:
            raise UserError(f"reward: {name} has no thresholds; give them, or put the levels where it is used")
        Console().print(f"{name}: http://{self.host}:{self.port}", highlight=False, soft_wrap=True)
        serve(name, part, host=self.host, port=self.port, token=token, device=str(join(self.device).device))
        return 0


COMMANDS = {
    "rewards": (Rewards, "list the rewards, and which are ready on this machine"),
    "score": (Score, "score image files with a reward"),
    "serve": (Serve, "serve a reward over HTTP from its own environment"),
}
"""Commands by name, each with one line of help."""
