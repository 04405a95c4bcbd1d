"""`sfumato rewards`."""

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfumato.cli.options import parse_options
from sfumato.engine.cause import BAD_INPUT, FINISHED
from sfumato.request import Words
from sfumato.rewards import COMPOSITIONS, REWARDS, SERVER, Entry, Part, RewardError, build_reward
from sfumato.rewards.base import score
from sfumato.rewards.endpoint import EndpointError
from sfumato.rewards.needs import EXTRAS
from sfumato.rewards.remote import Remote

GENEVAL_APPLE = {"tag": "single_object", "include": [{"class": "apple", "count": 1}], "text": "apple"}
"""Metadata that servers of GenEval, and rewards that read text, need."""


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """List all rewards: what they return, what they need, and whether they are ready on this machine. Or try one."""

    reward: tyro.conf.Positional[str | None] = None
    """a reward to try on eight images: a name with its options, path/to/file.py:function, or the address of one or
    several servers"""

    def __call__(self) -> int:
        console = Console() if Console().is_terminal else Console(width=180)
        if self.reward is not None:
            return try_reward(self.reward, console)
        titles = ("reward", "range", "extra", "weights", "runs on", "on this machine")
        table = Table(*titles, box=None, header_style="bold")
        for name, entry in REWARDS.items():
            table.add_row(name, entry.range, entry.extra, entry.weights, entry.runs_on, readiness(entry))
        console.print(table)
        console.print("\nSums of rewards:\n", highlight=False)
        for name, parts in COMPOSITIONS.items():
            console.print(f"  {name}: {' + '.join(parts)}", highlight=False, markup=False, soft_wrap=True)
        return 0


def try_reward(name: str, console: Console) -> int:
    """Print what a reward's servers say of themselves, and how long it takes for eight images and what it returns.

    Returns:
        The exit status: 0 if everything works, otherwise 2.

    Raises:
        UserError: the reward does not exist, or lacks a package or weights.
    """
    table = Table("reward", "serves", "version", "eight images", "scores", box=None, header_style="bold")
    failures = []
    for part_name, part in build_reward({name: 1.0}).parts.items():
        servers = part.reward.servers() if isinstance(part.reward, Remote) else {}
        for place, reward in (servers or {part_name: part.reward}).items():
            try:
                health = reward.health() if isinstance(reward, Remote) else {}
                row = measure(place, replace(part, reward=reward, levels=(), thresholds=()))
            except (EndpointError, RewardError) as error:
                failures.append(str(error))
                continue
            served = (str(health.get(key, "")) for key in ("reward", "version"))
            table.add_row(*map(escape, (place, *served, *row)))
    if table.row_count:
        console.print(table)
    for failure in failures:
        print(f"sfumato: {failure}", file=sys.stderr)  # noqa: T201
    return BAD_INPUT if failures else FINISHED


def measure(name: str, part: Part) -> tuple[str, str]:
    """Score eight images of one color, after two to warm up, and return the duration and the range of the scores.

    Raises:
        RewardError: the reward fails.
    """
    images = torch.linspace(0, 1, 8)[:, None, None, None].expand(8, 3, 256, 256)
    words = Words(names=("apple",) * 8, captions=("a photo of an apple",) * 8, metadata=(GENEVAL_APPLE,) * 8)
    score(name, part, images[:2], words[:2])
    began = time.perf_counter()
    scores = score(name, part, images, words)
    seconds = time.perf_counter() - began
    known = scores[~scores.isnan()].tolist()
    return f"{seconds:.2f} s", f"{min(known):.4g} to {max(known):.4g}" if known else "no score"


def readiness(entry: Entry) -> str:
    """Say whether a reward's packages and weights are on this machine."""
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
        return "ready" if cached else "downloaded at first use"
    return "ready" if not entry.weights else "downloaded at first use"


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato rewards`."""
    return parse_options(Rewards, "rewards", arguments)
