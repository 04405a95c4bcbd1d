"""Image sources: a folder of images, and a small substitute for the emoji package."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import bad_input
from PIL import Image

from sfumato.data.images import FolderImages, find_images, read_rgb
from sfumato.emoji.source import EMOJI_SCENES, EmojiImages, Scene, compose, open_source


def save(path: Path, color: tuple[int, ...], size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def test_folder(tmp_path: Path):
    save(tmp_path / "b/one.png", (255, 0, 0))
    save(tmp_path / "a/deep/two.PNG", (0, 51, 0), size=(20, 10))
    save(tmp_path / "a/three.jpg", (102, 102, 102), size=(30, 60))
    (tmp_path / "a/notes.txt").write_text("not an image")
    source = FolderImages(tmp_path, 8)
    assert source.class_names == ("a", "b")
    assert len(source) == 3
    assert torch.equal(source.weights, torch.ones(3))
    images, labels = source[torch.tensor([0, 1, 2])]
    assert images.shape == (3, 3, 8, 8)
    assert labels.tolist() == [0, 0, 1]
    colors = torch.tensor([[0.0, 0.2, 0.0], [0.4, 0.4, 0.4], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(images.mean((2, 3)), colors, rtol=0, atol=2 / 255)
    again, label = source[torch.tensor([2])]
    assert torch.equal(again[0], images[2])
    assert label.tolist() == [1]


def test_images_are_cropped_at_the_centre(tmp_path: Path):
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = (10, 20, 30)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    source = FolderImages(tmp_path, 8)
    assert source.class_names == ("image",)
    images, _ = source[torch.tensor([0])]
    expected = torch.tensor([10, 20, 30])[:, None, None].expand(3, 8, 8)
    assert torch.equal((images[0] * 255).round().int(), expected.int())


def test_transparency_is_laid_on_white(tmp_path: Path):
    save(tmp_path / "clear.png", (0, 0, 0, 0), mode="RGBA")
    save(tmp_path / "half.png", (0, 0, 0, 128), mode="RGBA")
    images, _ = FolderImages(tmp_path, 8)[torch.tensor([0, 1])]
    assert images[0].min() == 1
    torch.testing.assert_close(images[1], torch.full((3, 8, 8), 127 / 255), rtol=0, atol=1.5 / 255)


def test_sixteen_bits_are_reduced_to_eight(tmp_path: Path):
    Image.fromarray(np.full((8, 8), 0x8180, dtype=np.uint16)).save(tmp_path / "grey.png")
    images, _ = FolderImages(tmp_path, 8)[torch.tensor([0])]
    assert (images * 255).unique().tolist() == [0x81]
    Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(tmp_path / "float.tiff")
    with bad_input("data", str(tmp_path / "float.tiff")):
        read_rgb(tmp_path / "float.tiff", "data")


def test_pictures_are_turned_upright(tmp_path: Path):
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 200  # bright on the left, which is on top after a clockwise quarter turn
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    upright = np.array(read_rgb(tmp_path / "phone.png", "data"))
    assert upright.shape == (16, 8, 3)
    assert upright[:8].min() == 200
    assert upright[8:].max() == 0


def test_hidden_files_and_folders_are_left_out(tmp_path: Path):
    for name in ("cat/1.png", ".ipynb_checkpoints/1.png", "cat/._1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, (1, 2, 3))
    assert [file.name for file in find_images(tmp_path)] == ["1.png"]
    assert FolderImages(tmp_path, 8).class_names == ("cat",)


def test_numbers_in_names_count_as_numbers(tmp_path: Path):
    names = ["1.png", "2.png", "10.png", "a2/1.png", "a10/1.png", "b1.png", "b.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, (1, 2, 3))
    assert [str(file.relative_to(tmp_path)) for file in find_images(tmp_path)] == names


def test_captions_of_another_encoding(tmp_path: Path):
    save(tmp_path / "1.png", (1, 2, 3))
    (tmp_path / "1.txt").write_bytes("café".encode("latin-1"))
    with bad_input("data", str(tmp_path / "1.txt"), "UTF-8"):
        FolderImages(tmp_path, 8)


def test_folder_errors(tmp_path: Path):
    with bad_input("data", str(tmp_path / "nowhere")):
        FolderImages(tmp_path / "nowhere", 8)
    with bad_input("data", str(tmp_path), ".png"):
        FolderImages(tmp_path, 8)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with bad_input("data", str(tmp_path / "broken.png")):
        FolderImages(tmp_path, 8)


def test_links_are_followed_and_loops_end(tmp_path: Path):
    save(tmp_path / "elsewhere/1.png", (1, 2, 3))
    save(tmp_path / "data/cat/1.png", (1, 2, 3))
    (tmp_path / "data/dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/emu").symlink_to(tmp_path / "elsewhere")  # the same images once more, for another class
    (tmp_path / "data/cat/all").symlink_to(tmp_path / "data")
    (tmp_path / "data/self").symlink_to(tmp_path / "data/self")
    assert [str(p.relative_to(tmp_path / "data")) for p in find_images(tmp_path / "data")] == [
        "cat/1.png",
        "dog/1.png",
        "emu/1.png",
    ]
    assert FolderImages(tmp_path / "data", 8).class_names == ("cat", "dog", "emu")


def test_a_folder_with_the_name_of_an_image(tmp_path: Path):
    save(tmp_path / "cat.png/1.png", (1, 2, 3))
    assert FolderImages(tmp_path, 8).class_names == ("cat.png",)
    assert len(find_images(tmp_path)) == 1


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save(tmp_path / "cat/1.png", (1, 2, 3))
    save(tmp_path / "cat/half[1].png", (1, 2, 3), size=(64, 64))
    FolderImages(tmp_path, 8)
    assert capsys.readouterr().err == ""
    Image.effect_noise((64, 64), 50).save(tmp_path / "cat/half[1].png")
    content = (tmp_path / "cat/half[1].png").read_bytes()
    (tmp_path / "cat/half[1].png").write_bytes(content[: len(content) // 2])
    (tmp_path / "cat/zero.jpg").write_bytes(b"")
    (tmp_path / "cat/1.txt").write_text("a cat", "utf-8")
    for name in ("a.heic", "b.heic", "notes"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    (tmp_path / "dog").mkdir()
    (tmp_path / "emu").symlink_to(tmp_path / "nowhere")
    source = FolderImages(tmp_path, 8)
    assert len(source) == 1
    assert source.captions(torch.tensor([0]), torch.Generator()) == ["a cat"]
    (line,) = capsys.readouterr().err.splitlines()
    for piece in (
        "1 images",
        "2 files that cannot be read",
        "cat/half[1].png: ",
        "cat/zero.jpg: ",
        "1 class folders without images (dog)",
        "1 broken links (emu)",
        "3 files of other types (2 .heic, 1 notes)",
    ):
        assert piece in line


def test_names_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    save(odd / "1.png", (1, 2, 3))
    (odd / os.fsdecode(b"\xff.png")).write_bytes(b"")
    save(tmp_path / "c\u0327ay/1.png", (1, 2, 3))  # as macOS writes it
    names = FolderImages(tmp_path, 8).class_names
    assert sorted(names) == ["caf\\xe9", "\u00e7ay"]
    "".join(names).encode()
    assert "\\udcff.png: " in capsys.readouterr().err


def color_of(path: Path) -> list[int]:
    """Return the color of the middle pixel after reading."""
    picture = read_rgb(path, "data")
    assert picture.mode == "RGB"
    pixel = picture.getpixel((picture.width // 2, picture.height // 2))
    assert isinstance(pixel, tuple)
    return list(pixel)


def test_kinds_of_image_files(tmp_path: Path):
    red, path = Image.new("RGB", (16, 16), (255, 0, 0)), tmp_path / "image"
    red.convert("CMYK").save(path, "JPEG", quality=95)
    np.testing.assert_allclose(color_of(path), [255, 0, 0], atol=3)
    red.convert("CMYK").save(path, "TIFF")
    assert color_of(path) == [255, 0, 0]
    red.save(path, "PNG")
    path.rename(tmp_path / "png.jpg")  # the content counts, not the extension
    assert color_of(tmp_path / "png.jpg") == [255, 0, 0]
    # A palette, or one color, that is transparent lies on white.
    red.convert("P").save(path, "PNG", transparency=red.convert("P").getpixel((0, 0)))
    assert color_of(path) == [255, 255, 255]
    red.save(path, "PNG", transparency=(255, 0, 0))
    assert color_of(path) == [255, 255, 255]
    Image.new("LA", (16, 16), (0, 0)).save(path, "PNG")
    assert color_of(path) == [255, 255, 255]
    for kind in ("GIF", "WEBP", "PNG"):  # animations: the first frame
        blue = Image.new("RGB", (16, 16), (0, 0, 255))
        options = {"lossless": True} if kind == "WEBP" else {}
        red.save(path, kind, save_all=True, append_images=[blue], **options)
        assert color_of(path) == [255, 0, 0]
    for mode in ("I;16", "I;16B"):
        Image.frombytes(mode, (4, 4), (b"\x80\x81" if mode == "I;16" else b"\x81\x80") * 16).save(path, "TIFF")
        assert color_of(path) == [0x81] * 3
    Image.new("1", (4, 4), 1).save(path, "PNG")
    assert color_of(path) == [255, 255, 255]


def test_very_large_and_very_long_images(tmp_path: Path):
    Image.new("L", (10_000, 10_000), 100).save(tmp_path / "large.png")
    assert (FolderImages(tmp_path, 8)[torch.tensor([0])][0] * 255).unique().tolist() == [100]
    (tmp_path / "large.png").unlink()
    pixels = np.zeros((1, 60_001), np.uint8)
    pixels[0, 29_990:30_011] = 200
    Image.fromarray(pixels).save(tmp_path / "line.png")
    images, _ = FolderImages(tmp_path, 64)[torch.tensor([0])]
    assert (images * 255).round().unique().tolist() == [200]


def emoji(name: str, order: int, category: str = "Food & Drink", subcategory: str = "x", google: bool = True) -> dict:
    return {
        "name": name,
        "sort_order": order,
        "category": category,
        "subcategory": subcategory,
        "has_img_google": google,
        "image": f"{name.lower().replace(' ', '-')}.png",
    }


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a package of three emoji that are classes (red square, half-transparent blue, empty) and three others."""
    entries = [
        emoji("SOCCER BALL", 30, "Activities", "sport"),
        emoji("RED APPLE", 10),
        emoji("GREY FACE", 20, "Smileys & Emotion", "face-smiling"),
        emoji("HEART", 5, "Smileys & Emotion", "emotion"),
        emoji("FLAG", 6, "Flags", "flag"),
        emoji("LOST", 7, google=False),
    ]
    (tmp_path / "emoji.json").write_text(json.dumps(entries))
    colors = {"red-apple": (255, 0, 0, 255), "grey-face": (0, 0, 255, 128), "soccer-ball": (9, 9, 9, 0)}
    for name, color in colors.items():
        save(tmp_path / f"img/google/64/{name}.png", color, size=(64, 64), mode="RGBA")
    return tmp_path


