"""Text features on disk, so that a large text encoder need not stay in memory while a generator is trained.

A cache is a folder for one encoder and one set of captions:

    features.f16     features of all captions' tokens in sequence, `width` little-endian half-precision numbers each
    offsets.npy      start of each caption's tokens, and end of the last caption, counted in tokens
    captions.json    the encoder's name, the width, and the captions
"""

import gc
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.files import state, write_atomically
from sfumato.text.encoders import TextEncoder, encoder_names

FORMAT = 4
"""Part of a cache's name. It must change whenever the file format or the features of an encoder change."""
CAPTIONS_AT_ONCE = 256
"""Number of captions between two progress reports."""


class CachedReader:
    """A text encoder for only those captions whose features are in its folder; the features are memory-mapped."""

    def __init__(self, folder: str | Path):
        """Open a folder that `cache_features` wrote.

        Raises:
            UserError: the folder is missing or damaged.
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
        """Return the features of each caption's tokens in float32; the cache has rounded them to half precision.

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
    *,
    longest: int = 120,
    clean: bool = True,
) -> CachedReader:
    """Return a reader of these captions from disk; if they are not cached, encode them and release the encoder.

    If there are several processes, one writes while the others wait. A cache that an interrupted process left
    incomplete is written again.

    Args:
        captions: all captions that will be read; order and duplicates make no difference.
        name: name of the text encoder, which identifies the cache. If it is a folder, the sizes and times of its files
            do as well, so that another encoder in the same folder has another cache.
        make_reader: function that loads the text encoder, e.g. `lambda: load_text_encoder(name, "cuda")`.
        folder: parent folder of all caches; a subfolder is created for this encoder and these captions.
        progress: called with the number of captions that are done and the total number.
        longest: maximum number of text tokens per caption that the encoder reads.
        clean: whether the encoder cleans captions.

    Raises:
        UserError: the features exceed the range of half precision, an existing cache is damaged, or `make_reader`
            raised it.
    """
    distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))  # to reduce padding in batches
    parts = [state(Path(part)) if Path(part).is_dir() else part for part in encoder_names(name)]
    encoder = parts if len(parts) > 1 else parts[0]
    about = [FORMAT, encoder, longest, distinct, *([] if clean else ["not cleaned"])]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    cache = Path(folder) / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)[-60:].strip('-')}-{digest}"
    cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache.with_name(f"{cache.name}.lock")):
        if not cache.exists():
            try:
                write_atomically(cache, lambda place: _write(place, distinct, name, make_reader(), progress))
            finally:
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
    folder.mkdir()
    offsets = [0]
    with open(folder / "features.f16", "wb") as file:
        for first in range(0, len(captions), CAPTIONS_AT_ONCE):
            for features in reader.encode(captions[first : first + CAPTIONS_AT_ONCE]):
                half = features.half()
                if not half.isfinite().all():
                    raise UserError(
                        f"text_encoder: features of {name} exceed the range of half precision; do not cache them"
                    )
                file.write(half.numpy().astype("<f2").tobytes())
                offsets.append(offsets[-1] + len(half))
            if progress is not None:
                progress(len(offsets) - 1, len(captions))
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    about = {"encoder": name, "width": reader.width, "captions": captions}
    (folder / "captions.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
