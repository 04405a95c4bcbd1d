"""Small models with random weights, saved in the same format as the released ones."""

from pathlib import Path

import torch


def save_clip(folder: Path) -> Path:
    """Save a CLIP model for 224-pixel images, with its tokenizer and processor."""
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    letters = [chr(n) for n in range(33, 127)]
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    last = len(pieces) - 1
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": len(pieces), "bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    config = transformers.CLIPConfig(
        text_config={**shape, **text, "max_position_embeddings": 16, "hidden_act": "gelu"},
        vision_config={**shape, "image_size": 224, "patch_size": 32, "hidden_act": "gelu"},
        projection_dim=48,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name != "logit_scale":
                    parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def save_mask2former(folder: Path, classes: int = 80) -> Path:
    """Save a small random Mask2Former with a Swin backbone, like facebook/mask2former-swin-small-coco-instance."""
    import transformers

    backbone = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],  # pyright: ignore[reportCallIssue]
    )
    width = 32  # a multiple of the 32 groups in the group norms
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=classes,  # pyright: ignore[reportCallIssue]
        feature_size=width,
        mask_feature_size=width,
        hidden_dim=width,
        encoder_feedforward_dim=width,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=width,
        num_queries=6,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Mask2FormerForUniversalSegmentation(config)
        with torch.no_grad():
            model.class_predictor.weight.mul_(40)  # so that some predictions are confident
    model.save_pretrained(folder)
    return folder


def save_blip_vqa(folder: Path) -> Path:
    """Save a small random model like Salesforce/blip-vqa-capfilt-large, for 32-pixel images, with its tokenizer."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "a", "red", "green", "car", "bench", "?"]
    vocabulary = {word: number for number, word in enumerate([*words, "[DEC]", "[ENC]"])}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": len(words), "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3}
    config = transformers.BlipConfig(
        text_config={**shape, **special, "vocab_size": len(words) + 2, "encoder_hidden_size": 32},
        vision_config={**shape, "image_size": 32, "patch_size": 16},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BlipForQuestionAnswering(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def save_owlv2(folder: Path) -> Path:
    """Save a small random model like google/owlv2-base-patch16-ensemble, for 64-pixel images, with its processor."""
    import transformers
    from transformers.models.clip.tokenization_clip import CLIPTokenizer
    from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

    letters = [chr(n) for n in range(33, 127)]
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[], model_max_length=16)
    processor = transformers.Owlv2Processor(Owlv2ImageProcessorPil(size={"height": 64, "width": 64}), tokenizer)
    processor.save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    last = len(pieces) - 1
    special = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    config = transformers.Owlv2Config(
        text_config={**shape, **special, "vocab_size": len(pieces)},
        vision_config={**shape, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Owlv2ForObjectDetection(config)
        with torch.no_grad():
            for head in (model.class_head, model.box_head):
                for parameter in head.parameters():
                    parameter.mul_(0.1)  # their standard deviation is 1, which saturates every box and score
    model.save_pretrained(folder)
    return folder
