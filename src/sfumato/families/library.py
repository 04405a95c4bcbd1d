"""Load generators by name: bundled models, folders that Sfumato wrote, released checkpoints, and users' families."""

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfumato.errors import UserError, alternatives
from sfumato.families import infinity, janus, llamagen, simplear, switti, var
from sfumato.families.adapters import Adapter, merged
from sfumato.families.family import Family, Release
from sfumato.families.fetching import fetch, fetch_folder
from sfumato.families.folder import (
    card_from,
    described_in,
    load_weights,
    read_config,
    read_shards,
    read_tensors,
    shape_from,
    write_folder,
)
from sfumato.families.published import StateDict
from sfumato.families.weight_files import read_state_dict
from sfumato.files import step_folders
from sfumato.plugins import describe, is_path, load_object
from sfumato.policy import Card, Generator, Policy
from sfumato.settings import PerUnit
from sfumato.text.reader import ReadsCaptions

_BUILT_IN = (var.FAMILY, llamagen.FAMILY, infinity.FAMILY, switti.FAMILY, janus.FAMILY, simplear.FAMILY)
FAMILIES: dict[str, Family] = {family.name: family for family in _BUILT_IN}
"""Built-in families by name."""
AVERAGE = "ema"
"""Given as `weights`: the moving average of the weights of a run."""
ENTRY_POINTS = "sfumato.families"
"""Entry-point group in which an installed package registers its own `Family`."""


