"""What the panels of all dashboards show at the end of four incidents, and without an exporter. See `worlds.md`."""

import json
from pathlib import Path
from typing import Any

import pytest
from dashboard_worlds import NO_DATA, NO_ROWS, empty_world, panel_texts, record_worlds, table

from dashboards.__main__ import DASHBOARDS, DIRECTORY

DOCUMENTS: list[dict[str, Any]] = [json.loads((DIRECTORY / name).read_text()) for name in DASHBOARDS]
WORLDS = (Path(__file__).parent / "worlds.md").read_text()
RAW = {"Exporters down", "Spaces failing", "Config errors", "File errors"}
"""Panels that read series of the exporter or of Prometheus, without recorded series."""
MAY_SHOW_0 = {
    "healthy": {*RAW, "Accounts down", "Blind spaces", "Clock skew"},
    "exporter down": set[str](),
    "rules missing": RAW,
    "account denied": {*RAW, "Clock skew"} - {"Spaces failing"},
}
"""In each world, the only stat panels that may show 0. All others count existing problems, or have no data."""


def test_each_stat_and_table_panel_shows_the_expected_values_in_each_world() -> None:
    assert table(DOCUMENTS, record_worlds()) == WORLDS


@pytest.mark.parametrize(("column", "world"), list(enumerate(MAY_SHOW_0)))
def test_only_these_stat_panels_show_0(column: int, world: str) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in WORLDS.splitlines() if "(stat)" in line]

    assert f"| panel | {' | '.join(MAY_SHOW_0)} |" in WORLDS
    assert {row[0].removesuffix(" (stat)") for row in rows if row[1 + column] == "0"} == MAY_SHOW_0[world]


def test_without_an_exporter_and_rules_no_panel_shows_a_value() -> None:
    shown = panel_texts(DOCUMENTS, empty_world())

    assert {panel: text for panel, text in shown.items() if text not in (NO_DATA, NO_ROWS)} == {}
