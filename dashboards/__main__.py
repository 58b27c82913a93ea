"""Write the dashboards' JSON beside this file; with --check, say which is not as it would be written."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from dashboards.exporter_health import exporter_health
from dashboards.fleet import fleet
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
    different = []
    for name, make in DASHBOARDS.items():
        path, text = FOLDER / name, make().json()
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            different.append(name)
    if different:
        sys.stderr.write(f"error: not as written by the code: {', '.join(different)}; run: make generate\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
