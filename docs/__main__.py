"""Write the pages that come from the code beside this file; with --check, say which is not as it would be written."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from dashboards.generated import write
from docs.configuration import configuration_page
from docs.metrics import metrics_page

FOLDER = Path(__file__).parent
PAGES: Mapping[str, Callable[[], str]] = {"metrics.md": metrics_page, "configuration.md": configuration_page}


def main(arguments: list[str]) -> int:
    """The exit status."""
    return write(FOLDER, {name: make() for name, make in PAGES.items()}, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
