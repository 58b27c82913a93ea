"""Write the pages that come from the code beside this file; with --check, say which is not as it would be written."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.configuration import configuration_page
from docs.metrics import metrics_page

FOLDER = Path(__file__).parent
PAGES: Mapping[str, Callable[[], str]] = {"metrics.md": metrics_page, "configuration.md": configuration_page}


def main(arguments: list[str]) -> int:
    """The exit status."""
    different = []
    for name, make in PAGES.items():
        path, text = FOLDER / name, make()
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            different.append(name)
    if different:
        sys.stderr.write(f"error: not as written by the code: {', '.join(different)}; run: make generate\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
