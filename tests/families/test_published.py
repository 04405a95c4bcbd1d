"""Build generators of all families from state dicts with published names."""

import pytest
import torch
from errors import bad_input
from golden_data import (
    META,
    VARIANTS,
    llamagen_outputs,
    llamagen_request,
    llamagen_weights,
    outputs,
    tokenizer_weights,
    transformer_weights,
    vq_weights,
)
from torch import Tensor

from sfumato.families import Family, load_published
from sfumato.families.library import FAMILIES
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.var.generator import VAR
from sfumato.policy import Card, Generator, Policy
from sfumato.settings import Settings
from sfumato.testing import class_request


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_var(variant: str):
    shape, golden = META["variants"][variant], outputs(variant)
    generator = load_published(
        "var",
        transformer_weights(variant),
        tokenizer_weights(),
        patch_nums=shape["patch_nums"],
        num_heads=shape["heads"],
    )
    assert isinstance(generator, VAR)
    assert isinstance(generator, Generator)
    assert not generator.training
    count = generator.config.num_classes
    assert generator.card == Card(family="var", class_names=tuple(map(str, range(count))))
    assert generator.units == tuple(side * side for side in shape["patch_nums"])
    logits = generator.logits(class_request(golden["labels"]), golden["idx"], Settings())
    close(logits, golden["logits"])


@pytest.mark.parametrize("variant", ["c2i", "c2i_gqa", "t2i"])
@torch.no_grad()
def test_llamagen(variant: str):
    golden = llamagen_outputs(variant)
    generator = load_published("llamagen", llamagen_weights(variant), vq_weights(), num_heads=4, grid_size=4)
    assert isinstance(generator, LlamaGen)
    assert isinstance(generator, Generator)
    assert not generator.training
    names = () if variant == "t2i" else tuple(map(str, range(10)))
    assert generator.card == Card(family="llamagen", class_names=names)
    logits = generator.logits(llamagen_request(variant), golden["tokens"], Settings())
    close(logits.log_softmax(-1).gather(-1, golden["tokens"][..., None])[..., 0], golden["token_logprobs"])


def test_names_of_classes():
    names = tuple(f"class {i}" for i in range(10))
    generator = load_published(
        "llamagen", llamagen_weights("c2i"), vq_weights(), num_heads=4, grid_size=4, class_names=names
    )
    assert generator.card.class_names == names
    with bad_input("class_names", "9", "10"):
        load_published(
            "llamagen", llamagen_weights("c2i"), vq_weights(), num_heads=4, grid_size=4, class_names=names[1:]
        )


def test_a_wrong_grid_is_refused_when_tokens_are_scored():
    # No weight of LlamaGen depends on the grid size.
    golden, request = llamagen_outputs("c2i"), llamagen_request("c2i")
    for given, side in ({"grid_size": 6}, 6), ({}, 16):
        generator = load_published("llamagen", llamagen_weights("c2i"), vq_weights(), num_heads=4, **given)
        assert len(generator.units) == side * side
        with bad_input("grid_size", f"{side}×{side}", "16"):
            generator.logits(request.inputs, golden["tokens"], Settings())
        with bad_input("grid_size", "16"):
            Policy(generator).log_probs(request, golden["tokens"])
        # Images reveal it as well.
        with bad_input("images", "64"):
            generator.encode(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("variant", ["c2i", "t2i"])
@torch.no_grad()
def test_a_rotary_table_tells_the_grid_and_the_heads(variant: str):
    golden = llamagen_outputs(variant)
    weights = {**llamagen_weights(variant), "freqs_cis": golden["freqs_cis"]}
    generator = load_published("llamagen", weights, vq_weights(), num_heads=4)
    assert len(generator.units) == 16
    logits = generator.logits(llamagen_request(variant).inputs, golden["tokens"], Settings())
    close(logits.log_softmax(-1).gather(-1, golden["tokens"][..., None])[..., 0], golden["token_logprobs"])
    with bad_input("grid_size", "6", "4×4"):
        load_published("llamagen", weights, vq_weights(), num_heads=4, grid_size=6)
    with bad_input("num_heads", "8", "4"):
        load_published("llamagen", weights, vq_weights(), num_heads=8)


def test_levels_that_contradict_the_scales():
    weights, tokenizer = transformer_weights("a"), tokenizer_weights()
    assert weights["lvl_1L"].flatten().bincount().tolist() == [1, 4, 9, 16]
    # The total number of tokens is the same, so all shapes fit.
    with bad_input("patch_nums", "(1, 3, 2, 4)", "(1, 2, 3, 4)"):
        load_published("var", weights, tokenizer, patch_nums=(1, 3, 2, 4), num_heads=2)


def test_what_is_no_published_family(monkeypatch: pytest.MonkeyPatch):
    with bad_input("model", "'vra'", "var, llamagen"):
        load_published("vra", {}, {})
    monkeypatch.setitem(FAMILIES, "own", Family(name="own", build=lambda shape: pytest.fail("not built")))
    with bad_input("family", "own"):
        load_published("own", {}, {})
