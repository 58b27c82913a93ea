"""Which accounts fall to which of several processes."""

from collections import Counter

import pytest

from exporter.config.effective import UNSHARDED, Shard, effective_settings
from exporter.config.settings import Settings
from exporter.sources.cams.settings import CamsAccount, CamsSpace

FIVE = [Shard(index, 5) for index in range(1, 6)]


def fleet(*names: str, spaces: int = 3) -> Settings:
    listed = [CamsSpace(id=f"cams-{number:05d}") for number in range(spaces)]
    return Settings(accounts=[CamsAccount(name=name, qps=7.3, spaces=listed) for name in names])


def accounts(shard: Shard, settings: Settings) -> list[str]:
    return [account.name for account in effective_settings(settings, {}, shard).accounts]


def test_a_shard_is_written_as_it_is_read() -> None:
    assert Shard.parse("2/5") == Shard(2, 5)
    assert str(Shard(2, 5)) == "2/5"


@pytest.mark.parametrize("text", ["", "2", "0/5", "6/5", "1/0", "-1/5", "2/5/1", "2 / 5", "2/5\n", "٢/5", "a/b", "/5"])
def test_anything_else_is_no_shard(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected INDEX/COUNT with INDEX from 1 to COUNT, such as 2/5, found "):
        Shard.parse(text)


def test_one_process_has_everything_as_it_is_configured() -> None:
    settings = fleet("acme", "globex").model_copy(update={"state_file": "state.db"})

    assert effective_settings(settings, {}, UNSHARDED) == settings


def test_which_shard_polls_an_account_is_a_part_of_the_contract() -> None:
    names = ("acme", "globex", "initech", "soylent", "阿里")
    shards = {name: [str(shard) for shard in FIVE if shard.polls(name)] for name in names}

    assert shards == {
        "acme": ["3/5"],
        "globex": ["5/5"],
        "initech": ["4/5"],
        "soylent": ["2/5"],
        "阿里": ["5/5"],
    }


def test_100_accounts_are_each_polled_by_one_of_five_shards() -> None:
    settings = fleet(*(f"account-{number}" for number in range(100)))

    parts = [accounts(shard, settings) for shard in FIVE]

    assert [len(part) for part in parts] == [23, 19, 14, 26, 18]
    assert Counter(name for part in parts for name in part) == Counter(account.name for account in settings.accounts)


def test_an_account_keeps_its_budget_and_all_of_its_spaces() -> None:
    settings = fleet("acme", spaces=100)

    (account,) = effective_settings(settings, {"acme": {"cams-found": "Kopi"}}, Shard(3, 5)).accounts

    assert account == settings.accounts[0]


def test_discovered_spaces_are_polled_by_the_shard_of_their_account() -> None:
    settings = fleet("acme", "globex", spaces=1)
    discovering = [account.model_copy(update={"discover": True}) for account in settings.accounts]
    discovered = {"acme": {"cams-acme": "Kopi"}, "globex": {"cams-globex": "Teh"}}

    effective = effective_settings(Settings(accounts=discovering), discovered, Shard(3, 5))

    assert sorted(effective.spaces) == [("acme", "cams-00000"), ("acme", "cams-acme")]


def test_an_account_that_is_added_or_removed_moves_no_other() -> None:
    before, after = fleet("acme", "globex", "initech"), fleet("acme", "globex", "initech", "soylent")

    for shard in FIVE:
        assert accounts(shard, before) == [name for name in accounts(shard, after) if name != "soylent"]


def test_a_shard_may_have_no_account() -> None:
    assert [accounts(shard, fleet("acme")) for shard in FIVE] == [[], [], ["acme"], [], []]


def test_each_shard_has_a_state_file_of_its_own() -> None:
    settings = fleet("acme").model_copy(update={"state_file": "/var/lib/chatapp-exporter/state.db"})

    effective = effective_settings(settings, {}, Shard(2, 5))
    assert effective.state_file == "/var/lib/chatapp-exporter/state.db.shard-2"
    assert effective_settings(fleet("acme"), {}, Shard(2, 5)).state_file is None
