"""Settings of a run from a YAML file, or from the `config.json` of a run folder, and as YAML."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from sfumato.cli.listing import check_known
from sfumato.cli.options import take_option
from sfumato.errors import UserError
from sfumato.objectives import find_objective
from sfumato.training.run_folder import flat
from sfumato.training.train_config import TrainConfig, from_json, to_json

OTHERS = ("recipe", "run_dir")
"""What a file may state besides settings: the recipe to start from, and the run folder."""


@dataclass(frozen=True)
class Setting:
    """One setting in a file."""

    name: str
    """name with the section, e.g. engine.learning_rate"""
    line: int
    """number of the line, from 1"""
    node: yaml.Node
    """the value"""

    @property
    def option(self) -> str:
        """Name of the option of the command line, without --. Only the objective's have the name of a section."""
        name = self.name.removeprefix("policy.").removeprefix("engine.")
        return ("objective" if name == "objective.name" else name).replace("_", "-")

    @property
    def negation(self) -> str:
        """Name of the option that turns a switch off, without --."""
        section, dot, name = self.option.rpartition(".")
        return f"{section}{dot}no-{name}"

    def arguments(self, is_switch: bool) -> list[str]:
        """Return the setting as arguments of the command line, where all types are checked.

        Raises:
            UserError: the value is nested, or a switch is neither true nor false.
        """
        node = self.node
        if isinstance(node, yaml.MappingNode):
            return [f"--{self.option}", *(scalar(part) for pair in node.value for part in pair)]
        if isinstance(node, yaml.SequenceNode):
            return [f"--{self.option}", *map(scalar, node.value)]
        if is_switch:
            if node.value.lower() not in yaml.SafeLoader.bool_values:
                raise UserError(f"{self.name}: {node.value!r} is neither true nor false")
            return [f"--{self.option if yaml.SafeLoader.bool_values[node.value.lower()] else self.negation}"]
        # YAML 1.1 reads 1e-4 as text and on as true, so the text is passed on as it stands.
        return [f"--{self.option}={scalar(node)}"]


def scalar(node: yaml.Node) -> str:
    """Return a value as the command line spells it.

    Raises:
        UserError: the value is nested.
    """
    if not isinstance(node, yaml.ScalarNode):
        raise UserError("a list or a section inside this value; give text or numbers")
    return "None" if node.tag.endswith(":null") else node.value


@dataclass(frozen=True)
class ConfigFile:
    """A file with settings."""

    path: Path
    settings: dict[str, Setting]
    """settings by name"""
    complete: TrainConfig | None = None
    """all settings, if the file is the `config.json` of a run of version 0.1"""

    def without(self, arguments: list[str]) -> "ConfigFile":
        """Return the file without the settings that arguments of the command line replace. If they name an objective,
        options that only another one has are left out too."""
        given = {argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
        kept = {
            name: setting
            for name, setting in self.settings.items()
            if not given & {f"--{setting.option}", f"--{setting.negation}"}
        }
        objective, _ = take_option("objective", "", arguments)
        if objective:
            options = {f"objective.{field.name}" for field in fields(find_objective(objective))}
            kept = {n: s for n, s in kept.items() if not n.startswith("objective.") or n in options}
        return replace(self, settings=kept)

    def text(self, name: str) -> str | None:
        """Return the value of `recipe` or `run_dir`, None if the file does not state it."""
        with self.located(self.settings.get(name)):
            return scalar(self.settings[name].node) if name in self.settings else None

    def arguments(self, config: TrainConfig) -> list[str]:
        """Return the settings as arguments of the command line.

        Args:
            config: the settings that the file changes.

        Raises:
            UserError: a setting does not exist or is nested; the message states the file, the line and the name.
        """
        arguments, known = [], flat(to_json(config))
        # Another objective has other settings, which the command line checks.
        names = {*known, *(name for name in self.settings if name.startswith("objective")), *OTHERS}
        short = {name.rpartition(".")[2] for name in known if not name.startswith("objective")}
        single = single_valued(config)
        for setting in self.settings.values():
            with self.located(setting):
                if setting.name in ("policy", "engine"):
                    raise UserError(f"{setting.name}: this is a section; give its settings below it, indented")
                if setting.name not in short:
                    check_known("setting", setting.name, names)
                if setting.name in single and not isinstance(setting.node, yaml.ScalarNode):
                    raise UserError(f"{setting.name}: a list or a section is given; give one value")
                if setting.name not in OTHERS:
                    arguments += setting.arguments(isinstance(known.get(setting.name), bool))
        return arguments

    @contextmanager
    def located(self, setting: Setting | None = None) -> Iterator[None]:
        """Add the file and the line to an error that is about a setting in the file."""
        try:
            yield
        except UserError as error:
            about = setting or self.setting_in(str(error))
            if about is None or str(error).startswith(f"{self.path}:"):
                raise
            raise UserError(f"{self.path}:{about.line}: {error}") from error

    def setting_in(self, message: str) -> Setting | None:
        """Return the setting that a message begins with, or else the first whose option it names."""
        field = re.match(r"([\w.]+): ", message)
        options = [match.replace("_", "-") for match in re.findall(r"--([\w.-]+)", message)]
        for wanted in [*([field[1].replace("_", "-")] if field else []), *options]:
            for setting in self.settings.values():
                if wanted in (setting.option, setting.negation, setting.option.rpartition(".")[2]):
                    return setting
        return None


def read_config_file(path: Path) -> ConfigFile:
    """Read a YAML or JSON file with settings; of a folder, its `config.json`.

    Raises:
        UserError: the file cannot be read, is not YAML, or states a setting twice.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        text = path.read_text("utf-8-sig")
        root = yaml.compose(text, yaml.SafeLoader)
    except FileNotFoundError:
        raise UserError(f"config: there is no file {path}; `sfumato train RECIPE --print-config` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config: {path} cannot be read as UTF-8 text ({error})") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "nested too deeply" if mark else "unreadable characters"
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"config: {path}{line}: not YAML ({problem}); give lines such as steps: 100") from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"config: {path} has no settings; give lines such as steps: 100")
    file = ConfigFile(path, {})
    for setting in settings_in(root):
        with file.located(setting):
            if setting.name in file.settings:
                first = file.settings[setting.name].line
                raise UserError(f"{setting.name}: also given in line {first}; remove one of them")
        file.settings[setting.name] = setting
    if "labels_per_step" in file.settings:
        return ConfigFile(path, {}, from_json(json.loads(text)))
    return file


def single_valued(config: TrainConfig) -> set[str]:
    """Return the names, with and without the section, of the settings that take neither a list nor pairs."""
    parts = {"": config, "policy.": config.policy, "engine.": config.engine}
    names = {
        f"{section}{field.name}"
        for section, part in parts.items()
        for field in fields(part)
        if not re.search("tuple|dict", str(field.type))
    }
    return names | {name.rpartition(".")[2] for name in names}


def settings_in(root: yaml.MappingNode, section: str = "") -> Iterator[Setting]:
    """Yield the settings in a mapping; those in the sections policy, objective and engine have names with a dot."""
    for key, value in root.value:
        name = f"{section}{scalar(key)}"
        if isinstance(value, yaml.MappingNode) and name in ("policy", "objective", "engine"):
            yield from settings_in(value, f"{name}.")
        else:
            yield Setting(name, key.start_mark.line + 1, value)


def to_yaml(config: TrainConfig, run_dir: Path) -> str:
    """Return all settings and the run folder as YAML that `--config` reads."""
    values: dict[str, Any] = {"run_dir": str(run_dir), **json.loads(json.dumps(to_json(config)))}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=10**6)
