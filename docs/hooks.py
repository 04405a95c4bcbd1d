"""Hooks of the site: they add the summaries that `sfumato reproduce` wrote, and pages from outside docs/."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

BESIDE = {"benchmarks/README.md": "benchmarks.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files outside docs/ that are also pages, and the names of the pages."""
MARK = re.compile(r"<!-- results.*?-->", re.DOTALL)


def summaries(docs: Path) -> list[Path]:
    """Return the existing summaries, sorted by name."""
    return sorted(docs.glob("results/*/summary.md"))


def on_config(config: Any) -> Any:
    """Add every summary and every page of a study to the navigation, after the results page."""
    docs = Path(config.docs_dir)
    for section in config.nav:
        if "Results" in section:
            section["Results"] += [{path.parent.name: str(path.relative_to(docs))} for path in summaries(docs)]
            section["Results"] += [{path.stem: str(path.relative_to(docs))} for path in sorted(docs.glob("study/*.md"))]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the files from outside docs/."""
    for path, name in BESIDE.items():
        files.append(File.generated(config, name, content=(Path(config.docs_dir).parent / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Point links to files outside docs/ to their pages, and list the summaries and claims on the results page."""
    for path, name in BESIDE.items():
        markdown = markdown.replace(f"](../{path}", f"]({name}")
    if page.file.src_uri != "results.md":
        return markdown
    return MARK.sub(lambda _: "\n".join(listed(path) for path in summaries(Path(config.docs_dir))), markdown)


def listed(summary: Path) -> str:
    """Return a section with the title, source, claims and plot of a summary."""
    text, name = summary.read_text(), summary.parent.name
    title = re.search(r"^# (.*)", text, re.MULTILINE)
    source = re.search(r"^\*(.+?)\.?\*", text, re.MULTILINE)
    claims = re.findall(r"^- \*\*.*", text, re.MULTILINE)
    lines = [f"## {title[1] if title else name}", "", f"`{name}`" + (f", {source[1]}" if source else ""), "", *claims]
    lines += ["", f"[![plot of {name}](results/{name}/plot.png)](results/{name}/summary.md)", ""]
    return "\n".join(lines)
