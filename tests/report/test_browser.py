"""The report in a real browser: headless Debian chromium, driven by Playwright."""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chromium import needs_chromium
from made_runs import data_of, metrics, write_pretraining, write_rows, write_run
from playwright.sync_api import Browser, Page, ViewportSize

from sfumato.report.build import write_report

pytestmark = needs_chromium

HOSTILE = ("<img src=x onerror=document.title=1>", "</script><script>document.title=1</script>", "b" * 80)
WIDE, PHONE = ViewportSize(width=1280, height=900), ViewportSize(width=360, height=740)


@dataclass(frozen=True)
class Report:
    """A report on two runs: the file and its data."""

    path: Path
    data: dict[str, Any]

    def images(self, step: int, run: int = 0) -> list[str]:
        """Return the pictures at a step."""
        return next(moment["images"] for moment in self.data["runs"][run]["moments"] if moment["step"] == step)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report on a run with names that contain code, and on a longer run."""
    folder = tmp_path_factory.mktemp("report")
    names = [HOSTILE[n % 3] for n in range(8)] + [f"thing {n}" for n in range(8)]
    write_run(folder / "one", names=names)
    write_run(folder / "other", steps=40, every=4, seed=1, reward={"dark": 1.0, HOSTILE[0]: 0.5})
    path = write_report([folder / "one", folder / "other"], folder / "report.html")
    return Report(path, data_of(path))


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open reports; fail if a page logs an error, or requests anything that is not in the file."""
    complaints, contexts = [], []

    def visit(path: Path, size: ViewportSize = WIDE, dark: bool = False) -> Page:
        contexts.append(browser.new_context(viewport=size, color_scheme="dark" if dark else "light"))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked(request.url, path))
        page.goto(path.as_uri())
        return page

    def asked(url: str, path: Path) -> None:
        if url.split("#")[0] != path.as_uri() and not url.startswith("data:"):
            complaints.append(url)

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def sources(page: Page) -> list[str]:
    return page.eval_on_selector_all("#scenes img", "images => images.map((image) => image.src)")


def gains(page: Page) -> list[float]:
    texts = page.locator(".pairs b").all_text_contents()
    return [float(text.replace("−", "-")) for text in texts]


def test_the_slider_scrubs_through_training(report: Report, visit: Callable[..., Page]):
    page = visit(report.path)
    slider = page.locator("#slider")
    assert sources(page) == report.images(4)
    slider.focus()
    for key, step in (("ArrowLeft", 2), ("Home", 0), ("ArrowRight", 2), ("End", 4)):
        page.keyboard.press(key)
        assert sources(page) == report.images(step)
        assert page.locator("#moment b").text_content() == f"Step {step}"
        assert (slider.get_attribute("aria-valuetext") or "").startswith(f"step {step}, mean reward 0.5")
    box = slider.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    for share, step in ((0.5, 2), (0.02, 0)):
        page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] / 2, steps=4)
        assert sources(page) == report.images(step)
    page.mouse.up()
    assert page.locator("#scenes small").first.text_content() == "0.500"


def test_all_pictures_load(report: Report, visit: Callable[..., Page]):
    page = visit(report.path)
    page.locator("#slider").focus()
    for _ in report.data["runs"][0]["moments"]:
        page.eval_on_selector_all("main img", "(images) => Promise.all(images.map((image) => image.decode()))")
        sizes = page.eval_on_selector_all(
            "main img", "(images) => images.map((image) => [image.naturalWidth, image.naturalHeight])"
        )
        assert sizes == [[16, 16]] * (16 + 2 * 16)
        page.keyboard.press("ArrowLeft")
    assert all(page.eval_on_selector_all("main img", "(images) => images.map((image) => image.alt.length)"))


def test_a_picture_is_enlarged(report: Report, visit: Callable[..., Page]):
    page = visit(report.path)
    view, third = page.locator("#view"), page.locator("#scenes .picture").nth(2)
    assert not view.is_visible()
    third.focus()
    page.keyboard.press("Enter")
    assert view.locator("img").get_attribute("src") == report.images(4)[2]
    assert view.locator("p").text_content() == f"{HOSTILE[2]}, step 4, reward 0.450"
    assert page.evaluate("document.activeElement.textContent") == "Close"
    box = view.locator("img").bounding_box()
    assert box is not None
    assert box["width"] == box["height"] > 400
    page.keyboard.press("Escape")
    assert not view.is_visible()
    assert third.evaluate("(node) => node === document.activeElement")
    page.locator(".pairs .picture").first.click()
    assert view.locator("img").get_attribute("src") == report.images(0)[15]
    assert view.locator("p").text_content() == "thing 7, before, reward 0.500"
    view.locator("button").click()
    assert not view.is_visible()


