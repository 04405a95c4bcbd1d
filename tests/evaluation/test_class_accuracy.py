"""Class accuracy, checked by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfumato.emoji.judges import Classifier, ClassifierConfig, load_classifier, save_classifier
from sfumato.evaluation.class_accuracy import class_accuracy
from sfumato.naming import class_words


class FirstPixel(Classifier):
    """Prefers the class whose number is in the first pixel, then its neighbors by distance."""

    def forward(self, images: Tensor) -> Tensor:
        wanted = (images[:, 0, 0, 0] * 10).round()
        return -(wanted[:, None] - torch.arange(self.config.num_classes)).abs()


@pytest.mark.parametrize(("num_classes", "top5"), [(10, 0.75), (4, 1.0)])
def test_by_hand(num_classes: int, top5: float):
    names = tuple(map(str, range(num_classes)))
    classifier = FirstPixel(ClassifierConfig(num_classes=num_classes, widths=(4,)), names)
    # Requested classes 0, 1, 2 and 3; shown classes 0, 1, 3 and 9: two correct, one near, one far.
    images = torch.tensor([0.0, 0.1, 0.3, 0.9])[:, None, None, None].expand(4, 3, 2, 2)
    accuracy = class_accuracy(classifier, images, class_words([0, 1, 2, 3], names))
    assert accuracy is not None
    assert accuracy.top1 == (0.5 if num_classes == 10 else 0.75)  # of four classes, 3 is nearest to 9
    assert accuracy.top5 == top5


def test_classifier_round_trip(tmp_path: Path):
    torch.manual_seed(0)
    names = ("a", "b", "c")
    classifier = Classifier(ClassifierConfig(num_classes=3, widths=(4, 8)), names)
    classifier(torch.rand(8, 3, 8, 8))  # updates the running statistics of the batch norms
    save_classifier(tmp_path / "model", classifier)
    read = load_classifier(tmp_path / "model")
    assert read.class_names == names
    assert not any(p.requires_grad for p in read.parameters())
    images = torch.rand(2, 3, 8, 8)
    expected = classifier.eval()(images).log_softmax(-1)
    # The weights are saved in half precision.
    torch.testing.assert_close(read.log_probs(images), expected, rtol=0, atol=5e-3)
