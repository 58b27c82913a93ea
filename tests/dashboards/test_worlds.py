"""What the panels of all dashboards show at the end of four incidents, and without an exporter. See `worlds.md`."""

import json
from pathlib import Path
from typing import Any

from dashboard_worlds import NO_DATA, NO_ROWS, empty_world, panel_texts, record_worlds, table

from dashboards.__main__ import DASHBOARDS, DIRECTORY

DOCUMENTS: list[dict[str, Any]] = [json.loads((DIRECTORY / name).read_text()) for name in DASHBOARDS]


def test_each_stat_and_table_panel_shows_the_expected_values_in_each_world() -> None:
    assert table(DOCUMENTS, record_worlds()) == (Path(__file__).parent / "worlds.md").read_text()


def test_without_an_exporter_and_rules_no_panel_shows_a_value() -> None:
    shown = panel_texts(DOCUMENTS, empty_world())

    assert {panel: text for panel, text in shown.items() if text not in (NO_DATA, NO_ROWS)} == {}
