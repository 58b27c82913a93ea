"""Markdown tables."""

from collections.abc import Iterable


def table(header: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a table. The columns of the header are separated by " | ". Cells are escaped."""
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *([_cell(text) for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: str) -> str:
    """Format a key, a flag or a value as code."""
    return f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
