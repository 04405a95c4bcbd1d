"""The commands and the Python code that README.md and docs/ show."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("sfumato", "torchrun", "python3", "python", "pip", "npm", "source", "export", "curl")
"""first words of lines that are meant for a shell"""


def blocks(page: Path) -> Iterator[str]:
    """The code blocks of a page, fenced and indented, without their indentation."""
    text = page.read_text()
    fence = re.compile(r"^```.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    indented = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*\n(?:\n(?= {4}))*)+")
    found = [*fence.finditer(text), *indented.finditer(fence.sub(lambda m: re.sub(r"[^\n]", "", m[0]), text))]
    for match in found:
        yield textwrap.dedent(match[1] if match.re is fence else match[0])


def shell_lines(page: Path) -> Iterator[str]:
    """Whole lines for a shell, continued ones joined, each part of `a && b` on its own."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(PROGRAMS):
                yield from (part.strip() for part in line.split("&&"))


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of every `sfumato ...` of the code blocks, however it is started."""
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        if words[0].endswith("sfumato"):
            yield words[1:]
        elif words[0] == "torchrun":
            yield words[words.index("sfumato") + 1 :]


def mentions(page: Path) -> Iterator[list[str]]:
    """Arguments of every `sfumato ...` in the text and in tables."""
    for block in re.findall(r"(?<!`)`(sfumato\s[^`]+)`(?!`)", page.read_text()):
        yield shlex.split(block)[1:]


def python_blocks(page: Path) -> Iterator[str]:
    """Code blocks in Python, without the commands that may stand below."""
    for block in blocks(page):
        code = "".join(line for line in block.splitlines(keepends=True) if not line.startswith(PROGRAMS))
        if re.search(r"^(import|from|def|class) ", code, re.MULTILINE) and compiles(code):
            yield code


def compiles(code: str) -> bool:
    """Whether it is Python: sketches of interfaces are not."""
    try:
        compile(code, "page", "exec")
    except SyntaxError:
        return False
    return True
