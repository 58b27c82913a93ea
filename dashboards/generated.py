"""Writes generated files. With --check, compares them instead."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_or_check(directory: Path, texts: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Write each text to its file name in the directory, or with --check report the files that differ. Return the exit
    status."""
    different = []
    for name, text in texts.items():
        path = directory / name
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            different.append(name)
    if different:
        sys.stderr.write(f"error: generated files are out of date: {', '.join(different)}; run: make generate\n")
    return 1 if different else 0