@pytest.mark.parametrize(("size", "columns"), [(PHONE, 4), (WIDE, 8)])
@pytest.mark.parametrize("counts", [(8, 8, 8, 6, 2), (2,) * 16, (1,) * 5])
def test_pictures_have_one_size_and_stand_in_columns(
    visit: Callable[..., Page], tmp_path: Path, size: ViewportSize, columns: int, counts: tuple[int, ...]
):
    names = [f"caption {n}" for n, count in enumerate(counts) for _ in range(count)]
    page = visit(write_report([write_run(tmp_path / "run", names=names)]), size)
    boxes = [image.bounding_box() for image in page.locator("#scenes img").all()]
    assert len({round(box["width"], 1) for box in boxes if box}) == 1
    assert len({round(box["x"], 1) for box in boxes if box}) == columns if len(names) > 8 else 4
    captions = page.locator("#scenes figcaption").all_text_contents()
    assert len(captions) == len(counts)


def test_pairs_are_sorted_by_gain_and_by_loss(report: Report, visit: Callable[..., Page]):
    page = visit(report.path)
    expected = [round((n - 7) / 100, 3) for n in range(16)]
    assert gains(page) == sorted(expected, reverse=True)
    before, after = page.locator(".pairs li").first.locator("img").all()
    assert (before.get_attribute("src"), after.get_attribute("src")) == (report.images(0)[15], report.images(4)[15])
    page.get_by_role("button", name="Largest loss").click()
    assert gains(page) == sorted(expected)
    assert page.locator(".pairs figcaption span").first.text_content() == HOSTILE[0]
    page.get_by_role("button", name="As drawn").focus()
    page.keyboard.press("Enter")
    assert gains(page) == expected
    assert page.locator(".sort [aria-pressed=true]").all_text_contents() == ["As drawn"]


def test_another_run_is_chosen_with_the_keyboard(report: Report, visit: Callable[..., Page]):
    page = visit(report.path)
    page.locator("#training input[type=radio]").first.focus()
    page.keyboard.press("ArrowRight")
    assert sources(page) == report.images(4, run=1)  # the step that was shown for the first run
    assert page.locator("#pairs input[type=radio]").nth(1).is_checked()
    first = page.locator(".pairs li").first.locator("img").last
    assert first.get_attribute("src") == report.images(40, run=1)[15]


def test_values_of_curves_by_pointer_and_by_key(report: Report, visit: Callable[..., Page]):
    page = visit(report.path)
    plot = page.get_by_role("slider", name="Reward, mean per step")
    values = page.locator("#curves figure").first.locator(".values")
    plot.locator("path").first.wait_for(state="attached")  # drawn once the page knows its size
    assert plot.locator("path").count() == 2
    plot.focus()
    page.keyboard.press("Home")
    assert values.text_content() == "step 1" + f"{metrics(1)['reward_mean']:.3f}" * 2
    page.keyboard.press("PageUp")
    page.keyboard.press("ArrowRight")
    assert plot.get_attribute("aria-valuetext") == f"step 6: other {metrics(6)['reward_mean']:.3f}"
    assert "step 6" in (page.locator("#curves figure").nth(3).text_content() or "")  # one cursor for all
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 7, box["y"] + 20)
    assert values.text_content() == f"step 40{metrics(40)['reward_mean']:.3f}"
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 300)
    assert values.text_content() == f"{metrics(4)['reward_mean']:.3f}{metrics(40)['reward_mean']:.3f}"


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (5e-5, 2e-4, ["0.5e−4", "1.0e−4", "1.5e−4", "2.0e−4"]),
        (1.5e-4, 2e-4, ["1.6e−4", "1.8e−4", "2.0e−4"]),
        (-0.1, 0.3, ["−0.1", "0", "0.1", "0.2", "0.3"]),
        (0, 3e6, ["0", "1e6", "2e6", "3e6"]),
    ],
)
def test_labels_of_an_axis_differ(
    report: Report, visit: Callable[..., Page], low: float, high: float, labels: list[str]
):
    assert visit(report.path).evaluate(f"tickLabels(...ticks({low}, {high}, 4))") == labels


