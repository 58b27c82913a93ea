"""The recorded series, which dashboards use, and the pages show the same spaces as blind."""

from pathlib import Path
from typing import Any

from incident import Incident, input_series, promtool_document, record_series, run_promtool
from world import Exporter

from exporter.model import State
from exporter.web.overview import entries_of

Spaces = set[tuple[str, str]]
"""Account and space."""

SCRIPT: dict[str, Any] = {
    "incident": "Spaces become blind for different reasons, and the exporter restarts while they are blind",
    "lasts": "9h",
    "accounts": 3,
    "account": {"spaces": "10", "qps": "0.2", "poll_interval": "5m"},
    "spaces_at_start": 9,
    "state_file": True,
    "events": [
        # the polls of three spaces fail, for two different reasons; the third space fails only for 4 minutes
        {"at": "1h", "for": "5h", "space": 1, "answer": "Unknown.ResourceOwnerId"},
        {"at": "1h", "for": "4h", "space": 2, "answer": "InternalError"},
        {"at": "1h", "for": "4m", "space": 3, "answer": "InternalError"},
        # the polls of an added space fail, before and after the restart
        {"at": "0s", "for": "5h", "space": 10, "answer": "Authentication.NoAuth"},
        {"at": "90m", "for": "4h", "account": "globex", "answer": "InvalidAccessKeyId.NotFound"},
        {"at": "2h", "for": "3h", "account": "umbrella", "answer": "ServiceUnavailable"},
        # throttling lowers the request rate, so the effective interval becomes longer
        {"at": "6h", "for": "1h", "answer": "Throttling.User"},
    ],
    "reloads": [{"at": "70m"}],
    "exporter": [{"at": "4h", "down": "2m"}],
}
RESTART = range(240, 243)
"""Minutes without a page, and with a page that does not have the states of the accounts yet."""


def test_recorded_series_and_pages_have_the_same_blind_spaces(tmp_path: Path) -> None:
    incident = Incident.model_validate(SCRIPT)
    blind_spaces: dict[int, Spaces] = {}
    waiting: Spaces = set()

    def on_scrape(minute: int, exporter: Exporter) -> None:
        entries = entries_of(exporter.view.snapshot())
        blind_spaces[minute] = {(entry.space.account, entry.space.space.id) for entry in entries if entry.blind}
        if minute > 60:
            waiting.update((e.space.account, e.space.space.id) for e in entries if e.state is State.WAITING)

    world, series = record_series(incident, on_scrape)
    tests = [
        blind_test(minute, blind_spaces[minute - 1], blind_spaces[minute])
        for minute in incident.minutes[1:]
        if minute not in RESTART
    ]
    result = run_promtool(promtool_document(input_series(series), promql_expr_test=tests), tmp_path)

    assert result.returncode == 0, result.stderr
    ids = {account: [space.id for space in spaces] for account, spaces in world.api.fleet.spaces.items()}
    ever_blind = set().union(*blind_spaces.values())
    assert {("acme", ids["acme"][position]) for position in (0, 1, 9)} <= ever_blind
    assert {(account, space) for account in ("globex", "umbrella") for space in ids[account]} <= ever_blind
    before_throttling = set().union(*(spaces for minute, spaces in blind_spaces.items() if minute < 360))
    assert ("acme", ids["acme"][2]) not in before_throttling
    assert ("acme", ids["acme"][9]) in waiting


def blind_test(minute: int, before: Spaces, now: Spaces) -> dict[str, Any]:
    """Return a test of the blind spaces in this minute. Spaces that changed in the last minute may be blind or not."""
    changed = " or ".join(
        f'space:chatapp_space_blind:group{{account="{account}",space="{space}"}}'
        for account, space in sorted(before ^ now)
    )
    blind = "group by (account, space) (space:chatapp_space_blind:group)"
    return {
        "expr": f"{blind} unless on (account, space) ({changed})" if changed else blind,
        "eval_time": f"{minute}m",
        "exp_samples": [
            {"labels": f'{{account="{account}", space="{space}"}}', "value": 1}
            for account, space in sorted(before & now)
        ],
    }
