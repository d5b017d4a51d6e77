"""The lines of the trace as the documentation has them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def table(page: Path, first: str) -> list[list[str]]:
    """The rows of the table whose first column is called `first`."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def _described_lines() -> dict[str, tuple[str, set[str]]]:
    rows = table(ROOT / "docs" / "trace.md", "event")
    return {row[0].strip("`"): (row[1], set(re.findall(r"`(\w+)`", row[2]))) for row in rows}


LINES_OF_THE_PAGE = _described_lines()
"""Each line of the trace as the page has it: its level and its keys."""
