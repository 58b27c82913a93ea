"""Write the dashboards' JSON beside this file; with --check, say which is not as it would be written."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from dashboards.exporter_health import exporter_health
from dashboards.fleet import fleet
from dashboards.generated import write
from dashboards.panels import Page
from dashboards.phone_number import phone_number

FOLDER = Path(__file__).parent
DASHBOARDS: Mapping[str, Callable[[], Page]] = {
    "fleet.json": fleet,
    "phone_number.json": phone_number,
    "exporter.json": exporter_health,
}


def main(arguments: list[str]) -> int:
    """The exit status."""
    return write(FOLDER, {name: make().json() for name, make in DASHBOARDS.items()}, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
