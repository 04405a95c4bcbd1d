"""Shapes of the releases: what `build` makes from them has the tensors of the published files.

Those of SimpleAR are in `test_simplear.py`: loading compares values of its tokenizer, so tensors need memory.
"""

import json

import pytest
import torch
from golden_data import GOLDEN

from sfumato.families import releases
from sfumato.families.library import build_release


def manifests(name: str) -> tuple[str, str]:
    """Return the names of the manifests of a release's network and tokenizer."""
    if name.startswith("var"):
        return f"var_{name[4:]}", "vae_ch160v4096z32" + ("_patchnums512" if name == "var-d36" else "")
    if name.startswith("switti"):
        pixels = name.rpartition("-")[2]
        return f"switti_{pixels}", f"switti_vqvae_{pixels}"
    if name.startswith("infinity"):
        name = "-".join(name.split("-")[:3])
        return {
            "infinity-125m-256": ("infinity_layer12_125M_d16", "infinity_vae_d16"),
            "infinity-2b-1024": ("infinity_2b_d32", "infinity_vae_d32"),
        }.get(name, ("infinity_8b_d56_patchify", "infinity_vae_d56_f8_14_patchify"))
    if name.startswith("janus"):
        file = name.removesuffix("-reasoning").replace("-", "_")
        return file, file  # one file has both
    if "t2i" in name:
        return f"llamagen_t2i_GPT-XL_{512 if name.endswith('512') else 256}", "llamagen_VQ-16"
    _, size, pixels = name.split("-")
    return f"llamagen_c2i_GPT-{size.upper()}_{pixels}", "llamagen_VQ-16"


def published(name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a manifest, without memory."""
    tensors = json.loads((GOLDEN / f"manifests/{name}.json").read_text())["state_dict"]
    return {k: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for k, (shape, kind) in tensors.items()}


def shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


RATIOS = ("infinity-125m-256-0.333", "infinity-2b-1024-0.75", "infinity-8b-512-1.5")
"""Some of the 56 releases for other aspect ratios."""
NAMES = [name for name, (_, release) in releases().items() if release.listed and not name.startswith("simplear")]


@pytest.mark.parametrize("name", [*NAMES, *RATIOS])
def test_shape_of_a_release(name: str):
    family, release = releases()[name]
    loaded = build_release(name, family, release, *map(published, manifests(name)))
    with torch.device("meta"):
        built = family.build(release.shape)
    assert shapes(built.network) == shapes(loaded.network)
    assert shapes(built.tokenizer) == shapes(loaded.tokenizer)
    assert built.units == loaded.units
    for part, described in family.describe(loaded).items():
        if part in release.shape:  # a class-conditional LlamaGen has no captions, whose maximum length is arbitrary
            differing = {k for k, v in described.items() if family.describe(built)[part][k] != v}
            assert differing <= {"num_caption_tokens", "num_kv_heads"}


def test_aspect_ratios_of_infinity():
    """Each model draws all 15 published aspect ratios: the same files, other maps."""
    infinity = {name: release for name, (_, release) in releases().items() if name.startswith("infinity-2b-1024")}
    assert len(infinity) == 15
    assert [name for name, release in infinity.items() if release.listed] == ["infinity-2b-1024"]
    wide, square = infinity["infinity-2b-1024-0.75"], infinity["infinity-2b-1024"]
    assert (wide.weights, wide.tokenizer, wide.facts) == (square.weights, square.tokenizer, square.facts)
    assert wide.needed["rotary_grid"] == wide.needed["scales"][-1] == (54, 72)  # 864 × 1152 pixels
    assert square.needed["rotary_grid"] == (64, 64)
    small = releases()["infinity-125m-256-0.75"][1].needed
    assert (len(small["scales"]), small["scales"][-1], small["rotary_grid"]) == (7, (15, 20), (54, 72))
