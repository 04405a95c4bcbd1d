"""Load generators by name: bundled models, folders that Sfumato wrote, released checkpoints, and users' families."""

import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import nn

from sfumato.errors import UserError
from sfumato.families import llamagen, var
from sfumato.families.family import Family, Release
from sfumato.families.folder import card_from, load_weights, read_config, read_tensors, write_folder
from sfumato.families.published import StateDict, read_state_dict
from sfumato.plugins import is_path, load_object
from sfumato.policy import Card, Generator, Policy
from sfumato.settings import PerUnit
from sfumato.text.reader import ReadsCaptions

FAMILIES: dict[str, Family] = {family.name: family for family in (var.FAMILY, llamagen.FAMILY)}
"""Built-in families by name."""
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
        return Family(name=name, build=lambda shape: load_object("model", name)())
    raise UserError(
        f"model: unknown family {name!r}; give one of {', '.join(FAMILIES)}, or install the package that provides it"
    )


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
        weights: file of a released network; by default the file is downloaded through `huggingface_hub`.
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
        generator = build_release(
            name,
            family,
            release,
            read_state_dict(weights or _fetch(release.repository, release.weights, "weights")),
            read_state_dict(tokenizer or _fetch(release.repository, release.tokenizer, "tokenizer")),
        )
    elif weights is not None or tokenizer is not None:
        raise UserError(
            f"weights: weight files are only for released models ({', '.join(published)}), not for {name!r}"
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
        family: "var" (transformer, VQVAE; `patch_nums`, `num_heads`) or "llamagen" (GPT, VQ; `num_heads`, `grid_size`).
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
        from huggingface_hub import snapshot_download

        patterns = ["config.json", "transformer.safetensors", "tokenizer.safetensors"]
        with _hub_errors("model", f"{name} is not a folder here and"):
            path = Path(snapshot_download(name, allow_patterns=patterns))
    return find_model(path)


def find_model(path: Path) -> Path:
    """Return the model folder at `path` or in it; for a run, the folder of its last checkpoint.

    Raises:
        UserError: there is no model folder.
    """
    if (path / "transformer.safetensors").is_file():
        return path
    candidates = [*sorted((path / "checkpoints").glob("step-*")), path / "model"]
    for candidate in reversed([c / "model" if (c / "model").is_dir() else c for c in candidates]):
        if (candidate / "transformer.safetensors").is_file():
            return candidate
    known = ", ".join([*bundled_models(), *releases()])
    raise UserError(f"model: {str(path)!r} is neither a known model ({known}) nor a run folder with a checkpoint")


def save_model(
    folder: Path, generator: Generator, dtype: torch.dtype = torch.float32, tokenizer: Path | None = None
) -> None:
    """Write a model folder; see `sfumato.families.folder.write_folder`."""
    shape = find_family(generator.card.family).describe(generator)
    write_folder(folder, generator, shape, dtype, tokenizer)


def load_model(folder: Path) -> Generator:
    """Read a model folder; weights are converted to float32.

    Raises:
        UserError: a file is missing or damaged, or the family is unknown.
    """
    config = _read_generator(folder)
    family = find_family(config["family"])
    generator = family.build(config)
    generator.card = card_from(config)
    for part, module in (("tokenizer", generator.tokenizer), ("transformer", generator.network)):
        file = folder / f"{part}.safetensors"
        load_weights(module, read_tensors(file), file)
    return generator


def _read_generator(folder: Path) -> dict[str, Any]:
    """Read a generator's `config.json`."""
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
    return card_from(_read_generator(locate(name_or_path)))


def export(name_or_path: str, folder: Path, file_format: str = "pth") -> list[Path]:
    """Write network and tokenizer with the published names; returns the paths of the files.

    Args:
        name_or_path: a bundled model, run folder or checkpoint.
        folder: where to write; existing files are not overwritten.
        file_format: "pth" (for the original code) or "safetensors".

    Raises:
        UserError: the format is unknown, a file exists, or the model has no published format.
    """
    if file_format not in ("pth", "safetensors"):
        raise UserError(f"format: {file_format!r} is unknown; give pth or safetensors")
    if name_or_path in releases():
        raise UserError(
            f"model: {name_or_path} is already in its published format; give a run folder or a model of your own"
        )
    generator = load_model(locate(name_or_path))
    family = find_family(generator.card.family)
    if family.write is None:
        raise UserError(f"model: the family {family.name} has no published format; use the model folder itself")
    state_dicts = family.write(generator)
    files = {name: folder / f"{name}.{file_format}" for name in state_dicts}
    for file in files.values():
        if file.exists():
            raise UserError(f"out: {file} exists; choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        tensors = {key: tensor.contiguous() for key, tensor in state_dicts[name].items()}
        if file_format == "pth":
            torch.save({family.wrapping: tensors} if family.wrapping else tensors, file)
        else:
            safetensors.torch.save_file(tensors, file)
    return list(files.values())


def _absolute(name: str) -> str:
    """Return `path/to/file.py:build` with an absolute path."""
    file, _, member = name.rpartition(":")
    return f"{Path(file).resolve()}:{member}"


def _fetch(repository: str, file: str, field: str) -> str:
    from huggingface_hub import hf_hub_download

    with _hub_errors(field, f"{file} of {repository}"):
        return hf_hub_download(repository, file)


@contextmanager
def _hub_errors(field: str, what: str) -> Iterator[None]:
    """Turn errors of the hub into one-line UserErrors."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{field}: {what} could not be downloaded from the Hugging Face hub; download manually and give the path"
        ) from error
