"""Download published files and model folders from the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfumato.errors import UserError


def fetch_folder(repository: str) -> Path:
    """Download the model folder that a hub repository OWNER/NAME contains, and return its path.

    Raises:
        UserError: it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    with hub_errors("model", f"{repository} is not a folder here and"):
        return Path(snapshot_download(repository, allow_patterns=["config.json", "*.safetensors"]))


def fetch(repository: str, file: str, field: str) -> str:
    """Download a file, a folder, whose name ends in a slash, or an index with its shards; return its path.

    Args:
        repository: OWNER/NAME on the hub.
        file: path in the repository.
        field: option for which it is downloaded, for messages.

    Raises:
        UserError: it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    with hub_errors(field, f"{file} of {repository}"):
        if file.endswith(".index.json"):
            pattern = f"{file.partition('.')[0]}*"
            return str(Path(snapshot_download(repository, allow_patterns=[pattern])) / file)
        if not file.endswith("/"):
            return hf_hub_download(repository, file)
        return str(Path(snapshot_download(repository, allow_patterns=[f"{file}*"])) / file)


@contextmanager
def hub_errors(field: str, what: str) -> Iterator[None]:
    """Turn what a download from the hub raises into an error.

    Raises:
        UserError: the block cannot download.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ImportError) as error:  # ImportError: a SOCKS proxy
        raise UserError(
            f"{field}: {what} could not be downloaded from the Hugging Face hub; download manually and give the path"
        ) from error