def test_the_axis_of_a_constant_zero(visit: Callable[..., Page], tmp_path: Path):
    run = write_run(tmp_path / "run")
    write_rows(run / "metrics.jsonl", [{**metrics(step), "kl": 0.0} for step in range(1, 5)])
    chart = visit(write_report([run])).locator("figure").filter(has_text="KL to the reference")
    chart.locator("path").wait_for(state="attached")
    assert chart.locator("text").all_text_contents()[:3] == ["0", "0.5", "1.0"]


def test_smoothing(report: Report, visit: Callable[..., Page]):
    page = visit(report.path)
    # Weights 0.25 and 0.5 of the first and the third value, divided by their sum.
    assert page.evaluate("smoothed([1, null, 3], 0.5)") == [1, None, pytest.approx(1.75 / 0.75)]
    chart = page.locator("#curves figure").first
    chart.locator("path").first.wait_for(state="attached")
    before = chart.locator("path").first.get_attribute("d")
    assert chart.locator("path.faint").count() == 0
    page.locator("#smoothing").focus()
    page.keyboard.press("PageUp")
    assert "0." in (page.locator("#smoothing").get_attribute("aria-valuetext") or "")
    assert chart.locator("path.faint").count() == 2
    assert chart.locator("path.faint").first.get_attribute("d") == before
    assert chart.locator("path").count() == 4
    page.keyboard.press("Home")
    assert chart.locator("path.faint").count() == 0
    assert chart.locator("path").count() == 2


def test_the_metrics_are_saved_as_csv(report: Report, visit: Callable[..., Page], tmp_path: Path):
    page = visit(report.path)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    assert download.value.suggested_filename == "metrics.csv"
    download.value.save_as(tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["step"]) for row in rows[:6]] == [("one", str(n)) for n in range(5)] + [("other", "0")]
    assert len(rows) == 5 + 41
    for row in rows:
        step = int(row["step"])
        expected = {name: value for name, value in metrics(step).items() if name != "step"} if step else {}
        assert {name: float(row[name]) for name in expected} == expected
        assert (row["fixed_set/entropy"] == "1") == (step % (2 if row["run"] == "one" else 4) == 0)


def test_how_a_run_was_run(visit: Callable[..., Page], tmp_path: Path):
    run = write_run(tmp_path / "run", reward={"dark": 1.0, "x": 0.5, "saturation": 0})
    start = {"version": "0.2.0", "command": "sfumato train <b>", "host": "here", "started": "2026-01-02T03:04:05+00:00"}
    (run / "run.json").write_text(json.dumps([{**start, "seconds": 3723.4}, {**start, "seconds": None}]))
    timings = [{"seconds/sample": 2.0 + n, "seconds/update": 15.0 - n} for n in range(1, 4)]
    timed = [{**metrics(n), **timings[n - 1], "peak_memory": n / 2} for n in range(1, 4)]
    write_rows(run / "metrics.jsonl", timed)
    (run / "checkpoints/step-000002").mkdir(parents=True)
    page = visit(write_report([run]))
    card = page.locator(".card").text_content() or ""
    assert "reward dark × 1 + x × 0.5 · measured only: saturation · 3 of 4" in card
    assert "Peak memory1.500GiB, of the first process" in card
    first, second = page.locator(".starts li").all()
    assert first.locator("p").text_content() == "2026-01-02 03:04:05 UTC · took 1 h 2 min · on here · version 0.2.0"
    assert first.locator("code").text_content() == "sfumato train <b>"
    assert "still running, or killed" in (second.text_content() or "")
    cells = [row.locator("th, td").all_text_contents() for row in page.locator("#machines tbody tr").all()]
    assert cells == [
        ["base model", "emoji-var"],
        ["newest checkpoint of the run", "checkpoints/step-000002"],
        ["sample", "4.000", "24 %"],
        ["update", "13.00", "76 %"],
        ["all", "17.00", "100 %"],
    ]


