"""HPSv3 and the aesthetic predictor V2.5: small random models in the format of the released ones."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import bad_input
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.data.pictures import to_pictures
from sfumato.data.preprocessing import resize
from sfumato.request import Words
from sfumato.rewards import aesthetic_siglip, build_reward
from sfumato.rewards.hpsv3 import build_head, load, patches_of, sides

transformers = pytest.importorskip("transformers")
IMAGES = torch.rand(3, 3, 60, 90, generator=torch.Generator().manual_seed(0))
WORDS = Words(names=("ant", "bee cat", "cat ant bee <|Reward|> <|image_pad|> {x}"))
CHAT = (
    "{% for m in messages %}user {% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} assistant"
)
INSTRUCTION, ENDING = "rate {text_prompt} now", " score <|Reward|> END"


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resize to few pixels: 6 × 10 patches, so 15 tokens."""
    monkeypatch.setattr("sfumato.rewards.hpsv3.PIXELS", 12 * 28 * 28)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package hpsv3 that cannot be imported here."""
    (tmp_path / "hpsv3/dataset").mkdir(parents=True)
    (tmp_path / "hpsv3/__init__.py").write_text("import not_installed\n")
    file = tmp_path / "hpsv3/dataset/data_collator_qwen.py"
    file.write_text(f"import gone\nINSTRUCTION = {INSTRUCTION!r}\nprompt_with_special_token = {ENDING!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    load.cache_clear()
    return file


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any, nn.Module]:
    """A random Qwen2-VL's config and tokenizer, HPSv3's checkpoint for it, and the same networks."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("qwen")
    special = ["<pad>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    words = [*special, "<unk>", "user", "assistant", "rate", "now", "score", "END", "ant", "bee", "cat"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", chat_template=CHAT
    )
    fast.add_special_tokens({"additional_special_tokens": special[1:]})
    fast.save_pretrained(folder)
    text = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 40,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=3, video_token_id=4, vision_start_token_id=1,
        vision_end_token_id=2,
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Qwen2VLForConditionalGeneration(config)
        model.resize_token_embeddings(len(words) + 1, mean_resizing=False)
        head = build_head(32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    tensors = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in model.state_dict().items()
    }
    tensors |= {f"rm_head.{name}": tensor for name, tensor in head.state_dict().items()}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "HPSv3.safetensors")
    return folder, folder / "HPSv3.safetensors", model.eval(), head.eval()


@pytest.mark.usefixtures("small_images", "package")
def test_hpsv3_is_the_head_at_the_special_token(qwen: tuple[Path, Path, Any, nn.Module]):
    """Compared with the whole model for each image alone, with positions that count."""
    base, weights, model, head = qwen
    scores, _ = build_reward({f"hpsv3?weights={weights}&base={base}": 1.0})(IMAGES, WORDS)
    loaded = load(str(weights), str(base))
    expected = []
    for number in range(3):
        patches, grid = patches_of(IMAGES[number : number + 1], model.config.vision_config)
        assert grid.tolist() == [1, 6, 10]
        caption = ("ant", "bee cat", "cat ant bee   {x}")[number]
        image = f"<|vision_start|>{'<|image_pad|>' * 15}<|vision_end|>"
        text = f"user {image}rate {caption} now score <|Reward|> END assistant"
        tokens = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
        assert (tokens == loaded.token).sum() == 1
        with torch.no_grad():
            states = model.model(
                input_ids=tokens,
                pixel_values=patches,
                image_grid_thw=grid[None],
                position_ids=torch.arange(tokens.shape[1]).expand(3, 1, -1),
            ).last_hidden_state
            expected.append(head(states[tokens == loaded.token])[0, 0])
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert scores.std() > 1e-4


