"""Published checkpoints: where they are and what their files do not say of themselves."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sfumato.data.imagenet_classes import imagenet_class_names
from sfumato.errors import UserError
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.published import infer_llamagen_config, infer_var_config, load_llamagen, load_var
from sfumato.families.var.generator import VAR
from sfumato.settings import Inference

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published checkpoint: its files, and how to build the generator from their tensors."""

    repository: str
    """Hugging Face repository"""
    weights: str
    """file of the transformer there"""
    tokenizer: str
    """file of the tokenizer there"""
    depth: int
    """number of blocks, to see that a file is the one that was asked for"""
    num_heads: int
    """attention heads"""
    head_width: int = 64
    """width of a head; with the heads the width of the network, to see the same"""
    scales: tuple[int, ...]
    """side of each token map of a VAR; of a LlamaGen, its only one"""

    @property
    def is_var(self) -> bool:
        """Whether it is a VAR; a LlamaGen otherwise."""
        return len(self.scales) > 1

    @property
    def is_text(self) -> bool:
        """Whether it reads captions."""
        return self.weights.startswith("t2i")

    @property
    def inference(self) -> Inference:
        """Settings of published evaluations: VAR's README for its FIDs, LlamaGen's README and `sample_t2i_ddp.py`."""
        if self.is_var:
            return Inference(guidance=1.5, top_k=900, top_p=0.96)
        return Inference(guidance=7.5, top_k=1000) if self.is_text else Inference(guidance=2.0)

    def build(self, name: str, weights: StateDict, tokenizer: StateDict) -> VAR | LlamaGen:
        """The generator.

        Raises:
            UserError: the tensors are not those of this release.
        """
        infer = infer_var_config if self.is_var else infer_llamagen_config
        found = infer(weights, num_heads=1)
        width = self.num_heads * self.head_width
        if (found.depth, found.width) != (self.depth, width):
            raise UserError(
                f"weights: the file holds a model of depth {found.depth} and width {found.width}, {name} has "
                f"{self.depth} and {width}; give {self.weights}"
            )
        names = None if self.is_text else imagenet_class_names()
        if self.is_var:
            generator = load_var(
                weights, tokenizer, patch_nums=self.scales, num_heads=self.num_heads, class_names=names
            )
        else:
            if (found.num_classes == 0) != self.is_text:
                kind = "class" if found.num_classes else "text"
                raise UserError(f"weights: the file holds a {kind}-conditional model; give {self.weights}")
            generator = load_llamagen(
                weights, tokenizer, num_heads=self.num_heads, grid_size=self.scales[0], class_names=names
            )
        generator.inference = self.inference
        return generator


_SCALES_256, _SCALES_512 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
_VAR = {
    f"var-d{depth}": Release(
        repository="FoundationVision/var",
        weights=f"var_d{depth}.pth",
        tokenizer="vae_ch160v4096z32.pth",
        depth=depth,
        num_heads=depth,
        scales=_SCALES_512 if depth == 36 else _SCALES_256,
    )
    for depth in (16, 20, 24, 30, 36)
}
# The authors published XL, XXL and 3B at 384 pixels alone; the others' names are for weights of one's own.
_LLAMAGEN_SIZES = {"B": (12, 12), "L": (24, 16), "XL": (36, 20), "XXL": (48, 24), "3B": (24, 32)}  # depth, heads
_LLAMAGEN = {
    f"llamagen-{size.lower()}-{pixels}": Release(
        repository="FoundationVision/LlamaGen",
        weights=f"c2i_{size}_{pixels}.pt",
        tokenizer="vq_ds16_c2i.pt",
        depth=depth,
        num_heads=heads,
        head_width=100 if size == "3B" else 64,
        scales=(pixels // 16,),
    )
    for size, (depth, heads) in _LLAMAGEN_SIZES.items()
    for pixels in (256, 384)
}
_LLAMAGEN_TEXT = {
    name: Release(
        repository="peizesun/llamagen_t2i",
        weights=weights,
        tokenizer="vq_ds16_t2i.pt",
        depth=36,
        num_heads=20,
        scales=(pixels // 16,),
    )
    for name, weights, pixels in (
        ("llamagen-xl-t2i", "t2i_XL_stage1_256.pt", 256),
        ("llamagen-xl-t2i-512", "t2i_XL_stage2_512.pt", 512),
    )
}
RELEASES: dict[str, Release] = {**_VAR, **_LLAMAGEN, **_LLAMAGEN_TEXT}
"""Published checkpoints by name."""
