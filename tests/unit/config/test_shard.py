"""Shards: the accounts, spaces and state file of each process."""

from collections import Counter

import pytest

from exporter.config.effective import UNSHARDED, Shard, effective_settings
from exporter.config.settings import Settings
from exporter.sources.cams.settings import CamsAccount, CamsSpace

FIVE_SHARDS = [Shard(index, 5) for index in range(1, 6)]


def fleet(*names: str, spaces: int = 3) -> Settings:
    configured = [CamsSpace(id=f"cams-{number:05d}") for number in range(spaces)]
    return Settings(accounts=[CamsAccount(name=name, qps=7.3, spaces=configured) for name in names])


def account_names(shard: Shard, settings: Settings) -> list[str]:
    return [account.name for account in effective_settings(settings, {}, shard).accounts]


def test_a_shard_is_parsed_and_formatted_as_index_and_count() -> None:
    assert Shard.parse("2/5") == Shard(2, 5)
    assert str(Shard(2, 5)) == "2/5"


@pytest.mark.parametrize("text", ["", "2", "0/5", "6/5", "1/0", "-1/5", "2/5/1", "2 / 5", "2/5\n", "٢/5", "a/b", "/5"])
def test_an_invalid_shard_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected INDEX/COUNT with INDEX from 1 to COUNT, such as 2/5, found "):
        Shard.parse(text)


def test_an_unsharded_process_has_the_configured_settings() -> None:
    settings = fleet("acme", "globex").model_copy(update={"state_file": "state.db"})

    assert effective_settings(settings, {}, UNSHARDED) == settings


def test_the_shard_of_an_account_does_not_change_between_versions() -> None:
    names = ("acme", "globex", "initech", "soylent", "阿里")
    shards = {name: [str(shard) for shard in FIVE_SHARDS if shard.polls(name)] for name in names}

    assert shards == {
        "acme": ["3/5"],
        "globex": ["5/5"],
        "initech": ["4/5"],
        "soylent": ["2/5"],
        "阿里": ["5/5"],
    }


def test_100_accounts_are_each_polled_by_one_of_five_shards() -> None:
    settings = fleet(*(f"account-{number}" for number in range(100)))

    parts = [account_names(shard, settings) for shard in FIVE_SHARDS]

    assert [len(part) for part in parts] == [23, 19, 14, 26, 18]
    assert Counter(name for part in parts for name in part) == Counter(account.name for account in settings.accounts)


def test_a_shard_polls_all_spaces_of_an_account_with_the_complete_budget() -> None:
    settings = fleet("acme", spaces=100)

    (account,) = effective_settings(settings, {"acme": {"cams-found": "Kopi"}}, Shard(3, 5)).accounts

    assert account == settings.accounts[0]


def test_discovered_spaces_are_polled_by_the_shard_of_their_account() -> None:
    settings = fleet("acme", "globex", spaces=1)
    discovering = [account.model_copy(update={"discover": True}) for account in settings.accounts]
    discovered = {"acme": {"cams-acme": "Kopi"}, "globex": {"cams-globex": "Teh"}}

    effective = effective_settings(Settings(accounts=discovering), discovered, Shard(3, 5))

    assert sorted(effective.spaces) == [("acme", "cams-00000"), ("acme", "cams-acme")]


def test_adding_or_removing_an_account_does_not_move_other_accounts() -> None:
    before, after = fleet("acme", "globex", "initech"), fleet("acme", "globex", "initech", "soylent")

    for shard in FIVE_SHARDS:
        assert account_names(shard, before) == [name for name in account_names(shard, after) if name != "soylent"]


def test_a_shard_can_have_no_accounts() -> None:
    assert [account_names(shard, fleet("acme")) for shard in FIVE_SHARDS] == [[], [], ["acme"], [], []]


def test_each_shard_has_its_own_state_file() -> None:
    settings = fleet("acme").model_copy(update={"state_file": "/var/lib/chatapp-exporter/state.db"})

    effective = effective_settings(settings, {}, Shard(2, 5))
    assert effective.state_file == "/var/lib/chatapp-exporter/state.db.shard-2"
    assert effective_settings(fleet("acme"), {}, Shard(2, 5)).state_file is None
