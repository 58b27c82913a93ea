"""Which spaces are blind: the recorded series, which alerts and dashboards use, and the pages say the same."""

from pathlib import Path
from typing import Any

from incident import RULES, Incident, input_series, record, run_promtool
from world import Exporter

from exporter.model import State
from exporter.web.overview import entries_of

Spaces = set[tuple[str, str]]
"""Account and space."""

SCRIPT: dict[str, Any] = {
    "incident": "Spaces are blind for every reason, and the exporter is restarted while they are",
    "lasts": "9h",
    "accounts": 3,
    "account": {"spaces": "10", "qps": "0.2", "poll_interval": "5m"},
    "spaces_at_start": 9,
    "state_file": True,
    "events": [
        # three spaces fail for themselves, each for another reason; one of them only for a short time
        {"at": "1h", "for": "5h", "space": 1, "answer": "Unknown.ResourceOwnerId"},
        {"at": "1h", "for": "4h", "space": 2, "answer": "InternalError"},
        {"at": "1h", "for": "4m", "space": 3, "answer": "InternalError"},
        # a space that is new, and fails, also over the restart
        {"at": "0s", "for": "5h", "space": 10, "answer": "Authentication.NoAuth"},
        {"at": "90m", "for": "4h", "account": "globex", "answer": "InvalidAccessKeyId.NotFound"},
        {"at": "2h", "for": "3h", "account": "umbrella", "answer": "ServiceUnavailable"},
        # its rate falls, so its effective interval grows
        {"at": "6h", "for": "1h", "answer": "Throttling.User"},
    ],
    "reloads": [{"at": "70m"}],
    "exporter": [{"at": "4h", "down": "2m"}],
}
RESTART = range(240, 243)
"""No page, and then one that knows no state of an account yet."""


def test_the_recorded_series_and_the_pages_call_the_same_spaces_blind(tmp_path: Path) -> None:
    incident = Incident.model_validate(SCRIPT)
    shown: dict[int, Spaces] = {}
    waiting: Spaces = set()

    def watch(minute: int, exporter: Exporter) -> None:
        entries = entries_of(exporter.view.snapshot())
        shown[minute] = {(entry.space.account, entry.space.space.id) for entry in entries if entry.blind}
        waiting.update((e.space.account, e.space.space.id) for e in entries if e.state is State.WAITING and minute > 60)

    world, series = record(incident, watch)
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "group_eval_order": ["chatapp.recording", "chatapp.hourly", "chatapp.alerts"],
        "tests": [
            {
                "interval": "1m",
                "input_series": input_series(series),
                "promql_expr_test": [
                    expected_at(minute, shown[minute - 1], shown[minute])
                    for minute in incident.minutes[1:]
                    if minute not in RESTART
                ],
            }
        ],
    }
    verdict = run_promtool(test, tmp_path)

    assert verdict.returncode == 0, verdict.stderr
    spaces = {account: [space.id for space in of] for account, of in world.api.fleet.spaces.items()}
    ever = set().union(*shown.values())
    assert {("acme", spaces["acme"][position]) for position in (0, 1, 9)} <= ever
    assert {(account, space) for account in ("globex", "umbrella") for space in spaces[account]} <= ever
    assert ("acme", spaces["acme"][2]) not in set().union(*(shown[minute] for minute in range(360) if minute in shown))
    assert ("acme", spaces["acme"][9]) in waiting


def expected_at(minute: int, before: Spaces, now: Spaces) -> dict[str, Any]:
    """What promtool expects; a space that became or ceased to be blind in the last minute may be either."""
    either = " or ".join(
        f'space:chatapp_space_blind:group{{account="{account}",space="{space}"}}'
        for account, space in sorted(before ^ now)
    )
    blind = "group by (account, space) (space:chatapp_space_blind:group)"
    return {
        "expr": f"{blind} unless on (account, space) ({either})" if either else blind,
        "eval_time": f"{minute}m",
        "exp_samples": [
            {"labels": f'{{account="{account}", space="{space}"}}', "value": 1}
            for account, space in sorted(before & now)
        ],
    }
