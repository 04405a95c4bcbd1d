"""The autoencoder of the tokenizers: attention, normalization, and slices of a batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import TOKENIZER, tiny_llamagen, tiny_var
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato.engine.fake_cuda import fake_cuda
from sfumato.families.vq import VQConfig
from sfumato.families.vqvae import VQVAEConfig
from sfumato.nn import autoencoder
from sfumato.nn.autoencoder import (
    AttentionBlock,
    Decoder,
    Encoder,
    Level,
    ResBlock,
    arrange,
    images_at_once,
    normalize_groups,
)


def test_attention_is_the_plain_formula():
    torch.manual_seed(0)
    block, x = AttentionBlock(12, norm_groups=3), torch.randn(2, 12, 3, 5)
    with torch.no_grad():
        query, key, value = block.qkv(block.norm(x)).double().flatten(2).transpose(1, 2).split(12, dim=2)
        shares = (query @ key.transpose(1, 2) * 12**-0.5).softmax(-1)
        mixed = (shares @ value).transpose(1, 2).unflatten(2, (3, 5)).float()
        torch.testing.assert_close(block(x), x + block.proj(mixed), rtol=0, atol=1e-6)


def test_normalization_keeps_the_type():
    torch.manual_seed(0)
    norm, x = nn.GroupNorm(4, 8, eps=1e-6), torch.randn(3, 8, 5, 5) * 3 + 2
    nn.init.normal_(norm.weight)
    assert torch.equal(normalize_groups(norm, x), norm(x))
    rounded = normalize_groups(norm, x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), norm(x), rtol=1e-2, atol=2e-2)
    with fake_cuda() as device, torch.autocast("cuda", torch.bfloat16):
        norm.to(device)
        assert norm(x.to(device)).dtype == torch.float32
        assert normalize_groups(norm, x.to(device, torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("multipliers", [(1, 1), (1, 1, 2), (1, 4), (1, 5, 1), (3, 1)])
@pytest.mark.parametrize("patch", [1, 2])
def test_slices_follow_the_largest_feature_map(
    multipliers: tuple[int, ...], patch: int, monkeypatch: pytest.MonkeyPatch
):
    shape = replace(TOKENIZER, channel_multipliers=multipliers, patch=patch)
    pixels = 16 * 16
    images = torch.zeros(1, 3, 16, 16)
    encoder, decoder = Encoder(shape), Decoder(shape)
    sizes: list[int] = []
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, Level | ResBlock):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(4 * output.numel()))
    with torch.no_grad():
        decoder(encoder(images))
    monkeypatch.setattr(autoencoder, "SLICE_BYTES", 5 * max(sizes))
    assert images_at_once(shape, pixels) == 5
    monkeypatch.setattr(autoencoder, "SLICE_BYTES", 5 * max(sizes) - 1)
    assert images_at_once(shape, pixels) == 4
    monkeypatch.setattr(autoencoder, "SLICE_BYTES", 1)
    assert images_at_once(shape, pixels) == 1


def test_slices_of_released_tokenizers():
    assert images_at_once(VQVAEConfig(), 256 * 256) == 12
    assert images_at_once(VQConfig(), 384 * 384) == 7


@pytest.mark.parametrize("build", [tiny_var, tiny_llamagen])
def test_slices_change_nothing(build, monkeypatch: pytest.MonkeyPatch):
    generator = build()
    tokens = torch.randint(16, (5, sum(generator.units)), generator=torch.Generator().manual_seed(0))
    images = generator.decode(tokens)
    found = generator.encode(images)
    seen: dict[str, list[int]] = {"decoder": [], "encoder": []}
    for name, batches in seen.items():
        part = generator.tokenizer.get_submodule(name)
        part.register_forward_hook(lambda module, inputs, output, batches=batches: batches.append(len(inputs[0])))
    side = generator.tokenizer.config.image_size
    monkeypatch.setattr(
        autoencoder, "SLICE_BYTES", 2 * 4 * 8 * (side // 2) ** 2
    )  # two images: 8 channels, patches of 2
    torch.testing.assert_close(generator.decode(tokens), images, rtol=0, atol=4e-6)
    assert torch.equal(generator.encode(images), found)
    assert seen == {"decoder": [2, 2, 1], "encoder": [2, 2, 1]}


def test_images_are_float32_under_autocast():
    generator = tiny_var()
    tokens = torch.randint(16, (4, 5), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        images = generator.decode(tokens)
    assert images.dtype == torch.float32
    assert 0 < (images - generator.decode(tokens)).abs().max() < 0.05


class Attentions(TorchDispatchMode):
    """Notes the kernel of every attention and the type that it reads."""

    def __init__(self):
        super().__init__()
        self.seen: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in str(func) or "bmm" in str(func):
            self.seen.add((str(func), args[0].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_fused_on_a_gpu(dtype: torch.dtype):
    """No matrix of scores is kept, although a head has 640 channels."""
    with fake_cuda() as device, torch.no_grad():
        decoder, x = Decoder(VQVAEConfig()).to(device), torch.zeros(2, 32, 16, 16, device=device)
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16), Attentions() as attentions:
            assert decoder(x).shape == (2, 3, 256, 256)
    assert attentions.seen == {("aten._scaled_dot_product_efficient_attention.default", dtype)}


def is_arranged(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def test_all_convolutions_read_channels_last_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    with fake_cuda() as device:
        assert is_arranged(arrange(torch.zeros(2, 3, 4, 4, device=device)))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert arrange(x) is x
    # A fake GPU does not model the layout of convolutions; on the CPU, they keep it as on a GPU.
    torch.manual_seed(0)
    shape = replace(TOKENIZER, patch=1)
    encoder, decoder = Encoder(shape), Decoder(shape)
    layouts: list[bool] = []
    with torch.no_grad():
        features = encoder(x)
        images = decoder(features)
        for module in (*encoder.modules(), *decoder.modules()):
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(lambda module, inputs: layouts.append(is_arranged(inputs[0])))
        monkeypatch.setattr(autoencoder, "arrange", lambda x: x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(encoder(x), features, rtol=0, atol=1e-5)
        torch.testing.assert_close(decoder(features), images, rtol=0, atol=1e-5)
    assert all(layouts)
