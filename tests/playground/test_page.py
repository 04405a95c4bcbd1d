"""The page of the playground in a real browser: headless Debian chromium, driven by Playwright."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import needs_chromium
from made_runs import write_checkpoints, write_run
from playwright.sync_api import Browser, Page, expect
from tiny import CLASS_NAMES, tiny_var

from sfumato.errors import UserError
from sfumato.playground.drawing import Playground
from sfumato.playground.page import build_page, launch, title_of
from sfumato.settings import SettingsOptions

pytestmark = [
    needs_chromium,
    pytest.mark.filterwarnings("default"),  # those of Gradio and its server
]


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Playground:
    """A run on the tiny model with checkpoints at 2 and 4."""
    folder = tmp_path_factory.mktemp("runs") / "bright"
    run = write_run(folder, model=str(tiny_model), reward={"brightness": 1.0})
    write_checkpoints(run, {step: tiny_var(step) for step in (2, 4)})
    return Playground([str(run)], torch.device("cpu"))


@pytest.fixture(scope="module")
def address(playground: Playground) -> Iterator[str]:
    """The page in a server of this process."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = build_page(playground, SettingsOptions(temperature=0.8))
    launch(page, "127.0.0.1", port, wait=False)
    with pytest.raises(UserError, match=f"^port: {port} "):
        launch(build_page(playground, SettingsOptions()), "127.0.0.1", port, wait=False)
    yield f"http://127.0.0.1:{port}/"
    page.close()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Callable[[], Page]]:
    """Open tabs; fail if a page requests anything from another host, or its scripts fail."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def visit() -> Page:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 1000}))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked(request.url))
        page.goto(address)
        return page

    def asked(url: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            complaints.append(url)

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def titles(playground: Playground, label: int, seed: int, count: int, steps: tuple[int, int]) -> list[str]:
    """The titles of both columns, with the mean rewards of their pictures, as plain text."""
    options = SettingsOptions(temperature=0.8)
    drawn = [playground.draw(number, step, label, seed, count, options) for number, step in enumerate(steps)]
    parts = zip(playground.columns, steps, drawn, strict=True)
    return [title_of(column, step, pictures).replace("*", "").replace("`", "") for column, step, pictures in parts]


def draw(page: Page, name: str, seed: int) -> None:
    """Choose a class and a seed, and draw."""
    page.get_by_label("Class").click()
    page.get_by_role("option", name=name).click()
    page.get_by_label("Seed of the first image").fill(str(seed))
    page.get_by_role("button", name="Draw").click()


def test_classes_are_drawn_side_by_side(playground: Playground, visit: Callable[[], Page]):
    page = visit()
    for title in titles(playground, 0, 0, 4, (0, 4)):  # drawn when the page opens
        expect(page.get_by_text(title)).to_be_visible(timeout=20_000)
    draw(page, "dog", 7)
    for title in titles(playground, 3, 7, 4, (0, 4)):
        expect(page.get_by_text(title)).to_be_visible(timeout=20_000)
    expect(page.locator(".grid-container img")).to_have_count(8)
    pictures = playground.draw(1, 4, 3, 7, 4, SettingsOptions(temperature=0.8))
    for picture in pictures:
        expect(page.get_by_text(f"reward {picture.scores['reward']:.3f}", exact=True).first).to_be_visible()


def test_the_slider_shows_another_checkpoint_of_the_same(playground: Playground, visit: Callable[[], Page]):
    page = visit()
    expect(page.get_by_text(titles(playground, 0, 0, 4, (0, 4))[1])).to_be_visible(timeout=20_000)
    draw(page, "cat", 1)
    base, last = titles(playground, 2, 1, 4, (0, 4))
    expect(page.get_by_text(last)).to_be_visible(timeout=20_000)
    page.get_by_label("Seed of the first image").fill("99")  # not drawn yet, so the slider shows the old seed
    slider = page.get_by_role("slider", name="range slider for Steps of bright")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_text(titles(playground, 2, 1, 4, (0, 2))[1])).to_be_visible(timeout=20_000)
    page.keyboard.press("Home")
    start = titles(playground, 2, 1, 4, (0, 0))[1]
    expect(page.get_by_text(start)).to_be_visible(timeout=20_000)
    assert start.partition("mean")[2] == base.partition("mean")[2]  # step 0 is the base


def test_two_tabs_do_not_mix(playground: Playground, visit: Callable[[], Page]):
    tabs = [visit() for _ in range(2)]
    for number, page in enumerate(tabs):
        expect(page.get_by_text(titles(playground, 0, 0, 4, (0, 4))[1])).to_be_visible(timeout=20_000)
        draw(page, CLASS_NAMES[number + 1], number)
    for number, page in enumerate(tabs):
        for title in titles(playground, number + 1, number, 4, (0, 4)):
            expect(page.get_by_text(title)).to_be_visible(timeout=20_000)


def test_bad_settings_are_explained(playground: Playground, visit: Callable[[], Page]):
    page = visit()
    # What the page draws when it opens must be done: it would read the bad setting too, and show the error twice.
    expect(page.get_by_text(titles(playground, 0, 0, 4, (0, 4))[1])).to_be_visible(timeout=20_000)
    page.get_by_label("Temperature").fill("warm")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("temperature: 'warm' is not a number")).to_be_visible(timeout=20_000)
