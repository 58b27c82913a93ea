"""The plan of a configuration: whether its spaces fit the budget, and how old values get."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from virtual_time import run
from world import World, scenario

from exporter import sources
from exporter.config.settings import Settings
from exporter.polling.plan import plans_of, warnings


def settings_of(spaces: int, *, max_age: str = "1d", **account: object) -> Settings:
    listed = [{"id": f"space-{number}"} for number in range(spaces)]
    return sources.Settings.model_validate(
        {"accounts": [{"name": "acme", "spaces": listed, **account}], "max_age": max_age}
    )


def warned(settings: Settings) -> list[str]:
    return list(warnings(plans_of(settings), settings.max_age))


def test_check_leaves_nothing_behind(tmp_path: Path) -> None:
    """What root made beside the state file, the service could not write."""

    async def main() -> list[set[str]]:
        world = World(scenario(3), state_file=str(tmp_path / "state.db"))
        path = tmp_path / "exporter.yml"
        path.write_text(world.exporter.view.redacted_config().replace("<secret>", "something"))
        await world.exporter.start()
        await asyncio.sleep(5)
        await world.exporter.stop()
        check(path)
        closed = names_in(tmp_path)
        (tmp_path / "state.db").unlink()
        check(path)
        return [closed, names_in(tmp_path)]

    assert run(main()) == [{"exporter.yml", "state.db"}, {"exporter.yml"}]


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def check(config: Path) -> None:
    command = (sys.executable, "-m", "exporter", "check", "--config.file", str(config))
    subprocess.run(command, capture_output=True, check=True)


def test_the_budget_is_shown_as_configured_as_allowed_now_and_as_needed() -> None:
    async def main() -> list[str]:
        return World(scenario(300, qps=10, poll_interval="20s")).samples("chatapp_account_qps")

    assert run(main()) == [
        "chatapp_account_qps_limit{} 10.0",
        "chatapp_account_qps_current{} 10.0",
        "chatapp_account_qps_needed{} 15.0",
    ]


@pytest.mark.parametrize("spaces", [31, 300, 1501, 3000, 10_000])
def test_what_a_warning_says_would_fit_does_fit(spaces: int) -> None:
    (warning,) = warned(settings_of(spaces, qps=1, poll_interval="30s"))

    qps, interval = re.search(r"qps: (\d+)", warning), re.search(r"poll_interval: (\w+)", warning)

    assert bool(qps) == (spaces <= 272)  # with a tenth of headroom, and the API allows ten
    assert not qps or warned(settings_of(spaces, qps=int(qps[1]), poll_interval="30s")) == []
    assert interval
    assert warned(settings_of(spaces, qps=1, poll_interval=interval[1])) == []


def test_a_max_age_that_polls_cannot_keep_is_told_with_one_that_they_can() -> None:
    (warning,) = warned(settings_of(10, poll_interval="2h", max_age="1h"))

    assert warning == (
        "account acme: values are polled every 2h and removed after max_age 1h, so series will come and go;"
        " max_age: 6h1m would fit"
    )
    assert warned(settings_of(10, poll_interval="2h", max_age="6h1m")) == []


def test_the_log_tells_the_plan_at_the_start_and_what_does_not_fit_once() -> None:
    async def main() -> None:
        world = World(scenario(60, qps=0.5, poll_interval="30s"))
        await world.exporter.start()
        await world.exporter.reconfigure(world.settings)
        (account,) = world.settings.accounts
        slower = account.model_copy(update={"qps": 0.25})
        await world.exporter.reconfigure(world.settings.model_copy(update={"accounts": [slower]}))
        await world.exporter.stop()

    with capture_logs() as logs:
        run(main())

    (plan,) = [line for line in logs if line["event"] == "polling"]
    assert (plan["needed_qps"], plan["effective_interval"], plan["oldest_age"]) == (2, 120, 130)
    assert [line["warning"].split(" are ")[0] for line in logs if line["event"] == "plan does not fit"] == [
        "account acme: 60 spaces at 0.5 queries per second",
        "account acme: 60 spaces at 0.25 queries per second",
    ]
