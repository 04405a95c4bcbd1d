"""Text features on disk, so that a large text encoder need not stay in memory while a generator is trained.

A cache is a folder for one encoder and one set of captions:

    features.f16     the captions' tokens one after another, each `width` little-endian half-precision numbers
    offsets.npy      where each caption's tokens begin, and the end of the last, in tokens
    captions.json    the encoder's name, the width, and the captions
"""

import gc
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.files import state
from sfumato.text.encoders import TextEncoder

FORMAT = 2
"""Part of a cache's name: another one for every change of the files, or of what an encoder makes of a caption."""
CAPTIONS_AT_ONCE = 256
"""Captions between two reports of progress."""


class CachedReader:
    """A text encoder that knows only the captions whose features are in its folder; these are mapped, not loaded."""

    def __init__(self, folder: str | Path):
        """Open a folder that `cache_features` wrote.

        Raises:
            UserError: it is not there or damaged.
        """
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / "captions.json").read_text(encoding="utf-8"))
            self.name, self.width = str(about["encoder"]), int(about["width"])
            self._rows = {caption: row for row, caption in enumerate(about["captions"])}
            self._offsets = np.load(self.folder / "offsets.npy")
            shape = (int(self._offsets[-1]), self.width)
            if (self.folder / "features.f16").stat().st_size != 2 * shape[0] * shape[1]:
                raise UserError("features.f16 has the wrong size")
            self._features = np.memmap(self.folder / "features.f16", dtype="<f2", mode="r", shape=shape)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"text_encoder: the features in {self.folder} cannot be read ({reason}); remove the folder"
            ) from error

    def encode(self, captions: Sequence[str]) -> list[Float[Tensor, "T W"]]:
        """The features of each caption's tokens, as the encoder gave them but rounded to half precision, in float32.

        Raises:
            UserError: a caption is not in the cache.
        """
        unknown = next((caption for caption in captions if caption not in self._rows), None)
        if unknown is not None:
            raise UserError(
                f"prompts: {unknown!r} is not among the {len(self._rows)} captions in {self.folder}; "
                f"cache all captions of the run, or read this one with the text encoder {self.name}"
            )
        rows = [self._rows[caption] for caption in captions]
        parts = [self._features[self._offsets[row] : self._offsets[row + 1]] for row in rows]
        return [torch.from_numpy(part.astype(np.float32)) for part in parts]


def cache_features(
    captions: Sequence[str],
    name: str,
    make_reader: Callable[[], TextEncoder],
    folder: str | Path,
    progress: Callable[[int, int], object] | None = None,
) -> CachedReader:
    """A reader of these captions from disk; the text encoder is made only if they are not there, and let go of then.

    The first of several processes writes while the others wait. What an interrupted process left is written anew.

    Args:
        captions: all that will be asked for; their order and repeats make no difference.
        name: the text encoder's name, under which its features are found again; of a folder also by its files' sizes
            and times, so that another encoder in its place is another.
        make_reader: loads the text encoder, such as `lambda: load_text_encoder(name, "cuda")`.
        folder: of all caches; a folder below it is made for this encoder and these captions.
        progress: told how many captions of how many are done.

    Raises:
        UserError: the features are beyond half precision, or an existing cache is damaged; or of `make_reader`.
    """
    distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))  # little padding in a batch
    encoder = state(Path(name)) if Path(name).is_dir() else name
    digest = hashlib.sha256(json.dumps([FORMAT, encoder, distinct]).encode()).hexdigest()[:16]
    cache = Path(folder) / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)[-60:].strip('-')}-{digest}"
    cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_name(f"{cache.name}.lock")):
        if not cache.exists():
            partial = cache.with_name(f"{cache.name}.partial")
            partial.mkdir(exist_ok=True)
            try:
                _write(partial, distinct, name, make_reader(), progress)
                os.replace(partial, cache)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
    return CachedReader(cache)


def _write(
    folder: Path,
    captions: Sequence[str],
    name: str,
    reader: TextEncoder,
    progress: Callable[[int, int], object] | None,
) -> None:
    offsets = [0]
    with open(folder / "features.f16", "wb") as file:
        for first in range(0, len(captions), CAPTIONS_AT_ONCE):
            for features in reader.encode(captions[first : first + CAPTIONS_AT_ONCE]):
                half = features.half()
                if not half.isfinite().all():
                    raise UserError(f"text_encoder: features of {name} are beyond half precision; do not cache them")
                file.write(half.numpy().astype("<f2").tobytes())
                offsets.append(offsets[-1] + len(half))
            if progress is not None:
                progress(len(offsets) - 1, len(captions))
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    about = {"encoder": name, "width": reader.width, "captions": captions}
    (folder / "captions.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
