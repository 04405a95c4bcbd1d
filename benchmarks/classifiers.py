"""Accuracy of the two bundled classifiers of emoji, on their own and on each other's pictures, and their agreement.

python benchmarks/classifiers.py PACKAGE [--images 512]
"""

import argparse

import torch
from torch import Tensor

import sfumato
from sfumato.data.classes import pick
from sfumato.emoji.augmentations import augmented_scenes
from sfumato.emoji.judges import Classifier, PatchClassifier, load_classifier, load_rival
from sfumato.emoji.rival_scenes import rival_scenes
from sfumato.emoji.source import open_source
from sfumato.naming import class_words


@torch.no_grad()
def report(what: str, images: Tensor, labels: Tensor, models: dict[str, Classifier | PatchClassifier]) -> None:
    """Print one line for these pictures: top-1 and top-5 accuracy of each model, and how often both predict the same
    class."""
    logits = {name: torch.cat([model(part) for part in images.split(64)]) for name, model in models.items()}
    line = f"{what:28}"
    for name, scores in logits.items():
        top = scores.topk(5).indices == labels[:, None]
        line += f"  {name} {top[:, 0].float().mean():6.1%} {top.any(1).float().mean():6.1%}"
    first, second = (scores.argmax(1) for scores in logits.values())
    print(f"{line}  agree {(first == second).float().mean():6.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="the unpacked npm package emoji-datasource-google")
    parser.add_argument("--images", type=int, default=512)
    arguments = parser.parse_args()
    models = {"emoji-classifier": load_classifier(), "emoji-rival": load_rival()}
    source = open_source(arguments.data, 64)
    for what, draw in (("evaluation's augmentations", augmented_scenes), ("rival's augmentations", rival_scenes)):
        report(what, *draw(source, arguments.images, torch.Generator().manual_seed(10**6)), models)
    policy = sfumato.load("emoji-var", guidance=None, temperature=0.7)
    names, rng = policy.generator.card.class_names, torch.Generator().manual_seed(0)
    words = class_words(pick(len(names), arguments.images, rng), names)
    images = policy.draw(policy.request(words), torch.arange(arguments.images), 64)
    report("emoji-var, temperature 0.7", images, words.labels, models)


if __name__ == "__main__":
    main()
