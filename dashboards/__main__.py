"""Write the JSON of the dashboards into this directory; with --check, report the files that are out of date."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from dashboards.exporter_health import exporter_health
from dashboards.fleet import fleet
from dashboards.generated import write_or_check
from dashboards.panels import DashboardBuilder
from dashboards.phone_number import phone_number
from dashboards.review import review

DIRECTORY = Path(__file__).parent
DASHBOARDS: Mapping[str, Callable[[], DashboardBuilder]] = {
    "fleet.json": fleet,
    "phone_number.json": phone_number,
    "exporter.json": exporter_health,
    "review.json": review,
}


def main(arguments: list[str]) -> int:
    """Generate the dashboards. Return the exit status."""
    return write_or_check(DIRECTORY, {name: build().json() for name, build in DASHBOARDS.items()}, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
