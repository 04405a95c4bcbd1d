"""Generators by name: the bundled ones, folders that Sfumato wrote, and released checkpoints."""

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sfumato.models.checkpoints import export_var, infer_var_config, load_var, read_state_dict
from sfumato.models.var import VAR, VARConfig
from sfumato.models.vqvae import MultiScaleVQVAE, VQVAEConfig
from sfumato.policy import Generator, Policy


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published checkpoint."""

    repository: str
    """Hugging Face repository"""
    weights: str
    """file of the transformer there"""
    tokenizer: str
    """file of the tokenizer there"""
    depth: int
    patch_nums: tuple[int, ...]


_SCALES_256, _SCALES_512 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
RELEASES: dict[str, Release] = {
    f"var-d{depth}": Release(
        repository="FoundationVision/var",
        weights=f"var_d{depth}.pth",
        tokenizer="vae_ch160v4096z32.pth",
        depth=depth,
        patch_nums=_SCALES_512 if depth == 36 else _SCALES_256,
    )
    for depth in (16, 20, 24, 30, 36)
}


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
    """A ready policy.

    Args:
        name_or_path: a bundled generator ("emoji-var"), a run folder or checkpoint that Sfumato wrote, or a released
            checkpoint ("var-d16" to "var-d36").
        weights: file of a released transformer; without it the file is fetched through `huggingface_hub`.
        tokenizer: file of a released tokenizer, likewise.
        guidance: strength of classifier-free guidance, 0 for none.
        temperature: divides the logits, in sampling and scoring alike.
        device: where the model is put.

    Raises:
        ValueError: nothing goes by that name, or the weights are not those of the named model.
    """
    name = str(name_or_path)
    if name in RELEASES:
        generator = _load_release(name, weights, tokenizer)
    elif weights is not None or tokenizer is not None:
        raise ValueError(f"weights: files go with a released model ({', '.join(RELEASES)}), not with {name!r}")
    else:
        generator = load_model(locate(name))
    generator.guidance = guidance
    return Policy(generator.eval().to(device), temperature)


def locate(name: str) -> Path:
    """The model folder of a bundled model, of a path, or of a hub repository OWNER/NAME (which is downloaded).

    Raises:
        ValueError: there is none.
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
        ValueError: there is none.
    """
    if (path / "transformer.safetensors").is_file():
        return path
    candidates = [*sorted((path / "checkpoints").glob("step-*")), path / "model"]
    for candidate in reversed([c / "model" if (c / "model").is_dir() else c for c in candidates]):
        if (candidate / "transformer.safetensors").is_file():
            return candidate
    known = ", ".join([*bundled_models(), *RELEASES])
    raise ValueError(f"model: {str(path)!r} is neither a known model ({known}) nor a run folder with a checkpoint")


def save_model(folder: Path, generator: Generator, dtype: torch.dtype = torch.float32) -> None:
    """Write a model folder: `config.json`, `transformer.safetensors`, `tokenizer.safetensors`."""
    assert isinstance(generator, VAR)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "family": "var",
        "transformer": dataclasses.asdict(generator.config),
        "tokenizer": dataclasses.asdict(generator.tokenizer.config),
        "class_names": generator.class_names,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    for part in ("transformer", "tokenizer"):
        tensors = getattr(generator, part).state_dict()
        safetensors.torch.save_file({k: _cast(v, dtype) for k, v in tensors.items()}, folder / f"{part}.safetensors")


def load_model(folder: Path) -> VAR:
    """Read a model folder; weights are widened to float32."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = MultiScaleVQVAE(VQVAEConfig(**_tuples(config["tokenizer"])))
    generator = VAR(VARConfig(**config["transformer"]), tokenizer, config["class_names"])
    for part in ("tokenizer", "transformer"):
        file = folder / f"{part}.safetensors"
        try:
            tensors = safetensors.torch.load_file(file)
            getattr(generator, part).load_state_dict({k: _cast(v, torch.float32) for k, v in tensors.items()})
        except (OSError, safetensors.SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"model: {file} cannot be read ({reason}); is it truncated? copy it again") from error
    return generator


def _load_release(name: str, weights: str | Path | None, tokenizer: str | Path | None) -> VAR:
    release = RELEASES[name]
    network = read_state_dict(weights or _fetch(release.repository, release.weights, "weights"))
    found = infer_var_config(network, num_heads=1).depth
    if found != release.depth:
        raise ValueError(
            f"weights: the file holds a VAR of depth {found}, {name} has {release.depth}; load var-d{found}"
        )
    return load_var(
        network,
        read_state_dict(tokenizer or _fetch(release.repository, release.tokenizer, "tokenizer")),
        patch_nums=release.patch_nums,
        num_heads=release.depth,
        class_names=imagenet_class_names(),
    )


def class_names(name_or_path: str) -> tuple[str, ...]:
    """The class names of what `load` finds by this name, without loading weights."""
    if name_or_path in RELEASES:
        return tuple(imagenet_class_names())
    folder = locate(name_or_path)
    return tuple(json.loads((folder / "config.json").read_text())["class_names"])


def export(name_or_path: str, folder: Path, file_format: str = "pth") -> list[Path]:
    """Write transformer and tokenizer with the published names; returns the two files.

    Args:
        name_or_path: a bundled model, run folder or checkpoint.
        folder: where to; existing files are not overwritten.
        file_format: "pth" (what the original code reads) or "safetensors".
    """
    if file_format not in ("pth", "safetensors"):
        raise ValueError(f"format: {file_format!r} is not known; give pth or safetensors")
    generator = load_model(locate(name_or_path))
    files = [folder / f"{name}.{file_format}" for name in ("var", "vae")]
    for file in files:
        if file.exists():
            raise ValueError(f"out: {file} exists; choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    for file, state_dict in zip(files, export_var(generator), strict=True):
        tensors = {k: v.contiguous() for k, v in state_dict.items()}
        if file_format == "pth":
            torch.save(tensors, file)
        else:
            safetensors.torch.save_file(tensors, file)
    return files


def imagenet_class_names() -> list[str]:
    """Names of ImageNet's 1000 classes, in the order of the published labels."""
    return (resources.files("sfumato") / "bundled/imagenet_classes.txt").read_text().splitlines()


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
        raise ValueError(
            f"{field}: {what} could not be fetched from the Hugging Face hub; download by hand and give the path"
        ) from error


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor


def _tuples(values: dict) -> dict:
    """JSON's lists as the tuples that the configs hold."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
