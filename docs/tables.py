"""Tables in Markdown."""

from collections.abc import Iterable


def table(header: str, rows: Iterable[Iterable[str]]) -> str:
    """A table; the header's cells stand between bars. What would end a cell is escaped."""
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *([_cell(text) for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: str) -> str:
    """As what stands in files and on the command line."""
    return f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