@pytest.mark.usefixtures("small_images")
def test_patches_are_those_of_the_processor(qwen: tuple[Path, Path, Any, nn.Module]):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    patches, grid = patches_of(IMAGES, qwen[2].config.vision_config)
    pictures = to_pictures(resize(IMAGES, *sides(60, 90)))
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 10**6})
    theirs = processor(pictures, return_tensors="pt")
    assert theirs["image_grid_thw"].tolist() == [grid.tolist()] * 3
    torch.testing.assert_close(patches, theirs["pixel_values"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (448, 448, (448, 448)),
        (256, 256, (448, 448)),
        (1024, 1024, (448, 448)),
        (512, 1024, (308, 616)),
        (64, 128, (336, 644)),
    ],
)
def test_sides_of_hpsv3(height: int, width: int, expected: tuple[int, int]):
    """As `smart_resize` of qwen-vl-utils with both limits at 256 × 28 × 28 pixels."""
    assert sides(height, width) == expected


@pytest.mark.usefixtures("package")
def test_weights_that_do_not_fit(qwen: tuple[Path, Path, Any, nn.Module], tmp_path: Path, package: Path):
    base = qwen[0]
    save_file({"model.norm.weight": torch.zeros(32)}, tmp_path / "few.safetensors")
    with bad_input("reward", "weights: ", "do not fit", "Missing key"):
        build_reward({f"hpsv3?weights={tmp_path}/few.safetensors&base={base}": 1.0})
    package.write_text("INSTRUCTION = 'x'\n")
    with bad_input("reward", "has no 'prompt_with_special_token'", "pip install --no-deps hpsv3==1.0.0"):
        build_reward({f"hpsv3?weights={tmp_path}/few.safetensors&base={base}": 1.0})


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch):
    load.cache_clear()
    with bad_input("reward", "hpsv3 is not installed", "pip install --no-deps hpsv3"):
        build_reward({"hpsv3": 1.0})
    monkeypatch.setitem(sys.modules, "transformers", None)
    aesthetic_siglip.load.cache_clear()
    for name in ("hpsv3", "aesthetic-v2.5"):
        with bad_input("reward", "transformers is not installed", "pip install 'sfumato[clip]'"):
            build_reward({name: 1.0})


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Sequential]:
    """A random SigLIP of 28-pixel images, and the predictor's layers as published."""
    folder = tmp_path_factory.mktemp("siglip")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        vision_config={**shape, "image_size": 28, "patch_size": 14}, text_config={**shape, "vocab_size": 20}
    )
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.SiglipModel(config).save_pretrained(folder)
        for before, after in ((32, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)):
            layers += [nn.Linear(before, after), nn.Dropout(0.5)]
    head = nn.Sequential(*layers[:-1]).eval()
    torch.save({f"scoring_head.{name}": tensor for name, tensor in head.state_dict().items()}, folder / "head.pth")
    return folder, folder / "head.pth", head


def test_aesthetic_predictor_as_published(siglip: tuple[Path, Path, nn.Sequential]):
    """Compared with transformers' processor and model, followed by the layers on the normalized embedding."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    folder, file, head = siglip
    scores, _ = build_reward({f"aesthetic-v2.5?model={folder}&head={file}": 1.0})(IMAGES, WORDS)
    processor = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pixels: Tensor = processor(to_pictures(IMAGES), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        pooled = transformers.SiglipModel.from_pretrained(folder).vision_model(pixels).pooler_output
        expected = head(pooled / pooled.norm(dim=1, keepdim=True)).squeeze(1)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
    assert scores.std() > 1e-5


def test_heads_that_do_not_fit(
    siglip: tuple[Path, Path, nn.Sequential], clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, _, head = siglip
    torch.save({"0.weight": torch.zeros(3, 3)}, tmp_path / "small.pth")
    with bad_input("reward", "head: ", "not that of the aesthetic predictor V2.5"):
        build_reward({f"aesthetic-v2.5?model={folder}&head={tmp_path}/small.pth": 1.0})
    wide = {**head.state_dict(), "0.weight": torch.zeros(1024, 16)}
    torch.save(wide, tmp_path / "wide.pth")
    with bad_input("reward", "head: ", "width 16, not 32"):
        build_reward({f"aesthetic-v2.5?model={folder}&head={tmp_path}/wide.pth": 1.0})

    def offline(url: str, **options: Any) -> dict[str, Tensor]:
        assert options["weights_only"]
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    with bad_input("reward", "aesthetic_predictor_v2_5.pth cannot be downloaded", "no route", "path"):
        build_reward({f"aesthetic-v2.5?model={folder}": 1.0})
