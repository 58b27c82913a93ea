"""Write the generated pages into this directory; with --check, report the files that are out of date."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from dashboards.generated import write_or_check
from docs.configuration import configuration_page
from docs.metrics import metrics_page

DIRECTORY = Path(__file__).parent
PAGES: Mapping[str, Callable[[], str]] = {"metrics.md": metrics_page, "configuration.md": configuration_page}


def main(arguments: list[str]) -> int:
    """Generate the pages. Return the exit status."""
    return write_or_check(DIRECTORY, {name: generate() for name, generate in PAGES.items()}, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
