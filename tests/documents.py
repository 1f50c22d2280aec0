"""The documents as data: README, CONTRIBUTING and the pages of docs/. In: their Markdown. Out: code blocks, commands,
tables by heading."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Real recordings beside the checkout; absent in most places.
SHARED = ROOT.parent / "shared"
#: What users and contributors read, from the root.
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))


@dataclass(frozen=True)
class Block:
    """A fenced block: the heading it stands under, its language, its text."""

    heading: str
    language: str
    text: str


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str | None = None, heading: str | None = None) -> list[Block]:
    found: list[Block] = []
    title, inside, lines = "", None, list[str]()
    for line in text_of(name).splitlines():
        if inside is None and (head := re.match(r"#+ (.*)", line)):
            title = head[1].replace("`", "")
        elif inside is None and (fence := re.match(r"```(\w+)$", line)):
            inside, lines = fence[1], []
        elif inside is not None and line == "```":
            found.append(Block(title, inside, "\n".join(lines) + "\n"))
            inside = None
        elif inside is not None:
            lines.append(line)
    assert inside is None, f"{name}: a block is not closed"
    return [b for b in found if language in (None, b.language) and heading in (None, b.heading)]


def commands(name: str, heading: str | None = None) -> list[list[str]]:
    """Commands of the shell blocks of a document, as words."""
    text = "".join(block.text for block in blocks(name, "sh", heading))
    return [words for line in text.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]


def section_of(heading: str) -> tuple[str, str]:
    """The one document with this heading, and what stands under it up to the next one."""
    pattern = re.compile(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
    found = [(name, section[1]) for name in DOCUMENTS for section in pattern.finditer(text_of(name))]
    assert len(found) == 1, f"heading {heading!r}: {[name for name, _ in found] or 'nowhere'}, expected it once"
    return found[0]


def table(heading: str, first: str) -> list[list[str]]:
    """Rows of the table under a heading, in whichever document, whose first column has this title: cells as they stand."""
    name, section = section_of(heading)
    rows = re.search(rf"^\| {re.escape(first)}[^|]*\|.*\n\|[ \-|]+\|\n((?:\|.*\n)*)", section, re.MULTILINE)
    assert rows is not None, f"{name}, {heading}: no table that begins with {first!r}"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[1].splitlines()]


def words(cells: list[list[str]], column: int = 0) -> list[str]:
    """What stands in backticks in a column of a table."""
    return [word for row in cells for word in re.findall(r"`([^`]+)`", row[column])]
