"""Extract the commands and the Python code in README.md and docs/."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("sfumato", "torchrun", "python3", "python", "pip", "npm", "source", "export", "curl")
"""First words of shell commands."""


def blocks(page: Path) -> Iterator[str]:
    """Yield the code blocks of a page, fenced and indented, without indentation."""
    text = page.read_text()
    fence = re.compile(r"^```.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    indented = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*\n(?:\n(?= {4}))*)+")
    matches = [*fence.finditer(text), *indented.finditer(fence.sub(lambda m: re.sub(r"[^\n]", "", m[0]), text))]
    for match in matches:
        yield textwrap.dedent(match[1] if match.re is fence else match[0])


def shell_lines(page: Path) -> Iterator[str]:
    """Yield complete shell commands: continued lines are joined, and the parts of `a && b` are separate."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(PROGRAMS):
                yield from (part.strip() for part in line.split("&&"))


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of every `sfumato ...` in code blocks, whichever way it is started."""
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        words = words[: words.index(">")] if ">" in words else words
        if words[0].endswith("sfumato"):
            yield words[1:]
        elif words[0] == "torchrun":
            yield words[words.index("sfumato") + 1 :]


def mentions(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of every `sfumato ...` in text and in tables."""
    for block in re.findall(r"(?<!`)`(sfumato\s[^`]+)`(?!`)", page.read_text()):
        yield shlex.split(block)[1:]


def python_blocks(page: Path) -> Iterator[str]:
    """Yield Python code blocks, without commands that follow in the same block."""
    for block in blocks(page):
        code = "".join(line for line in block.splitlines(keepends=True) if not line.startswith(PROGRAMS))
        if re.search(r"^(import|from|def|class) ", code, re.MULTILINE) and compiles(code):
            yield code


def compiles(code: str) -> bool:
    """Whether code is valid Python; sketches of interfaces are not."""
    try:
        compile(code, "page", "exec")
    except SyntaxError:
        return False
    return True
