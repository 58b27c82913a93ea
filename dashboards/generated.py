"""Files that are written from code; with --check, which of them are not as it would write them."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def write(folder: Path, texts: Mapping[str, str], arguments: Sequence[str]) -> int:
    """The exit status; `texts` are by the name of their file."""
    different = []
    for name, text in texts.items():
        path = folder / name
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            different.append(name)
    if different:
        sys.stderr.write(f"error: not as written by the code: {', '.join(different)}; run: make generate\n")
    return 1 if different else 0