def find_family(name: str) -> Family:
    """Return a family by name: a built-in one, one from another package's entry points, or `path/to/file.py:build`.

    The `build` function of a file takes no arguments and returns a generator; only its network and tokenizer are saved.

    Raises:
        UserError: there is no family of this name.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
        return entry.load()
    if is_path(name):
        # The file runs only to build: saving a checkpoint must not run it again, whatever it has become since.
        return Family(name=name, build=lambda shape: _build_own(name))
    raise UserError(
        f"model: unknown family {name!r}; give one of {', '.join(FAMILIES)}, or install the package that provides it"
    )


def _build_own(name: str) -> Generator:
    """Call the `build` function of a user's file.

    Raises:
        UserError: it fails, or returns no generator.
    """
    build = load_object("model", name)
    try:
        generator = build()
    except UserError:
        raise
    except Exception as error:  # a user's code may raise anything; the cause is kept
        raise UserError(f"model: {name} failed: {describe(error)}") from error
    missing = [member for member in ("card", "network", "tokenizer", "units") if not hasattr(generator, member)]
    if missing:
        raise UserError(f"model: {name} returned a {type(generator).__name__} without {missing[0]}; return a generator")
    return generator


def family_of_shape(shape: object) -> Family:
    """Return the family whose `network_shape` has this type.

    Raises:
        UserError: there is no such family.
    """
    for family in FAMILIES.values():
        if family.network_shape is not None and isinstance(shape, family.network_shape):
            return family
    raise UserError(f"transformer: {type(shape).__name__} is not the shape of a known family; give one of FAMILIES")


def releases() -> dict[str, tuple[Family, Release]]:
    """Return the published checkpoints of all families, by name."""
    installed = {entry.name: entry.load() for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    families = {**installed, **FAMILIES}.values()
    return {name: (family, release) for family in families for name, release in family.releases.items()}


def _listed() -> list[str]:
    """Return the names of the releases that messages list."""
    return [name for name, (_, release) in releases().items() if release.listed]


def bundled_models() -> dict[str, Path]:
    """Return the folders of the bundled generators, by name."""
    root = Path(str(resources.files("sfumato") / "bundled"))
    return {folder.name: folder for folder in sorted(root.iterdir()) if (folder / "transformer.safetensors").is_file()}


def load(
    name_or_path: str | Path,
    *,
    weights: str | Path | None = None,
    tokenizer: str | Path | None = None,
    guidance: PerUnit | Literal["own"] | None = "own",
    temperature: PerUnit | None = None,
    top_k: int | tuple[int, ...] | None = None,
    top_p: PerUnit | None = None,
    device: torch.device | str = "cpu",
    text_encoder: str | None = None,
) -> Policy:
    """Load a policy that is ready to sample, with the model's own settings unless others are given.

    `sfumato sample` uses the same defaults.

    Args:
        name_or_path: a bundled generator ("emoji-var"), a run folder or checkpoint that Sfumato wrote, a released
            checkpoint ("var-d16", "llamagen-b-256", ...), OWNER/NAME on the hub, or path/to/family.py:build.
        weights: file of a released network (FILE::NAME for one of several state dicts in it); by default the file is
            downloaded through `huggingface_hub`. For a run, "ema" is the moving average of its weights.
        tokenizer: file of a released tokenizer; by default the file is downloaded through `huggingface_hub`.
        guidance: strength of classifier-free guidance, as the family's authors define it: VAR adds g times the
            difference of conditional and unconditional logits, with g increasing over the scales; LlamaGen multiplies
            the difference by s. None turns guidance off.
        temperature: number that the logits are divided by, in sampling and in scoring.
        top_k: number of most likely tokens to keep; 0 keeps all.
        top_p: total probability of the most likely tokens to keep; 0 keeps all.
        device: device of the model.
        text_encoder: hub id or folder of a text encoder to use instead of the model's own.

    Raises:
        UserError: there is no model of this name, the weights belong to another model, or a setting is wrong.
    """
    generator = load_generator(
        name_or_path, weights=weights, tokenizer=tokenizer, device=device, text_encoder=text_encoder
    )
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    changes = {name: value for name, value in given.items() if value is not None}
    if guidance != "own":
        changes["guidance"] = guidance
    return Policy(generator, replace(generator.card.settings, **changes))


def load_generator(
    name_or_path: str | Path,
    *,
    weights: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: torch.device | str = "cpu",
    text_encoder: str | None = None,
) -> Generator:
    """Load a generator by name. The arguments are the same as for `load`.

    Raises:
        UserError: there is no model of this name, or the weights belong to another model.
    """
    name, published = str(name_or_path), releases()
    if name in published:
        family, release = published[name]
        family.check_installed()
        source = release.tokenizer_repository or release.repository
        network = read_state_dict(weights or fetch(release.repository, release.weights, "weights"))
        images = network
        if tokenizer or release.tokenizer:
            images = read_state_dict(tokenizer or fetch(source, release.tokenizer, "tokenizer"), "tokenizer")
        generator = build_release(name, family, release, network, images)
    elif weights is not None and str(weights) == AVERAGE:
        generator = load_model(locate(name), averaged=True)
    elif weights is not None or tokenizer is not None:
        raise UserError(
            f"weights: weight files are only for released models, not for {name!r}; "
            f"{alternatives(name, _listed())} (a run may have {AVERAGE})"
        )
    elif is_path(name):
        generator = with_family(find_family(name).build({}), _absolute(name))
    else:
        generator = load_model(locate(name))
    if text_encoder is not None:
        if not isinstance(generator, ReadsCaptions):
            raise UserError(f"text_encoder: {name} has no text encoder to replace; omit the option")
        generator.reader.use(text_encoder)
    if isinstance(generator, nn.Module):
        generator.eval()
    return generator.to(device)


def build_release(name: str, family: Family, release: Release, weights: StateDict, tokenizer: StateDict) -> Generator:
    """Build the generator of a release.

    Raises:
        UserError: the tensors belong to another model.
    """
    assert family.read is not None
    actual = family.inspect(weights)
    for fact, expected in release.facts.items():
        if actual[fact] != expected:
            raise UserError(
                f"weights: the file contains a model with {fact} {actual[fact]}, but {name} has {fact} {expected}; "
                f"give {release.weights}"
            )
    generator = family.read(weights, tokenizer, **release.needed)
    generator.card = release.card(family.name)
    return generator


def load_published(family: str, *state_dicts: StateDict, **needed: object) -> Generator:
    """Build a generator of any family from state dicts with published names; its shape is inferred from the tensors.

    Args:
        family: "var" or "switti" (transformer, VQVAE; `patch_nums`, `num_heads`), "llamagen" (GPT, VQ; `num_heads`,
            `grid_size`), "infinity" (transformer, VAE; `num_heads`, `scales`, `rotary_grid`), or another name in
            `FAMILIES`.
        state_dicts: tensors by published name, of any floating-point type; they are copied to float32.
        needed: arguments of the family's `read` that cannot be inferred from tensor shapes.

    Raises:
        UserError: there is no such family, a key is missing or unknown, a tensor has the wrong shape, or an argument
            contradicts the shapes.
    """
    definition = find_family(family)
    if definition.read is None:
        raise UserError(f"family: {family} has no published format; load a model folder")
    generator = definition.read(*state_dicts, **needed)
    if isinstance(generator, nn.Module):
        generator.eval()
    return generator


def with_family(generator: Generator, family: str) -> Generator:
    """Set the family in the card of a generator, and return the generator."""
    generator.card = replace(generator.card, family=family)
    return generator


def locate(name: str) -> Path:
    """Return the model folder of a bundled model, a path, or a hub repository OWNER/NAME (which is downloaded).

    Raises:
        UserError: there is no such model.
    """
    if name in bundled_models():
        return bundled_models()[name]
    path = Path(name)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        path = fetch_folder(name)
    return find_model(path)


def find_model(path: Path) -> Path:
    """Return the model folder at `path` or in it; for a run, the folder of its last checkpoint.

    Raises:
        UserError: there is no model folder.
    """
    if holds_model(path):
        return path
    candidates = [*step_folders(path / "checkpoints"), path / "model"]
    for candidate in reversed([c / "model" if (c / "model").is_dir() else c for c in candidates]):
        if holds_model(candidate):
            return candidate
    hint = alternatives(str(path), [*bundled_models(), *_listed()])
    raise UserError(f"model: {str(path)!r} is neither a known model nor a run folder with a checkpoint; {hint}")


def holds_model(path: Path) -> bool:
    """Return whether a folder is a model folder: it has a network, adapters, or belongs to a sharded checkpoint."""
    files = [path / "transformer.safetensors", path / "adapter.safetensors", path.parent / "shards/.metadata"]
    return (path / "config.json").is_file() and any(file.is_file() for file in files)


def save_model(
    folder: Path,
    generator: Generator,
    dtype: torch.dtype = torch.float32,
    tokenizer: Path | None = None,
    parts: Mapping[str, Mapping[str, Tensor]] | None = None,
    adapter: Adapter | None = None,
) -> None:
    """Write a model folder; see `sfumato.families.folder.write_folder`."""
    shape = find_family(generator.card.family).describe(generator)
    write_folder(folder, generator, shape, dtype, tokenizer, parts, adapter)


def load_model(folder: Path, *, averaged: bool = False) -> Generator:
    """Read a model folder; weights are converted to float32, and adapters are merged into their base.

    Args:
        folder: the model folder.
        averaged: whether to read the moving average of the weights.

    Raises:
        UserError: a file is missing or damaged, no average of the weights is saved, or the family is unknown.
    """
    config = read_generator(folder)
    family = find_family(config["family"])
    with described_in(folder):
        generator = family.build(config)
        generator.card = card_from(config)
    file = folder / "tokenizer.safetensors"
    load_weights(generator.tokenizer, read_tensors(file), file)
    file = folder / "transformer.safetensors"
    tensors = _network_tensors(folder, config, generator.network, averaged)
    load_weights(generator.network, tensors, file if file.is_file() else folder)
    return generator


def _network_tensors(
    folder: Path, config: Mapping[str, Any], network: nn.Module, averaged: bool
) -> Mapping[str, Tensor]:
    """Return the tensors of a model folder's network: from its own file, or base and adapters, or shards."""
    suffix, shards, own = "_ema" if averaged else "", folder.parent / "shards", network.state_dict()
    stem = "adapter" if "adapter" in config else "transformer"
    if stem == "transformer" and shards.is_dir():
        tensors = read_shards(shards, "network", own)
        if not averaged:
            return tensors
        trained = {name: own[name] for name, _ in network.named_parameters()}
        return {**tensors, **read_shards(shards, "ema", trained)}
    file = folder / f"{stem}{suffix}.safetensors"
    if averaged and not file.is_file():
        raise UserError(f"weights: {folder} has no average of its weights; train with --ema-decay, or omit --weights")
    tensors = read_tensors(file)
    if stem == "transformer":
        return tensors
    adapter = shape_from(Adapter, config["adapter"])
    base = adapter.base
    try:
        changed = load_generator(base["model"] or "", weights=base["weights"], tokenizer=base["tokenizer"])
    except UserError as error:
        raise UserError(f"model: the adapters in {folder} need their base, {base['model']}; {error}") from error
    return merged(changed.network.state_dict(), tensors, adapter)


