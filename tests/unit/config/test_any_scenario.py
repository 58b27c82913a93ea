"""Loading any scenario file gives a fleet or a ConfigError, and raises no other exception."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.problems import ConfigError
from exporter.simulator.fleet import Fleet, load_scenario
from exporter.simulator.scenario import Event, Scenario, SimulatedAccount

plausible = st.sampled_from(["acme", "0", "1", "2", "7", "-1", "30s", "0s", "true", "", "nan", "RED"])
values = st.none() | plausible | st.text(st.characters(codec="utf-8"), max_size=8) | st.lists(plausible, max_size=2)


def mappings_of(model: Any, **strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = [field.alias or name for name, field in model.model_fields.items()]
    return st.fixed_dictionaries({}, optional={name: strategies.get(name, values) for name in names})


valid_values = {"name": st.just("acme"), "access_key_id": st.just("a"), "access_key_secret": st.just("b")}
accounts = st.lists(mappings_of(SimulatedAccount, **valid_values, spaces=st.sampled_from(["1", "2", "x"])), max_size=2)
sets = st.dictionaries(plausible, plausible, max_size=2)
events = st.lists(mappings_of(Event, account=st.sampled_from(["acme", "other"]), set=sets | values), max_size=3)


@given(mappings_of(Scenario, accounts=accounts, events=events) | values)
def test_loading_any_scenario_gives_a_fleet_or_a_config_error(document: object) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "scenario.yml"
        path.write_text(yaml.safe_dump(document))
        try:
            fleet = Fleet(load_scenario(path))
        except ConfigError as error:
            problems = error.problems
            assert problems, document
            return
    for space in (space for spaces in fleet.spaces.values() for space in spaces):
        assert isinstance(space.numbers_at(10), list)
