"""Details of the multi-scale tokenizer that the golden models do not cover."""

import json

import pytest
import torch
from errors import bad_input
from golden_data import GOLDEN, golden_var
from tiny import tiny_var

from sfumato.families.vqvae import phi_assignment

PHI = json.loads((GOLDEN / "manifests/var_phi_index.json").read_text())
PHI_CASES = [
    (int(convolutions), int(scales), index)
    for convolutions, table in PHI.items()
    for scales, index in table["phi_index_by_number_of_scales"].items()
]


@pytest.mark.parametrize(("convolutions", "scales", "index"), PHI_CASES)
def test_phi_assignment(convolutions: int, scales: int, index: list[int]):
    assert phi_assignment(convolutions, scales) == tuple(index)


def test_nearest_code_is_the_euclidean_one():
    quantizer = tiny_var().tokenizer.quantizer
    vectors = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    distances = (vectors[:, None] - quantizer.codebook.weight).norm(dim=-1)
    assert torch.equal(quantizer.nearest(vectors), distances.argmin(1))
    assert torch.equal(quantizer.nearest(quantizer.codebook.weight), torch.arange(16))


def test_embed_takes_tokens_or_distributions():
    quantizer = tiny_var().tokenizer.quantizer
    tokens = torch.tensor([[3, 0, 15, 7]])
    one_hot = torch.nn.functional.one_hot(tokens, 16).float()
    torch.testing.assert_close(quantizer.embed(one_hot), quantizer.embed(tokens), rtol=0, atol=0)
    halves = 0.5 * one_hot + 0.5 * one_hot.flip(1)
    mean = 0.5 * (quantizer.embed(tokens) + quantizer.embed(tokens.flip(1)))
    torch.testing.assert_close(quantizer.embed(halves), mean, rtol=0, atol=1e-6)


def test_the_rest_shrinks_to_what_is_left_over():
    generator = golden_var("a")
    features = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    quantizer = generator.tokenizer.quantizer
    tokens, accumulated, vectors = quantizer.quantize(features)
    assert [len(v) for v in vectors] == [2 * unit for unit in generator.units]
    # The last scale quantizes the features minus the contributions of the previous scales.
    rest = (features - accumulated[-2]).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(vectors[-1], rest, rtol=0, atol=1e-5)
    assert torch.equal(quantizer.nearest(rest).unflatten(0, (2, -1)), tokens[-1])


def test_encode_wants_the_tokenizers_size():
    generator = tiny_var()
    assert generator.encode(torch.rand(2, 3, 8, 8)).shape == (2, 5)
    with bad_input("images", "(2, 3, 16, 16)", "8"):
        generator.encode(torch.rand(2, 3, 16, 16))
