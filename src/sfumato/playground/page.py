"""The page: a thin layer of Gradio over `Playground`."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from PIL import Image

from sfumato.errors import UserError
from sfumato.evaluation.measurement import Figure
from sfumato.playground.columns import Column
from sfumato.playground.drawing import MOST, Picture, Playground, read_options, write_options
from sfumato.rewards.needs import package
from sfumato.settings import SettingsOptions

SIDE = 256
"""Side in pixels up to which small images are enlarged, so that their pixels stay sharp."""
STYLE = ".grid-wrap { max-height: none !important; } .caption-label { white-space: normal !important; }"
"""Galleries show all of their pictures, and all rewards of each."""
LABELS = {"guidance": "Guidance", "temperature": "Temperature", "top_k": "Top-k", "top_p": "Top-p"}


def import_gradio() -> Any:
    """Import Gradio, which then sends no statistics.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    return package("gradio", "playground")


def build_page(playground: Playground, options: SettingsOptions) -> Any:
    """Return the page as `gradio.Blocks`, with these settings at the start.

    Visitors share nothing but the loaded models: what they have asked for and drawn belongs to their own page.
    """
    gradio = import_gradio()
    columns, written = playground.columns, write_options(options)
    with gradio.Blocks(title="Sfumato playground", analytics_enabled=False) as page:
        asked = gradio.State(None)  # what the columns show, so that a slider draws the same with another checkpoint
        gradio.Markdown(heading(playground))
        with gradio.Row(equal_height=True):
            condition = condition_box(gradio, playground)
            seed = gradio.Number(0, label="Seed of the first image", precision=0, minimum=0)
            count = gradio.Slider(1, MOST, value=4, step=1, label="Images")
            button = gradio.Button("Draw", variant="primary", scale=0, min_width=120)
        with gradio.Accordion("Sampling settings (empty: each model's own)", open=any(written.values())), gradio.Row():
            texts = [gradio.Textbox(text, label=LABELS[name]) for name, text in written.items()]
        with gradio.Row():
            sliders = [checkpoint_slider(gradio, column) for column in columns]
        with gradio.Row():
            shown = [show_column(gradio, column) for column in columns]

        def draw_column(number: int, step: float, request: Sequence[Any] | None) -> list[Any]:
            """Return title and pictures that the column shows next; nothing changes before the first request."""
            if request is None:
                return [gradio.skip()] * 2
            what, first, images, *settings = request
            try:
                given = read_options(**dict(zip(LABELS, settings, strict=True)))
                pictures = playground.draw(
                    number, int(step), "" if what is None else what, int(first or 0), int(images), given
                )
            except UserError as error:
                raise gradio.Error(str(error)) from error
            tiles = [(enlarged(picture.image), caption({**picture.scores, **picture.parts})) for picture in pictures]
            return [title_of(columns[number], int(step), pictures), tiles]

        triggers = [button.click, page.load] if playground.class_names else [button.click]
        done = gradio.on(triggers, lambda *request: request, [condition, seed, count, *texts], asked)
        for number, slider in enumerate(sliders):
            draw, inputs, outputs = partial(draw_column, number), [slider, asked], [*shown[number]]
            # One column after another; each is shown as soon as it is done.
            done = done.success(draw, inputs, outputs)
            if len(columns[number].steps) > 1:
                # While the slider is dragged, only the last position is drawn once the one before is done.
                slider.change(draw, inputs, outputs, trigger_mode="always_last")
    return page


def launch(page: Any, host: str, port: int, share: bool = False, wait: bool = True) -> None:
    """Serve the page; return when the user interrupts, or at once with `wait` False.

    Raises:
        UserError: the port cannot be used.
    """
    try:
        page.launch(
            server_name=host, server_port=port, share=share, prevent_thread_lock=not wait, quiet=not wait,
            footer_links=[], css=STYLE,
        )  # fmt: skip
    except OSError as error:
        reason = str(error).partition(".")[0]
        raise UserError(f"port: {port} of {host} cannot be used ({reason}); give another --port") from error


def heading(playground: Playground) -> str:
    """Return the title of the page and the rewards that score its pictures, in Markdown."""
    lines = ["# Sfumato playground"]
    for name, reward in playground.rewards.items():
        terms = " + ".join(f"{as_code(part)} × {term.weight:g}" for part, term in reward.parts.items())
        lines.append(f"{as_code(name)}: {terms}")
    return "\n\n".join(lines)


def condition_box(gradio: Any, playground: Playground) -> Any:
    """Return the field for the class, or for the caption, with the captions of the runs as choices."""
    if playground.class_names:
        names = list(playground.class_names)
        # Classes of the same name (ImageNet has two cranes) are told apart by their numbers.
        choices = [(f"{name} ({n})" if names.count(name) > 1 else name, n) for n, name in enumerate(names)]
        return gradio.Dropdown(choices, value=0, label="Class", scale=2)
    captions = list(playground.prompts)
    first = captions[0] if captions else ""
    return gradio.Dropdown(captions, value=first, label="Caption", allow_custom_value=True, scale=2)


def checkpoint_slider(gradio: Any, column: Column) -> Any:
    """Return the slider through the checkpoints of a column, which is hidden if there is only one."""
    steps = column.steps
    return gradio.Slider(
        steps[0], max(steps[-1], 1), value=steps[-1], step=math.gcd(*steps) or 1, visible=len(steps) > 1,
        label=f"Steps of {column.name}", info=f"checkpoints: {', '.join(map(str, steps))}",
    )  # fmt: skip


def show_column(gradio: Any, column: Column) -> tuple[Any, Any]:
    """Return the title and the gallery of a column."""
    with gradio.Column(min_width=SIDE):
        title = gradio.Markdown(title_of(column, column.steps[-1], []))
        return title, gradio.Gallery(show_label=False, columns=2, format="png", object_fit="contain")


def title_of(column: Column, step: int, pictures: Sequence[Picture]) -> str:
    """Return the title of a column in Markdown: model, checkpoint, and mean rewards of the pictures that have one."""
    title = f"**{as_code(column.name)}**" + (f", step {column.nearest(step)}" if len(column.steps) > 1 else "")
    means = {
        name: Figure.mean([picture.scores[name] for picture in pictures]).value
        for name in (pictures[0].scores if pictures else ())
    }
    return f"{title}, mean {caption(means)}" if means else title


def caption(scores: Mapping[str, float]) -> str:
    """Return the rewards of a picture as text."""
    return ", ".join(f"{name} {'none' if math.isnan(score) else f'{score:.3f}'}" for name, score in scores.items())


def enlarged(image: Image.Image) -> Image.Image:
    """Return a small image with each pixel enlarged, as in `sfumato sample`; others as they are."""
    zoom = max(1, SIDE // image.width)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def as_code(name: str) -> str:
    """Return a name as code in Markdown, in which nothing has a meaning."""
    return f"`{name.replace('`', chr(39))}`"
