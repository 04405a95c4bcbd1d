"""LlamaGen's tokenizer: parity with the published code, and the meaning of its codes."""

import pytest
import torch
import torch.nn.functional as F
from errors import bad_input
from golden_data import LLAMAGEN_META, golden_llamagen, llamagen_outputs, llamagen_weights, vq_weights
from tiny import VQ_TOKENIZER, tiny_llamagen
from torch import Tensor

from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.published import read_llamagen
from sfumato.families.vq import VQConfig, VQModel

ATOL = 2e-4
SIDES = {"vq16": 4, "vq8like": 6}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL)


def golden_tokenizer(variant: str) -> LlamaGen:
    """Return a generator with this variant's tokenizer; its transformer does not matter."""
    return read_llamagen(llamagen_weights("c2i"), vq_weights(variant), num_heads=4, grid_size=SIDES[variant]).eval()


def as_map(codes: Tensor) -> Tensor:
    side = round(codes.shape[1] ** 0.5)
    return codes.transpose(1, 2).unflatten(2, (side, side))


@pytest.mark.parametrize("variant", SIDES)
@torch.no_grad()
def test_parity(variant: str):
    golden, generator = llamagen_outputs(variant), golden_tokenizer(variant)
    tokenizer, shape, meta = generator.tokenizer, generator.tokenizer.config, LLAMAGEN_META["vq"][variant]
    assert (shape.base_channels, shape.channel_multipliers) == (meta["ch"], tuple(meta["ch_mult"]))
    assert (shape.vocab_size, shape.code_width) == (meta["codebook_size"], meta["codebook_embed_dim"])
    assert (shape.latent_channels, shape.num_res_blocks) == (meta["z_channels"], meta["num_res_blocks"])
    assert shape.image_size == meta["image_size"]
    images = (golden["images"] + 1) / 2
    raw = tokenizer.pre_conv(tokenizer.encoder(golden["images"]))
    close(raw, golden["pre_quant"])
    close(tokenizer.features(images), F.normalize(golden["pre_quant"], dim=1))
    assert torch.equal(generator.encode(images), golden["idx"])
    (tokens,), (quantized,), (vectors,) = tokenizer.quantizer.quantize(tokenizer.features(images))
    assert torch.equal(tokens, golden["idx"])
    close(quantized, golden["quantized"])
    close(vectors.norm(dim=-1), torch.ones(len(vectors)))
    for tokens, decoded in ((golden["idx"], "decoded_image"), (golden["random_codes"], "random_codes_image")):
        # The published decoder does not clamp its output; images are clamped.
        close(tokenizer.decode_features(as_map(tokenizer.quantizer.embed(tokens))), golden[decoded])
        close(generator.decode(tokens), (golden[decoded].clamp(-1, 1) + 1) / 2)
        assert golden[decoded].abs().max() > 1


@torch.no_grad()
def test_codes_are_normalised_when_used():
    quantizer = golden_llamagen("c2i").tokenizer.quantizer
    lengths = quantizer.codebook.weight.norm(dim=-1)
    assert (lengths - 1).abs().max() > 0.1
    tokens = torch.arange(64)[None]
    close(quantizer.embed(tokens)[0] * lengths[:, None], quantizer.codebook.weight)
    close(quantizer.codes(), quantizer.embed(tokens)[0])


@torch.no_grad()
def test_nearest_code_is_that_of_the_smallest_angle():
    quantizer = golden_llamagen("c2i").tokenizer.quantizer
    vectors = F.normalize(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    distances = (vectors[:, None] - F.normalize(quantizer.codebook.weight, dim=-1)).norm(dim=-1)
    assert torch.equal(quantizer.nearest(vectors), distances.argmin(1))
    assert torch.equal(quantizer.nearest(quantizer.codes()), torch.arange(64))


@torch.no_grad()
def test_tokens_run_row_by_row():
    tokenizer = tiny_llamagen().tokenizer
    tokens = torch.arange(9)[None]
    (read,), (quantized,), (vectors,) = tokenizer.quantizer.quantize(as_map(tokenizer.quantizer.embed(tokens)))
    assert torch.equal(read, tokens)
    close(quantized[0, :, 1, 2], tokenizer.quantizer.embed(tokens)[0, 5])
    close(vectors[5], tokenizer.quantizer.embed(tokens)[0, 5])


def test_sizes():
    assert (VQConfig().downsampling, VQConfig().image_size) == (16, 256)
    assert VQConfig(grid_size=24).image_size == 384
    assert VQConfig(channel_multipliers=(1, 2, 2, 4)).downsampling == 8
    assert (VQ_TOKENIZER.downsampling, VQ_TOKENIZER.image_size) == (4, 12)
    with torch.no_grad():
        features = VQModel(VQ_TOKENIZER).features(torch.rand(2, 3, 12, 12))
    assert features.shape == (2, 4, 3, 3)
    close(features.norm(dim=1), torch.ones(2, 3, 3))


def test_encode_wants_the_tokenizers_size():
    generator = tiny_llamagen()
    assert generator.encode(torch.rand(2, 3, 12, 12)).shape == (2, 9)
    with bad_input("images", "(2, 3, 8, 8)", "12"):
        generator.encode(torch.rand(2, 3, 8, 8))
