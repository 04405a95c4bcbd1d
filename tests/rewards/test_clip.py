"""CLIP and the rewards based on it: small random models in the format of the released ones, compared with transformers'
own processor on photographs."""

from pathlib import Path

import pytest
import torch
from errors import bad_input
from photographs import as_tensor
from PIL import Image
from tiny import tiny_request

from sfumato.data.preprocessing import pad_square
from sfumato.request import Words
from sfumato.rewards import build_reward
from sfumato.rewards.aesthetic import WIDTHS
from sfumato.rewards.backbone import load_clip
from sfumato.rewards.hps import clean

transformers = pytest.importorskip("transformers")

TEXTS = ("a painting", "a photo of a cat", "a photo of an astronaut with a very long caption")
WORDS = Words(labels=torch.arange(3), names=("a", "b", "c"), captions=TEXTS)
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def reference_cosine(folder: Path, picture: Image.Image, text: str) -> float:
    """Compute the cosine as documented by transformers, one image at a time."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer([text], padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**tokens, **processor(images=picture, return_tensors="pt"))
    return (outputs.image_embeds @ outputs.text_embeds.T).item()


def test_cosine_of_photographs_as_transformers(clip_folder: Path, photographs: list[Image.Image]):
    reward = build_reward({f"clip?model={clip_folder}": 1.0, f"clip?model={clip_folder}&prompt=a painting": 1.0})
    found = []
    for n, picture in enumerate(photographs):
        own, fixed = reward(as_tensor(picture), WORDS[n : n + 1])[1].values()
        found.append(own.item())
        assert own.item() == pytest.approx(reference_cosine(clip_folder, picture, TEXTS[n]), abs=1e-3)
        assert fixed.item() == pytest.approx(reference_cosine(clip_folder, picture, "a painting"), abs=1e-3)
    assert max(found) - min(found) > 0.02


def test_a_batch_scores_as_its_images_alone(clip_folder: Path):
    reward = build_reward({f"clip?model={clip_folder}": 1.0})
    together = reward(IMAGES, WORDS)[0]
    alone = torch.cat([reward(IMAGES[n : n + 1], WORDS[n : n + 1])[0] for n in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_backbone_runs_once_a_batch(clip_folder: Path, aesthetic_head: Path):
    name = f"clip?model={clip_folder}"
    reward = build_reward(
        {
            name: 1.0,
            f"{name}&levels=0.5,1,1.5&thresholds=0,0.1": 1.0,
            f"{name}&prompt=a painting": 1.0,
            f"aesthetic?model={clip_folder}&head={aesthetic_head}": 1.0,
        }
    )
    calls = []
    vision = load_clip(str(clip_folder)).model.vision_model
    handle = vision.register_forward_hook(lambda module, inputs, output: calls.append(len(output.pooler_output)))
    first, images = reward(IMAGES, WORDS)[0], IMAGES.clone()
    reward(images, WORDS)
    assert calls == [3, 3]
    images.mul_(0.5)  # the same tensor with other values
    assert not torch.equal(reward(images, WORDS)[0], first)
    handle.remove()
    assert calls == [3, 3, 3]


@pytest.fixture(scope="module")
def aesthetic_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the weight names of sac+logos+ava1-l14-linearMSE.pth."""
    path, before = tmp_path_factory.mktemp("aesthetic") / "head.pth", 48
    tensors, rng = {}, torch.Generator().manual_seed(3)
    for number, width in zip((0, 2, 4, 6, 7), WIDTHS, strict=True):
        tensors[f"layers.{number}.weight"] = torch.randn(width, before, generator=rng) / before**0.5
        tensors[f"layers.{number}.bias"] = torch.randn(width, generator=rng)
        before = width
    torch.save(tensors, path)
    return path


def test_aesthetic_by_hand(clip_folder: Path, aesthetic_head: Path):
    scores = build_reward({f"aesthetic?model={clip_folder}&head={aesthetic_head}": 1.0})(IMAGES, WORDS)[0]
    hidden = load_clip(str(clip_folder)).image_embeddings(IMAGES)
    tensors = torch.load(aesthetic_head, weights_only=True)
    for number in (0, 2, 4, 6, 7):
        hidden = hidden @ tensors[f"layers.{number}.weight"].T + tensors[f"layers.{number}.bias"]
    torch.testing.assert_close(scores, hidden[:, 0], rtol=0, atol=1e-5)
    assert scores.std() > 1e-3


