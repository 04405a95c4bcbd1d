"""What the site adds to the pages: summaries that `sfumato reproduce` wrote, and files beside docs/."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

BESIDE = {"benchmarks/README.md": "benchmarks.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the repository that are pages too, and their names there."""
MARK = re.compile(r"<!-- results.*?-->", re.DOTALL)


def summaries(docs: Path) -> list[Path]:
    """The summaries that are there, by name."""
    return sorted(docs.glob("results/*/summary.md"))


def on_config(config: Any) -> Any:
    """Put every summary into the navigation, after the page of results."""
    docs = Path(config.docs_dir)
    for section in config.nav:
        if "Results" in section:
            section["Results"] += [{path.parent.name: str(path.relative_to(docs))} for path in summaries(docs)]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the files beside docs/."""
    for path, name in BESIDE.items():
        files.append(File.generated(config, name, content=(Path(config.docs_dir).parent / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Links to the files beside docs/ lead to their pages; the page of results lists the summaries and their claims."""
    for path, name in BESIDE.items():
        markdown = markdown.replace(f"](../{path}", f"]({name}")
    if page.file.src_uri != "results.md":
        return markdown
    return MARK.sub(lambda _: "\n".join(listed(path) for path in summaries(Path(config.docs_dir))), markdown)


def listed(summary: Path) -> str:
    """A summary's title, source and claims, and its plot."""
    text, name = summary.read_text(), summary.parent.name
    title = re.search(r"^# (.*)", text, re.MULTILINE)
    source = re.search(r"^\*(.+?)\.?\*", text, re.MULTILINE)
    claims = re.findall(r"^- \*\*.*", text, re.MULTILINE)
    lines = [f"## {title[1] if title else name}", "", f"`{name}`" + (f", {source[1]}" if source else ""), "", *claims]
    lines += ["", f"[![plot of {name}](results/{name}/plot.png)](results/{name}/summary.md)", ""]
    return "\n".join(lines)