def test_a_pretraining_run(visit: Callable[..., Page], tmp_path: Path):
    page = visit(write_report([write_pretraining(tmp_path / "own")]), PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.locator("nav a").all_text_contents() == ["Through training", "Curves", "Settings"]
    card = page.locator(".card").text_content() or ""
    assert "started from emoji-var · 90 images, 5 of them held out · 3 classes" in card
    assert "Generator loss4.000 → 1.0003 of 4 steps, not finished" in card
    assert "Generator validation3.000 → 3.500lowest 3.000" in card
    assert page.locator(".hint").text_content() == "Each image is followed by its reconstruction."
    assert page.locator("#scenes figure").count() == 8
    page.locator("#training input[type=radio]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#scenes figure").count() == 4
    loss = page.get_by_role("slider", name="Generator: loss, dashed: held-out images")
    loss.locator("path").first.wait_for(state="attached")
    dashes = [path.get_attribute("stroke-dasharray") for path in loss.locator("path").all()]
    assert dashes == ["none", "5 4"]


def test_what_users_write_is_shown_and_not_run(report: Report, visit: Callable[..., Page]):
    page = visit(report.path)
    assert page.title() == "one, other: training report"
    captions = page.locator("#scenes figcaption").all_text_contents()
    assert captions[:3] == list(HOSTILE)
    assert f"reward.{HOSTILE[0]}" in page.locator("#settings table").first.locator("th").all_text_contents()
    assert page.locator("#settings table").first.locator("tbody tr").count() == 3  # steps, seed, and this reward


@pytest.mark.parametrize("size", [PHONE, WIDE])
def test_nothing_is_wider_than_the_screen(report: Report, visit: Callable[..., Page], size: ViewportSize):
    page = visit(report.path, size)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    page.wait_for_timeout(100)  # for the curves to be drawn
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    assert page.locator(".plot svg").count() == page.locator(".plot").count() > 4
    page.evaluate("scrollTo(100, 0)")
    assert page.evaluate("scrollX") == 0


LEAST_CONTRAST = """() => {
  const light = (color) => color.match(/[\\d.]+/g).slice(0, 3)
    .map((value) => value / 255).map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, n) => sum + value * [0.2126, 0.7152, 0.0722][n], 0);
  const contrast = (...two) => (Math.max(...two.map(light)) + 0.05) / (Math.min(...two.map(light)) + 0.05);
  const paper = getComputedStyle(document.body).backgroundColor;
  const colors = [...document.querySelectorAll("p, small, h1, h2, h3, td, th, a, figcaption, dt, dd, summary")];
  return [light(paper), Math.min(...colors.map((node) => contrast(getComputedStyle(node).color, paper)))];
}"""


def test_light_and_dark(report: Report, visit: Callable[..., Page]):
    page, dark_page = visit(report.path), visit(report.path, PHONE, dark=True)
    light, contrast = page.evaluate(LEAST_CONTRAST)
    dark, dark_contrast = dark_page.evaluate(LEAST_CONTRAST)
    assert light > 0.8
    assert dark < 0.02
    assert min(contrast, dark_contrast) >= 4.5  # WCAG 2.2, AA
    toggle = page.locator("#theme")
    assert toggle.text_content() == "Dark"
    assert "dark" in (toggle.get_attribute("aria-label") or "")
    toggle.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(LEAST_CONTRAST)[0] == dark
    assert toggle.text_content() == "Light"
    toggle.click()
    assert page.evaluate(LEAST_CONTRAST)[0] == light


def test_focus_is_seen(report: Report, visit: Callable[..., Page]):
    page = visit(report.path)
    seen = set()
    for _ in range(64):
        page.keyboard.press("Tab")
        # The radio buttons themselves are invisible; the label next to each has the outline.
        width, name = page.evaluate(
            "(() => { const node = document.activeElement; "
            "const shown = node.type === 'radio' ? node.nextElementSibling : node; "
            "return [parseFloat(getComputedStyle(shown).outlineWidth), node.id || node.textContent || node.type]; })()"
        )
        assert width >= 3, name
        seen.add(name)
    assert {"theme", "Curves", "radio", "slider", "button", "Largest loss", "smoothing", "csv"} <= seen


def test_an_older_run_alone(visit: Callable[..., Page], tmp_path: Path):
    (write_run(tmp_path / "older") / "fixed_set.jsonl").unlink()
    page = visit(write_report([tmp_path / "older"]))
    assert page.locator(".pairs li").count() == 16
    assert page.locator("#scenes img").count() == 16
    assert page.locator("#scenes figure").count() == 8
    assert not page.locator(".sort").is_visible()
    assert page.locator("#settings dt").first.text_content() == "model"


def test_a_run_that_has_just_begun(visit: Callable[..., Page], tmp_path: Path):
    run = write_run(tmp_path / "begun")
    for name in ("metrics.jsonl", "evaluation.json", "fixed_set.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "samples")
    page = visit(write_report([run]))
    assert page.locator("nav a").all_text_contents() == ["How it was run", "Settings"]
    assert "0 of 4 steps, not finished" in (page.locator(".card").text_content() or "")
