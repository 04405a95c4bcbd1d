"""Read the weights of NVIDIA's Cosmos tokenizer: a network for video becomes one for images.

Linear layers in sequence are multiplied out, and kernels over time are summed: they only see one frame, repeated.
"""

from itertools import product

import torch
from torch import Tensor

from sfumato.families.published import StateDict, count_of, load_strictly, shape_of
from sfumato.families.simplear.tokenizer import CosmosConfig, CosmosTokenizer

_BUFFERS = ("wavelets", "_arange", "patch_size_buffer", "_levels", "_basis", "implicit_codebook")
"""What a traced file also has: numbers that are not weights."""
Affine = tuple[Tensor, Tensor]
"""Kernel and bias of a convolution."""


def infer_cosmos_config(state_dict: StateDict, *, grid_size: int, levels: tuple[int, ...]) -> CosmosConfig:
    """Infer the shape of the tokenizer from a state dict with published names."""
    base, channels = shape_of(state_dict, "encoder.conv_in.0.conv3d.weight", "tokenizer")[:2]
    count = count_of(state_dict, r"encoder\.down\.(\d+)\.")
    widths = [
        shape_of(state_dict, f"encoder.down.{i}.block.0.conv1.0.conv3d.weight", "tokenizer")[0] for i in range(count)
    ]
    return CosmosConfig(
        grid_size=grid_size,
        levels=levels,
        latent_channels=shape_of(state_dict, "encoder.conv_out.0.conv3d.weight", "tokenizer")[0],
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        num_res_blocks=count_of(state_dict, r"encoder\.down\.0\.block\.(\d+)\."),
        patch=round((channels // 3) ** (1 / 3)),
    )


def load_cosmos(tokenizer: CosmosTokenizer, state_dict: StateDict) -> None:
    """Load a state dict with published names; names must match exactly.

    Raises:
        UserError: names or shapes differ.
    """
    weights = {name: tensor for name, tensor in state_dict.items() if not name.endswith(_BUFFERS)}
    source = _Source(weights)
    tensors = _tensors(source, tokenizer.config)
    left = {name: tensor for name, tensor in weights.items() if name not in source.read}
    load_strictly(tokenizer, {**tensors, **left}, lambda name: (name,), "tokenizer")


class _Source:
    """Published tensors, and which of them have been read."""

    def __init__(self, tensors: StateDict):
        self.tensors, self.read = tensors, set()

    def __contains__(self, name: str) -> bool:
        return f"{name}.conv3d.weight" in self.tensors

    def take(self, name: str) -> Tensor:
        shape_of(self.tensors, name, "tokenizer")
        self.read.add(name)
        return self.tensors[name].detach().float()

    def conv(self, name: str) -> Affine:
        """Return a convolution over one frame: its kernel, summed over time, and bias."""
        return self.take(f"{name}.conv3d.weight").sum(2), self.take(f"{name}.conv3d.bias")

    def pair(self, name: str) -> Affine:
        """Return a convolution over space that is followed by one over time."""
        return after(self.conv(f"{name}.1"), self.conv(f"{name}.0"))

    def norm(self, name: str, ours: str) -> dict[str, Tensor]:
        return {f"{ours}.{kind}": self.take(f"{name}.norm.{kind}") for kind in ("weight", "bias")}


def after(second: Affine, first: Affine) -> Affine:
    """Return the convolution that equals a first one followed by a 1×1 one."""
    weight, bias = second[0].flatten(1), second[1]
    return torch.einsum("om,mihw->oihw", weight, first[0]), weight @ first[1] + bias


def plus_input(conv: Affine, kernel: Tensor) -> Affine:
    """Return a convolution plus a kernel (h, w) that treats each channel alike."""
    eye = torch.eye(conv[0].shape[0], device=conv[0].device)
    return conv[0] + eye[:, :, None, None] * kernel.to(eye.device), conv[1]


ONE = torch.ones(1, 1)
CENTER = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
MEAN = torch.tensor([[0.25, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0]])


def haar(patch: int) -> Tensor:
    """Return the signs (patch², patch³) of the Haar transform over frames, rows and columns: for each position of the
    last frame of a patch, those of the coefficients. Coefficients that change over time come second in each pair."""
    levels = patch.bit_length() - 1
    rows = []
    for y, x in product(range(patch), repeat=2):
        signs = torch.ones(1)
        for level in range(levels):  # from fine to coarse; a coarser one has more significant numbers
            bits = (1, y >> level & 1, x >> level & 1)
            band = torch.tensor([(-1.0) ** sum(b * h for b, h in zip(bits, highs, strict=True)) for highs in _BANDS])
            signs = torch.outer(band, signs).flatten()
        rows.append(signs)
    return torch.stack(rows)


_BANDS = list(product((0, 1), repeat=3))
"""Whether a coefficient is high over time, rows and columns, in the published order."""


def _tensors(source: _Source, config: CosmosConfig) -> dict[str, Tensor]:
    """Return all tensors of our tokenizer."""
    result: dict[str, Tensor] = {}
    count, last = config.num_res_blocks, len(config.channel_multipliers) - 1

    def put(ours: str, conv: Affine) -> None:
        result[f"{ours}.weight"], result[f"{ours}.bias"] = conv

    def block(name: str, ours: str) -> None:
        for i in (1, 2):
            put(f"{ours}.conv{i}", source.pair(f"{name}.conv{i}"))
            result.update(source.norm(f"{name}.norm{i}", f"{ours}.norm{i}"))
        if f"{name}.nin_shortcut" in source:
            put(f"{ours}.shortcut", source.conv(f"{name}.nin_shortcut"))

    for part, ours in (("encoder", "encoder"), ("decoder", "decoder")):
        block(f"{part}.mid.block_1", f"{ours}.middle.block1")
        block(f"{part}.mid.block_2", f"{ours}.middle.block2")
        space, time, attention = f"{part}.mid.attn_1.0", f"{part}.mid.attn_1.1", f"{ours}.middle.attention"
        result |= source.norm(f"{space}.norm", f"{attention}.0.norm")
        parts = [source.conv(f"{space}.{name}") for name in "qkv"]
        put(f"{attention}.0.qkv", (torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts])))
        put(f"{attention}.0.proj", source.conv(f"{space}.proj_out"))
        result |= source.norm(f"{time}.norm", f"{attention}.1.norm")
        put(f"{attention}.1.conv", after(source.conv(f"{time}.proj_out"), source.conv(f"{time}.v")))
        for name in "qk":  # with a single frame, attention over time needs neither
            source.conv(f"{time}.{name}")
        result |= source.norm(f"{part}.norm_out", f"{ours}.norm_out")
    for level in range(last + 1):
        for i in range(count):
            block(f"encoder.down.{level}.block.{i}", f"encoder.levels.{level}.blocks.{i}")
        place = last - level  # our decoder counts its levels from coarse to fine
        for i in range(count + 1):
            block(f"decoder.up.{level}.block.{i}", f"decoder.levels.{place}.blocks.{i}")
        if level < last:
            name = f"encoder.down.{level}.downsample"
            conv, frames = plus_input(source.conv(f"{name}.conv1"), MEAN), source.conv(f"{name}.conv2")
            if level == 0:  # of the published steps, the first halves the frames too
                conv = after(plus_input(frames, ONE), conv)
            put(f"encoder.levels.{level}.resample.conv", after(source.conv(f"{name}.conv3"), conv))
        if level > 0:
            name, ours = f"decoder.up.{level}.upsample", f"decoder.levels.{place}.resample"
            frames = source.conv(f"{name}.conv1")
            if level < last:
                put(f"{ours}.0", plus_input(frames, ONE))
                ours += ".1"
            enlarged = plus_input(source.conv(f"{name}.conv2"), CENTER)
            put(f"{ours}.conv", after(source.conv(f"{name}.conv3"), enlarged))
    put("encoder.conv_out", source.pair("encoder.conv_out"))
    put("decoder.conv_in", source.pair("decoder.conv_in"))
    put("pre_conv", source.conv("quant_conv"))
    put("post_conv", source.conv("post_quant_conv"))
    signs, area = haar(config.patch), config.patch**2
    still = _still(config.patch)
    weight, bias = source.pair("encoder.conv_in")
    bands = weight.unflatten(1, (-1, 3))  # (C, bands, colors, 3, 3)
    analysis = (signs * still / area).to(weight.device)
    put("encoder.conv_in", (torch.einsum("obchw,pb->ocphw", bands, analysis).flatten(1, 2), bias))
    weight, bias = source.pair("decoder.conv_out")
    signs = signs.to(weight.device)
    kernels = torch.einsum("bcihw,pb->cpihw", weight.unflatten(0, (-1, 3)), signs).flatten(0, 1)
    put("decoder.conv_out", (kernels, torch.einsum("bc,pb->cp", bias.unflatten(0, (-1, 3)), signs).flatten()))
    return result


def _still(patch: int) -> Tensor:
    """Return 1 for the coefficients (patch³) of the Haar transform that a repeated frame has, and 0 for the others."""
    still = torch.ones(1)
    for _ in range(patch.bit_length() - 1):
        still = torch.outer(torch.tensor([float(not high) for high, *_ in _BANDS]), still).flatten()
    return still