def test_emoji(package: Path):
    scenes = (
        Scene(background=(0.0, 1.0, 0.0), words="on green"),
        Scene(background=(1.0, 1.0, 1.0), light=0.5, weight=0.25, words="in dim light"),
    )
    source = EmojiImages(package, 64, scenes)
    assert source.class_names == ("red apple", "grey face", "soccer ball")
    assert len(source) == 6
    assert source.weights.tolist() == [1.0, 0.25] * 3
    images, labels = source[torch.arange(6)]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.shape == (6, 3, 64, 64)
    # The outer eighth is background, the middle is the emoji on top of it; the light dims both.
    corners, middles = images[:, :, :8, :8], images[:, :, 20:44, 20:44]
    alpha = 128 / 255
    for i, (corner, middle) in enumerate(
        [
            ((0, 1, 0), (1, 0, 0)),
            ((0.5, 0.5, 0.5), (0.5, 0, 0)),
            ((0, 1, 0), (0, 1 - alpha, alpha)),
            ((0.5, 0.5, 0.5), ((1 - alpha) / 2, (1 - alpha) / 2, 0.5)),
            ((0, 1, 0), (0, 1, 0)),
            ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    ):
        torch.testing.assert_close(corners[i].amax((1, 2)), torch.tensor(corner).float(), rtol=0, atol=1e-6)
        torch.testing.assert_close(corners[i].amin((1, 2)), torch.tensor(corner).float(), rtol=0, atol=1e-6)
        torch.testing.assert_close(middles[i].mean((1, 2)), torch.tensor(middle).float(), rtol=0, atol=1.5 / 255)


def test_hidden_colours_of_transparent_pixels_do_not_bleed(package: Path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32] = (255, 0, 0, 255)
    pixels[:, 32:] = (0, 255, 0, 0)
    Image.fromarray(pixels).save(package / "img/google/64/red-apple.png")
    images, _ = EmojiImages(package, 64, (Scene(background=(0.0, 0.0, 0.0), words="on black"),))[torch.tensor([0])]
    assert images[0, 0].max() == 1
    assert images[0, 1:].max() == 0


def test_scenes():
    assert len(EMOJI_SCENES) == 15
    assert sum(scene.weight for scene in EMOJI_SCENES) == 8 + 4 * 0.75 + 3 * 0.5


def test_open_source(package: Path, tmp_path_factory: pytest.TempPathFactory):
    assert isinstance(open_source(package, 64), EmojiImages)
    folder = tmp_path_factory.mktemp("pictures")
    save(folder / "a.png", (1, 2, 3))
    assert isinstance(open_source(folder, 8), FolderImages)


def test_compose_by_hand():
    # Premultiplied, so half-transparent pure red is (0.5, 0, 0, 0.5).
    sprite = torch.tensor([0.5, 0.0, 0.0, 0.5])[None, :, None, None].expand(2, 4, 2, 2)
    backgrounds, lights = torch.tensor([[0.2, 0.4, 0.6], [1.0, 1.0, 1.0]]), torch.tensor([1.0, 0.5])
    images = compose(sprite, backgrounds, lights)
    expected = torch.tensor([[0.6, 0.2, 0.3], [0.5, 0.25, 0.25]])[:, :, None, None].expand(2, 3, 2, 2)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
