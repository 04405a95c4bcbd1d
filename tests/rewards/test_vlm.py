"""A small random vision-language model as judge, saved in the format of the released ones."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_request

from sfumato.rewards import build_reward
from sfumato.rewards.judge import load_panel
from sfumato.rewards.vlm import load_vlm

transformers = pytest.importorskip("transformers")
IMAGES = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
WORDS = tiny_request([0, 2, 1]).words
CHAT = "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"  # noqa: E501


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA with random weights: an image has 4 tokens, and a text has one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("llava")
    digits = [f"{n}" for n in range(40)]
    words = ["<pad>", "</s>", "<unk>", "<image>", "ant", "bee", "cat", "quality", ":", *digits]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": 28, "width": 28}
    transformers.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size),
        tokenizer=fast, patch_size=14, vision_feature_select_strategy="default", chat_template=CHAT,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**shape, image_size=28, patch_size=14),
        text_config=transformers.LlamaConfig(
            **shape, vocab_size=len(words), pad_token_id=0, eos_token_id=1, bos_token_id=1, initializer_range=0.5
        ),
        image_token_index=3,
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_batch_is_answered_as_its_images_alone(llava_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sfumato.rewards.vlm.MAX_NEW_TOKENS", 12)
    model = load_vlm(str(llava_folder))
    questions = ["ant bee", "cat", "ant cat bee cat"]
    together = model.answer(IMAGES, questions)
    alone = [model.answer(IMAGES[n : n + 1], questions[n : n + 1])[0] for n in range(3)]
    assert together == alone
    assert len(set(together)) == 3


def test_judge_here(llava_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The model's answers are parsed. Those of a random model have no marks, and the failure is reported."""
    monkeypatch.setattr("sfumato.rewards.vlm.MAX_NEW_TOKENS", 4)
    names = [f"judge?model={llava_folder}&aspect={aspect}" for aspect in ("quality", "strange")]
    reward = build_reward(dict.fromkeys(names, 1.0))
    calls = []
    model = load_vlm(str(llava_folder))
    answer = model.answer
    monkeypatch.setattr(model, "answer", lambda *args: calls.append(1) or answer(*args))
    assert reward(IMAGES, WORDS)[0].isnan().all()
    assert len(calls) == 1
    part = reward.parts[names[0]].reward
    assert getattr(part, "last_failure").startswith("the judge's answer has no quality: ")  # noqa: B009
    monkeypatch.setattr(model, "answer", lambda *args: ['{"quality": 4, "strange": 0}'] * 3)
    quality, normal = reward(IMAGES.clone(), WORDS)[1].values()
    assert (quality.tolist(), normal.tolist()) == ([4.0] * 3, [1.0] * 3)
    assert load_panel(str(llava_folder), None, 16, 120.0, 8) is load_panel(str(llava_folder), None, 16, 120.0, 8)
