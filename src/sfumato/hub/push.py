"""Gather the files of a run for the Hugging Face Hub, and upload them."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfumato.errors import UserError
from sfumato.families.adapters import Adapter
from sfumato.families.folder import read_config, shape_from
from sfumato.families.library import bundled_models, holds_model, load_model, releases, save_model
from sfumato.files import claim_folder, step_of
from sfumato.hub.card import PICTURES, Published, write_card
from sfumato.plugins import is_path
from sfumato.report.folders import read_config as read_run_config
from sfumato.rewards.needs import first_line
from sfumato.training.hooks.checkpoints import checkpoints_in

WEIGHTS = ("transformer", "adapter", "tokenizer", "transformer_ema", "adapter_ema")
"""Files of a model folder, without the extension .safetensors."""
FILES = ("README.md", "config.json", *(f"{name}.safetensors" for name in WEIGHTS), *PICTURES)
"""All files that are ever uploaded."""


def find(run: Path, repository: str, checkpoint: int | None = None, evaluations: Sequence[Path] = ()) -> Published:
    """Find what to publish; nothing is loaded.

    Args:
        run: folder of a run.
        repository: OWNER/NAME.
        checkpoint: number of steps; the newest checkpoint by default.
        evaluations: folders of `sfumato evaluate`, whose tables the card shows.

    Raises:
        UserError: the name is not OWNER/NAME, the folder is not that of a run, there is no such checkpoint, or the
            model's family is code that others do not have.
    """
    check_name(repository)
    if not (run / "config.json").is_file() or holds_model(run):
        raise UserError(f"run: {run} is not the folder of a run; give one, such as runs/emoji-dark")
    config = read_run_config(run)
    found = {step_of(path): path for path in checkpoints_in(run / "checkpoints")}
    if not found:
        raise UserError(f"run: {run} has no complete checkpoint; wait for one, or train further with --resume")
    if checkpoint is not None and checkpoint not in found:
        raise UserError(f"checkpoint: {run} has none of step {checkpoint}; give {', '.join(map(str, found))}")
    chosen = found[max(found) if checkpoint is None else checkpoint]
    family = read_config(chosen / "model")["family"]
    if is_path(family):
        raise UserError(
            f"run: the family of its model is your own file {family}, which others do not have; make it a package with "
            "an entry point in the group sfumato.families"
        )
    return Published(run=run, config=config, checkpoint=chosen, repository=repository, evaluations=evaluations)


def check_name(repository: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        UserError: the name is not of the form OWNER/NAME.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    remedy = "give OWNER/NAME, such as me/emoji-dark"
    if repository.count("/") != 1:
        raise UserError(f"repository: {repository!r} is not the name of a repository on the hub; {remedy}")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(
            f"repository: {repository!r} is not the name of a repository on the hub ({first_line(error)}); {remedy}"
        ) from error


def write(what: Published, folder: Path) -> None:
    """Write model, card and pictures to a folder.

    Raises:
        UserError: the folder is not empty or cannot be written to, or an evaluation is not finished.
    """
    claim_folder("out", folder, "README.md", resume=False)
    gather(what, folder, shutil.copyfile)


def gather(what: Published, folder: Path, put: Callable[[Path, Path], object]) -> None:
    """Write the card, and put model and pictures next to it.

    Adapters of a model that everybody has stay adapters. Others are merged into their base, and shards into one file,
    because both refer to files on this machine.

    Args:
        what: what is published.
        folder: an empty folder, which is created if necessary.
        put: function that puts a file (the first argument) at a new path.
    """
    card = write_card(what)
    model = what.checkpoint / "model"
    folder.mkdir(parents=True, exist_ok=True)
    if stands_alone(model):
        for name in FILES:
            if (model / name).is_file():
                put(model / name, folder / name)
    else:
        save_model(folder, load_model(model))
    for picture in what.pictures:
        put(picture, folder / picture.name)
    (folder / "README.md").write_text(card, "utf-8")


def stands_alone(model: Path) -> bool:
    """Return whether a model folder needs nothing else of this machine."""
    config = read_config(model)
    if "adapter" not in config:
        return (model / "transformer.safetensors").is_file()
    base = shape_from(Adapter, config["adapter"]).base
    return base["model"] in {**bundled_models(), **releases()} and not base["weights"] and not base["tokenizer"]


def push(what: Published, *, private: bool = False, update: bool = False) -> str:
    """Create the repository if necessary, upload model and card in one commit, and return the address of the page.

    The token is that of the environment variable HF_TOKEN, or of `hf auth login`.

    Args:
        what: what is published.
        private: whether only the owner can see a new repository.
        update: whether to replace the files of an existing repository.

    Raises:
        UserError: the token is missing or may not write there; the hub cannot be reached; the repository has other
            files and `update` is False; or it is public and `private` is True.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(what.repository):
        check_repository(api, what.repository, private, update)
        with tempfile.TemporaryDirectory(prefix="sfumato-push-") as place:
            # Links, so that large weights are not copied; the hub's client reads what they point to.
            gather(what, Path(place), lambda source, target: target.symlink_to(source.resolve()))
            address = api.create_repo(what.repository, private=private or None, exist_ok=True)
            api.upload_folder(
                repo_id=what.repository,
                folder_path=place,
                commit_message=f"Upload step {what.step} with sfumato push",
                delete_patterns=list(FILES),  # of an earlier upload, which this one replaces
            )
    return str(address)


def check_repository(api: Any, repository: str, private: bool, update: bool) -> None:
    """Check, before anything is loaded or written, that the hub will take the files.

    Raises:
        UserError: see `push`.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE: it is set, so nothing is sent to the hub; unset it, or use --dry-run")
    if not get_token():
        raise UserError("token: you are not logged in to the hub; run `hf auth login`, or set HF_TOKEN")
    api.whoami()  # refuses a token that is not valid
    try:
        existing = api.model_info(repository)
    except RepositoryNotFoundError:
        return
    files = [file.rfilename for file in existing.siblings or () if file.rfilename != ".gitattributes"]
    if files and not update:
        raise UserError(
            f"repository: {repository} exists and has {len(files)} files ({', '.join(files[:3])}"
            f"{', ...' if len(files) > 3 else ''}); replace its model and card with --update, or choose another name"
        )
    if private and not existing.private:
        raise UserError(f"private: {repository} exists and is public; make it private on the hub, or omit --private")


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turn errors of the hub and of the way to it into one-line UserErrors; they never contain the token."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except Exception as error:
        # The client wraps errors of single uploads. Its HTTP library, which has changed, is a base of its own errors.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if not packages_of(type(cause)) & (packages_of(HfHubHTTPError) | {"hf_xet"}):
            raise
        raise UserError(complaint(repository, cause)) from error


def packages_of(kind: type) -> set[str]:
    """Return the packages that define a class and its bases, without Python's own classes."""
    return {base.__module__.partition(".")[0] for base in kind.__mro__} - {"builtins"}


def complaint(repository: str, error: BaseException) -> str:
    """Return what the hub complains about, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "token: the hub does not accept it (401); run `hf auth login`, or set HF_TOKEN to another one"
    if status == 403:
        return (
            f"repository: your token may not write to {repository} (403); use a token with write access, or your name"
        )
    if status is not None:
        return f"repository: the hub answers {status} for {repository} ({first_line(error)}); try again later"
    endpoint = os.environ.get("HF_ENDPOINT", "the hub")
    return f"repository: {endpoint} cannot be reached ({first_line(error)}); try again, or use --dry-run"