def base_of(name_or_path: str, weights: str | None, tokenizer: str | None) -> dict[str, str | None]:
    """Return arguments of `load_generator` that load the same model from any folder, for adapters to refer to."""
    files = {"weights": weights, "tokenizer": tokenizer}
    absolute = {name: file and str(Path(file).resolve()) for name, file in files.items()}
    path = Path(name_or_path)
    if path.exists() and name_or_path not in {**bundled_models(), **releases()} and not is_path(name_or_path):
        return {"model": str(find_model(path).resolve()), **absolute}
    return {"model": _absolute(name_or_path) if is_path(name_or_path) else name_or_path, **absolute}


def read_generator(folder: Path) -> dict[str, Any]:
    """Read a generator's `config.json`.

    Raises:
        UserError: it is missing or damaged, or describes something else.
    """
    config = read_config(folder)
    if not isinstance(config.get("family"), str) or "class_names" not in config:
        raise UserError(f"model: {folder}/config.json does not describe a generator; give another folder")
    return config


def read_card(name_or_path: str) -> Card:
    """Return the card of the model that `load` would load, without loading its weights.

    Raises:
        UserError: there is no model of this name.
    """
    published = releases()
    if name_or_path in published:
        family, release = published[name_or_path]
        return release.card(family.name)
    if is_path(name_or_path):
        return find_family(name_or_path).build({}).card
    folder = locate(name_or_path)
    config = read_generator(folder)
    with described_in(folder):
        return card_from(config)


def _absolute(name: str) -> str:
    """Return `path/to/file.py:build` with an absolute path."""
    file, _, member = name.rpartition(":")
    return f"{Path(file).resolve()}:{member}"
