"""Generators by name: the bundled ones, folders that Sfumato wrote, and released checkpoints."""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sfumato.data.imagenet_classes import imagenet_class_names
from sfumato.errors import UserError
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.network import LlamaGenConfig
from sfumato.families.llamagen.tokenizer import VQConfig, VQModel
from sfumato.families.published import export_llamagen, export_var, read_state_dict
from sfumato.families.releases import RELEASES
from sfumato.families.var.generator import VAR
from sfumato.families.var.network import VARConfig
from sfumato.families.var.tokenizer import MultiScaleVQVAE, VQVAEConfig
from sfumato.policy import Generator, Policy
from sfumato.settings import Inference


def bundled_models() -> dict[str, Path]:
    """Folders of the generators that ship with the package, by name."""
    root = Path(str(resources.files("sfumato") / "bundled"))
    return {folder.name: folder for folder in sorted(root.iterdir()) if (folder / "transformer.safetensors").is_file()}


def load(
    name_or_path: str | Path,
    *,
    weights: str | Path | None = None,
    tokenizer: str | Path | None = None,
    guidance: float = 0.0,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> Policy:
    """A ready policy, for training: without guidance and at temperature 1 unless asked for.

    `sfumato sample` and `sfumato evaluate` draw with the model's own settings instead, which are
    `drawing_policy(policy.generator, policy.generator.inference)` of `sfumato.policy`.

    Args:
        name_or_path: a bundled generator ("emoji-var"), a run folder or checkpoint that Sfumato wrote, a released
            checkpoint ("var-d16" ..., "llamagen-b-256" ..., see `sfumato.families.releases`), or OWNER/NAME of the hub.
        weights: file of a released transformer; without it the file is fetched through `huggingface_hub`.
        tokenizer: file of a released tokenizer, likewise.
        guidance: classifier-free guidance as the family's authors count it: VAR adds g times the difference, LlamaGen
            scales it by s; 0 is none for both (and 1 for LlamaGen).
        temperature: divides the logits, in sampling and scoring alike.
        device: where the model is put.

    Raises:
        UserError: nothing goes by that name, or the weights are not those of the named model.
    """
    name = str(name_or_path)
    if name in RELEASES:
        release = RELEASES[name]
        network = read_state_dict(weights or _fetch(release.repository, release.weights, "weights"))
        autoencoder = read_state_dict(tokenizer or _fetch(release.repository, release.tokenizer, "tokenizer"))
        generator = release.build(name, network, autoencoder)
    elif weights is not None or tokenizer is not None:
        raise UserError(f"weights: files go with a released model ({', '.join(RELEASES)}), not with {name!r}")
    else:
        generator = load_model(locate(name))
    generator.guidance = guidance
    return Policy(generator.eval().to(device), temperature)


def locate(name: str) -> Path:
    """The model folder of a bundled model, of a path, or of a hub repository OWNER/NAME (which is downloaded).

    Raises:
        UserError: there is none.
    """
    if name in bundled_models():
        return bundled_models()[name]
    path = Path(name)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        from huggingface_hub import snapshot_download

        patterns = ["config.json", "transformer.safetensors", "tokenizer.safetensors"]
        with _hub_errors("model", f"{name} is no folder here and"):
            path = Path(snapshot_download(name, allow_patterns=patterns))
    return find_model(path)


def find_model(path: Path) -> Path:
    """The model folder that `path` is or holds: of a run, its last checkpoint.

    Raises:
        UserError: there is none.
    """
    if (path / "transformer.safetensors").is_file():
        return path
    candidates = [*sorted((path / "checkpoints").glob("step-*")), path / "model"]
    for candidate in reversed([c / "model" if (c / "model").is_dir() else c for c in candidates]):
        if (candidate / "transformer.safetensors").is_file():
            return candidate
    known = ", ".join([*bundled_models(), *RELEASES])
    raise UserError(f"model: {str(path)!r} is neither a known model ({known}) nor a run folder with a checkpoint")


@dataclass(frozen=True, kw_only=True)
class Family:
    """The classes that make up a kind of generator."""

    config: type
    tokenizer_config: type
    tokenizer: type[MultiScaleVQVAE] | type[VQModel]
    generator: type[VAR] | type[LlamaGen]


FAMILIES = {
    "var": Family(config=VARConfig, tokenizer_config=VQVAEConfig, tokenizer=MultiScaleVQVAE, generator=VAR),
    "llamagen": Family(config=LlamaGenConfig, tokenizer_config=VQConfig, tokenizer=VQModel, generator=LlamaGen),
}
"""Kinds of generators by the name in a model folder's `config.json`."""


def build_generator(
    config: VARConfig | LlamaGenConfig, tokenizer: VQVAEConfig | VQConfig, class_names: Sequence[str]
) -> VAR | LlamaGen:
    """A generator of this shape with initial weights.

    Raises:
        UserError: the tokenizer is another family's.
    """
    for name, family in FAMILIES.items():
        if isinstance(config, family.config):
            if not isinstance(tokenizer, family.tokenizer_config):
                raise UserError(f"tokenizer: {type(tokenizer).__name__} is not of the family {name}")
            return family.generator(config, family.tokenizer(tokenizer), class_names)  # pyright: ignore
    raise AssertionError(config)


def family_of(generator: VAR | LlamaGen) -> str:
    """The name of a generator's family."""
    return next(name for name, family in FAMILIES.items() if isinstance(generator, family.generator))


def save_model(folder: Path, generator: Generator, dtype: torch.dtype = torch.float32) -> None:
    """Write a model folder: `config.json`, `transformer.safetensors`, `tokenizer.safetensors`."""
    assert isinstance(generator, VAR | LlamaGen)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "family": family_of(generator),
        "transformer": dataclasses.asdict(generator.config),
        "tokenizer": dataclasses.asdict(generator.tokenizer.config),
        "inference": dataclasses.asdict(generator.inference),
        "class_names": generator.class_names,
    }
    if isinstance(generator, LlamaGen):
        config["guidance_interval"] = generator.guidance_interval
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    for part in ("transformer", "tokenizer"):
        tensors = getattr(generator, part).state_dict()
        safetensors.torch.save_file({k: _cast(v, dtype) for k, v in tensors.items()}, folder / f"{part}.safetensors")


