"""The model card of a run: README.md of a repository on the Hugging Face Hub."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from sfumato.errors import UserError
from sfumato.evaluation.measurement import read_measurement
from sfumato.evaluation.runner import flat
from sfumato.evaluation.tables import number, to_markdown
from sfumato.families.folder import card_from, read_config
from sfumato.families.library import bundled_models, releases
from sfumato.files import read_lines, read_metrics, step_of
from sfumato.hub.privacy import cleaned, cleaned_command, cleaned_settings
from sfumato.report.folders import read_object, read_optional, read_starts
from sfumato.training.diagnosis import examine
from sfumato.training.hooks.held_out import hacking_signs

PICTURES = {
    "before_after.png": "The same classes or captions and seeds before and after training.",
    "curves.png": "Curves of the run.",
    "held_out.png": "Held-out rewards during the run.",
}
"""Pictures of a finished run, and what they show."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is published: a checkpoint of a run."""

    run: Path
    config: Mapping[str, Any]
    """`config.json` of the run"""
    checkpoint: Path
    """folder of the checkpoint"""
    repository: str
    """OWNER/NAME"""
    evaluations: Sequence[Path] = ()
    """folders of `sfumato evaluate`"""

    @property
    def step(self) -> int:
        """Number of training steps of the checkpoint."""
        return step_of(self.checkpoint)

    @property
    def is_final(self) -> bool:
        """Whether the run has ended with this checkpoint, so that its pictures and figures belong to it."""
        return self.step == self.config["steps"]

    @property
    def pictures(self) -> list[Path]:
        """The pictures of the run to publish."""
        return [self.run / name for name in PICTURES if self.is_final and (self.run / name).is_file()]

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a file of the run up to the checkpoint."""
        return [row for row in read_lines(self.run / name) if row["step"] <= self.step]


def write_card(what: Published) -> str:
    """Return the content of README.md. Paths, hosts and users are left out of everything that it quotes.

    Raises:
        UserError: the evaluation in a folder is not finished.
    """
    sections = [
        header(what),
        f"# {what.repository.partition('/')[2]}",
        summary(what),
        picture(what, "before_after.png"),
        usage(what),
        rewards(what),
        held_out(what),
        *(evaluation(what, folder) for folder in what.evaluations),
        training(what),
        cautions(what),
        "## License\n\nThis card states none. The license of the base model still applies; add yours to the header.",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def header(what: Published) -> str:
    """Return the metadata for the hub."""
    card = card_from(read_config(what.checkpoint / "model"))
    base = on_hub(what.config["model"])
    fields = {
        "library_name": "sfumato",
        "pipeline_tag": "unconditional-image-generation" if card.class_names else "text-to-image",
        "tags": ["sfumato", "image-generation", "reinforcement-learning", objective_of(what), card.family],
        **({"base_model": base} if base else {}),
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def on_hub(model: str) -> str | None:
    """Return the repository of a base model on the hub; None for bundled models, folders and own code."""
    from huggingface_hub import try_to_load_from_cache

    if model in releases():
        return releases()[model][1].repository
    if model in bundled_models() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or Path(model).exists():
        return None
    # A folder that is no longer here can look the same; what came from the hub is in its cache.
    return model if isinstance(try_to_load_from_cache(model, "config.json"), str) else None


def objective_of(what: Published) -> str:
    """Return the name of the training objective; own code goes by the name of its class."""
    return str(what.config.get("objective", {}).get("name", "grpo")).rpartition(":")[2]


def summary(what: Published) -> str:
    """Return a sentence on what the model is."""
    images = what.config.get("groups_per_step", 0) * what.config.get("group_size", 0)
    count = f"{what.step} of {what.config['steps']}" if not what.is_final else str(what.step)
    return (
        f"{code(cleaned(what.config['model']))}, aligned with {sum_of(what.config['reward'])} by online reinforcement "
        f"learning ({objective_of(what).upper()}) with Sfumato {version_of(what)}: {count} steps of {images} images."
    )


def sum_of(weights: Mapping[str, float]) -> str:
    """Return a reward as text, e.g. `dark` × 1; parts with the weight 0 are only logged, and left out."""
    return " + ".join(f"{code(cleaned(name))} × {weight:g}" for name, weight in weights.items() if weight)


def version_of(what: Published) -> str:
    """Return the version of Sfumato at the run's last start; the installed one if the run does not record it."""
    starts = read_starts(what.run, [])
    return str(starts[-1].get("version")) if starts else version("sfumato")


def picture(what: Published, name: str) -> str:
    """Return a picture of the run; nothing if it is not published."""
    return f"![{PICTURES[name]}]({name})" if what.run / name in what.pictures else ""


def usage(what: Published) -> str:
    """Return how to draw images with the model."""
    card = card_from(read_config(what.checkpoint / "model"))
    asked = card.class_names[0] if card.class_names else "a red apple"
    option = "classes" if card.class_names else "prompts"
    encoder = what.config.get("text_encoder")
    shell = f" --text-encoder {shlex.quote(cleaned(encoder))}" if encoder else ""
    python = f", text_encoder={quoted(cleaned(encoder))}" if encoder else ""
    settings = str(card.settings)
    own = f" Images are drawn with {settings} unless you give other settings." if settings else ""
    return (
        f"## Use\n\n```sh\nsfumato sample {what.repository} --{option} {shlex.quote(asked)}{shell}\n```\n\n"
        f'```python\nimport sfumato\n\npolicy = sfumato.load("{what.repository}"{python})\n'
        f"images = policy.draw({quoted(asked)}, n=4, seed=0)  # (4, 3, H, W) in [0, 1]\n```\n\n"
        f"The model needs the Python package `sfumato`.{own}"
    )


