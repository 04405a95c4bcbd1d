"""Names of the ImageNet classes."""

from importlib import resources


def imagenet_class_names() -> list[str]:
    """Return the names of ImageNet's 1000 classes, in the order of the published labels."""
    return (resources.files("sfumato") / "bundled/imagenet_classes.txt").read_text("utf-8").splitlines()