def load_model(folder: Path) -> VAR | LlamaGen:
    """Read a model folder; weights are widened to float32."""
    saved = read_config(folder)
    if saved.get("family") not in FAMILIES:
        raise UserError(f"model: {folder}/config.json is of the family {saved.get('family')!r}, no generator's")
    family = FAMILIES[saved["family"]]
    config, tokenizer = family.config(**saved["transformer"]), family.tokenizer_config(**_tuples(saved["tokenizer"]))
    generator = build_generator(config, tokenizer, saved["class_names"])
    generator.inference = Inference(**saved.get("inference", {}))
    if isinstance(generator, LlamaGen):
        generator.guidance_interval = saved.get("guidance_interval", -1)
    for part in ("tokenizer", "transformer"):
        try:
            getattr(generator, part).load_state_dict(load_part(folder, part))
        except RuntimeError as error:
            raise UserError(
                f"model: {folder}/{part}.safetensors does not fit its config.json; copy both again"
            ) from error
    return generator


def read_config(folder: Path) -> dict:
    """What a model folder's `config.json` says.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"model: {folder}/config.json cannot be read ({error}); copy it again") from error


def load_part(folder: Path, part: str) -> dict[str, Tensor]:
    """Tensors of a model folder's transformer or tokenizer, widened to float32.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = folder / f"{part}.safetensors"
    try:
        return {k: _cast(v, torch.float32) for k, v in safetensors.torch.load_file(file).items()}
    except (OSError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model: {file} cannot be read ({reason}); is it truncated? copy it again") from error


def class_names(name_or_path: str) -> tuple[str, ...]:
    """The class names of what `load` finds by this name, without loading weights; none if it reads captions."""
    if name_or_path in RELEASES:
        return () if RELEASES[name_or_path].is_text else tuple(imagenet_class_names())
    return tuple(read_config(locate(name_or_path))["class_names"])


def export(name_or_path: str, folder: Path, file_format: str = "pth") -> list[Path]:
    """Write transformer and tokenizer with the published names; returns the two files.

    Args:
        name_or_path: a bundled model, run folder or checkpoint.
        folder: where to; existing files are not overwritten.
        file_format: "pth" (what the original code reads) or "safetensors".
    """
    if file_format not in ("pth", "safetensors"):
        raise UserError(f"format: {file_format!r} is not known; give pth or safetensors")
    if name_or_path in RELEASES:
        raise UserError(f"model: {name_or_path} is as published already; give a run folder or a model of yours")
    generator = load_model(locate(name_or_path))
    if isinstance(generator, VAR):
        names, state_dicts = ("var", "vae"), export_var(generator)
    else:
        names, state_dicts = ("gpt", "vq"), export_llamagen(generator)
    files = [folder / f"{name}.{file_format}" for name in names]
    for file in files:
        if file.exists():
            raise UserError(f"out: {file} exists; choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    for file, state_dict in zip(files, state_dicts, strict=True):
        tensors = {k: v.contiguous() for k, v in state_dict.items()}
        if file_format == "pth":
            torch.save(tensors if isinstance(generator, VAR) else {"model": tensors}, file)
        else:
            safetensors.torch.save_file(tensors, file)
    return files


def _fetch(repository: str, file: str, field: str) -> str:
    from huggingface_hub import hf_hub_download

    with _hub_errors(field, f"{file} of {repository}"):
        return hf_hub_download(repository, file)


@contextmanager
def _hub_errors(field: str, what: str) -> Iterator[None]:
    """Turn the hub's errors into one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{field}: {what} could not be fetched from the Hugging Face hub; download by hand and give the path"
        ) from error


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor


def _tuples(values: dict) -> dict:
    """JSON's lists as the tuples that the configs hold."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