def rewards(what: Published) -> str:
    """Return the rewards with their weights, and the figures before and after training."""
    weights = table(
        ["reward", "weight"],
        [[code(cleaned(n)), f"{w:g}" if w else "only logged"] for n, w in what.config["reward"].items()],
    )
    measured = read_optional(what.run / "evaluation.json", [])
    before, after = measured.get("before", {}), measured.get("after", {})
    if not what.is_final or not after:
        return f"## Reward\n\n{weights}"
    names = [name for name in after if name != "images"]
    rows = [[cleaned(name), figure(before.get(name)), figure(after[name])] for name in names]
    return (
        f"## Reward\n\n{weights}\n\nMean over {after.get('images')} fresh images, drawn with the sampling settings of "
        f"training:\n\n{table(['', 'before', 'after'], rows)}"
    )


def held_out(what: Published) -> str:
    """Return the first and the last figures of the rewards that were measured but not optimized."""
    rows = held_out_rows(what)
    if len(rows) < 2:
        return ""
    first, last = rows[0], rows[-1]
    names = [name for name in first if name in last and name != "step" and "_std" not in name]
    lines = [[cleaned(name), figure(first[name]), figure(last[name])] for name in names]
    steps = ["", f"step {first['step']:g}", f"step {last['step']:g}"]
    return (
        "## Held-out rewards\n\nMeasured on fixed classes or captions and seeds, and never optimized; `optimized` is "
        f"the reward of the run.\n\n{table(steps, lines)}\n\n{picture(what, 'held_out.png')}"
    ).rstrip()


def held_out_rows(what: Published) -> list[dict[str, Any]]:
    """Return the measurements of held-out rewards. Version 0.1 spelled a name differently."""
    return [{n.replace("optimised", "optimized"): v for n, v in row.items()} for row in what.rows("held_out.jsonl")]


def evaluation(what: Published, folder: Path) -> str:
    """Return the table of an evaluation, in which this run is called "this model".

    Raises:
        UserError: `sfumato evaluate` did not write the folder, or is not done.
    """
    if not (folder / "results.json").is_file() or not (folder / "evaluation.json").is_file():
        raise UserError(f"evaluation: {folder} has no finished evaluation; give a folder of `sfumato evaluate --out`")
    settings = read_object(folder / "evaluation.json")
    paths = {name: str(target["path"]) for name, target in settings["targets"].items()}
    shown = {name: "this model" if is_of(path, what) else cleaned(path) for name, path in paths.items()}
    if len(set(shown.values())) < len(shown):
        shown = {name: f"{shown[name]} ({position})" for position, name in enumerate(shown, start=1)}
    results = {shown[name]: read_measurement(folder / name / "measurement.json") for name in paths}
    suite = settings["suite"]
    options = {name: text for name, text in cleaned_settings(flat(suite)).items() if name != "name"}
    told = ", ".join(f"{name} {text}" for name, text in options.items())
    return f"## Evaluation: {suite['name']}\n\n{to_markdown(results)}\nWith 95 % intervals; {told}."


def is_of(path: str, what: Published) -> bool:
    """Return whether the target of an evaluation is the published checkpoint: its folder, or the run if it is final."""
    same = {what.checkpoint.resolve(), (what.checkpoint / "model").resolve()}
    return Path(path).resolve() in (same | {what.run.resolve()} if what.is_final else same)


def training(what: Published) -> str:
    """Return curves, commands and settings of the run."""
    commands = [cleaned_command(str(start.get("command", ""))) for start in read_starts(what.run, [])]
    told = "\n".join(dict.fromkeys(filter(None, commands)))
    settings = {name: text for name, text in flat(dict(what.config)).items() if not name.startswith("reward.")}
    rows = [[code(name), code(text)] for name, text in cleaned_settings(settings).items()]
    parts = [
        "## Training",
        picture(what, "curves.png"),
        told and f"```sh\n{told}\n```",
        f"<details><summary>All settings</summary>\n\n{table(['setting', 'value'], rows)}\n\n</details>",
    ]
    return "\n\n".join(filter(None, parts))


def cautions(what: Published) -> str:
    """Return the distance from the base model, and signs that the run may have gone wrong or hacked its reward."""
    rows, measured = [row for row in read_metrics(what.run) if row["step"] <= what.step], held_out_rows(what)
    lines = [finding.cause for finding in examine(rows, what.config)]
    signs = hacking_signs(measured[0], measured[-1]) if len(measured) > 1 else []
    if signs:
        lines.append(f"Signs of reward hacking: the reward rose, but {'; '.join(map(cleaned, signs))}.")
    if not measured:
        lines.append("No held-out reward was measured, so reward hacking would not have been noticed.")
    kl = rows[-1].get("kl") if rows else None
    if kl is not None:
        lines.insert(0, f"KL to the base model at the last step: {kl:.3g} nats per token.")
    items = "\n".join(f"- {line}" for line in [*lines, "A higher reward does not mean better pictures: look at them."])
    return f"## Cautions\n\n{items}"


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def quoted(text: str) -> str:
    """Return a string as Python code."""
    return json.dumps(text, ensure_ascii=False)


def code(text: str) -> str:
    """Return text as code in Markdown, in which nothing has a meaning."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def figure(value: float | None) -> str:
    """Return a number as text; nothing if there is none."""
    return "" if value is None else number(value)