def to_open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return transformers' weights with open_clip's names, mapped one by one."""
    blocks = {}
    for ours, theirs in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        for layer in (0, 1):
            source, target = f"{ours}.encoder.layers.{layer}", f"{theirs}.resblocks.{layer}"
            for end in ("weight", "bias"):
                blocks[f"{target}.attn.in_proj_{end}"] = torch.cat(
                    [tensors[f"{source}.self_attn.{kind}_proj.{end}"] for kind in "qkv"]
                )
                blocks[f"{target}.attn.out_proj.{end}"] = tensors[f"{source}.self_attn.out_proj.{end}"]
                blocks[f"{target}.mlp.c_fc.{end}"] = tensors[f"{source}.mlp.fc1.{end}"]
                blocks[f"{target}.mlp.c_proj.{end}"] = tensors[f"{source}.mlp.fc2.{end}"]
                blocks[f"{target}.ln_1.{end}"] = tensors[f"{source}.layer_norm1.{end}"]
                blocks[f"{target}.ln_2.{end}"] = tensors[f"{source}.layer_norm2.{end}"]
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for target, source in norms.items():
        blocks |= {f"{target}.{end}": tensors[f"{source}.{end}"] for end in ("weight", "bias")}
    return blocks | {
        "visual.class_embedding": tensors["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": tensors["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": tensors["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": tensors["visual_projection.weight"].T,
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "text_projection": tensors["text_projection.weight"].T,
        "logit_scale": tensors["logit_scale"],
    }


def test_hps_reads_open_clips_names(clip_folder: Path, tmp_path: Path):
    weights = tmp_path / "hps.pt"
    torch.save({"state_dict": to_open_clip(transformers.CLIPModel.from_pretrained(clip_folder).state_dict())}, weights)
    reward = build_reward({f"hps?weights={weights}&base={clip_folder}": 1.0, f"clip?model={clip_folder}": 1.0})
    images = IMAGES.repeat_interleave(7, 2).repeat_interleave(
        7, 3
    )  # they have the model's size, so neither reward resizes them
    hps, clip = reward(images, WORDS)[1].values()
    torch.testing.assert_close(hps, clip, rtol=0, atol=1e-6)
    torch.save({"state_dict": {"logit_scale": torch.ones(())}}, tmp_path / "other.pt")
    with bad_input("reward", "weights: ", "other.pt", "Missing key"):
        build_reward({f"hps?weights={tmp_path}/other.pt&base={clip_folder}": 1.0})


@pytest.mark.parametrize(("height", "width", "bars"), [(32, 16, (0, 2)), (16, 32, (2, 0)), (24, 24, (0, 0))])
def test_hps_sees_the_whole_image(height: int, width: int, bars: tuple[int, int]):
    """Images are padded with black bars, as in the published processor, and are otherwise unchanged."""
    square = pad_square(torch.full((1, 3, height, width), 0.6), 8)
    assert square.shape == (1, 3, 8, 8)
    top, left = bars
    inside = square[..., top : 8 - top, left : 8 - left]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.6), rtol=0, atol=1e-6)
    assert (square > 0).sum() == inside.numel()


def test_pickscore_is_the_scaled_cosine(clip_folder: Path):
    names = (f"pickscore?model={clip_folder}&tokenizer={clip_folder}", f"clip?model={clip_folder}")
    pick, clip = build_reward(dict.fromkeys(names, 1.0))(IMAGES, WORDS)[1].values()
    torch.testing.assert_close(pick, clip / 0.07, rtol=1e-4, atol=0)  # CLIP starts at a temperature of 0.07


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("clip?model=/nowhere", ["'clip?model=/nowhere': model /nowhere "]),
        ("clip?model=nobody/nothing", ["model nobody/nothing "]),
        ("aesthetic?model={clip}&head=/no.pth", [" /no.pth ", "owner/repository/file"]),
        ("aesthetic?model={clip}&head=a/b/no.pth", [" a/b/no.pth "]),
        ("aesthetic?model={clip}&head={other}", ["head: ", "layers.0.weight"]),
        ("aesthetic?model={clip}&head={garbage}", ["garbage.pth "]),
        ("clip?modell=x", ["'modell'", "did you mean model"]),
    ],
)
def test_errors(clip_folder: Path, tmp_path: Path, name: str, pieces: list[str]):
    torch.save({"x": torch.ones(1)}, tmp_path / "other.pth")
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    with bad_input("reward", *pieces):
        build_reward(
            {name.format(clip=clip_folder, other=tmp_path / "other.pth", garbage=tmp_path / "garbage.pth"): 1.0}
        )


def test_missing_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    load_clip.cache_clear()
    with bad_input("reward", "transformers", "pip install 'sfumato[clip]'"):
        build_reward({"clip": 1.0})


def test_captions_are_encoded_once(clip_folder: Path):
    clip = load_clip(str(clip_folder))
    first = clip.text_embeddings(["one", "two", "one"], torch.device("cpu"))
    calls = []
    handle = clip.model.text_model.register_forward_hook(lambda *args: calls.append(1))
    again = clip.text_embeddings(["two", "one"], torch.device("cpu"))
    handle.remove()
    assert not calls
    assert torch.equal(again, first[[1, 0]])
    assert tiny_request([0]).words.captions == ("ant",)


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A “red” cat’s  \n hat ", 'a "red" cat\'s hat'),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("&lt;b&gt; a ﬂower", "<b> a flower"),
        ("cafÃ©", "café"),
    ],
)
def test_captions_of_hps_are_cleaned_as_by_open_clip(caption: str, cleaned: str):
    pytest.importorskip("ftfy")
    assert clean(caption) == cleaned


def test_hps_reads_cleaned_captions(monkeypatch: pytest.MonkeyPatch):
    read: list[list[str]] = []

    class Reading:
        def cosines(self, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
            read.append(captions)
            return torch.zeros(len(images))

    pytest.importorskip("ftfy")
    monkeypatch.setattr("sfumato.rewards.hps.load_hps", lambda weights, base: Reading())
    words = Words(labels=torch.zeros(1, dtype=torch.long), names=("x",), captions=("A “cat” &amp; dog",))
    build_reward({"hps": 1.0})(IMAGES[:1], words)
    assert read == [['a "cat" & dog']]
