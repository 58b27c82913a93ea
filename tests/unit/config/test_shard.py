"""Which spaces and which part of a budget fall to one of several processes."""

from collections import Counter

import pytest

from exporter.config.settings import Account, Settings, Space
from exporter.config.shard import WHOLE, Shard

FIVE = [Shard(index, 5) for index in range(1, 6)]


def fleet(spaces: int, **account: object) -> Settings:
    listed = [Space(id=f"cams-{number:05d}") for number in range(spaces)]
    return Settings(accounts=[Account.model_validate({"name": "acme", "spaces": listed, **account})])


def ids(settings: Settings) -> set[str]:
    return {space.id for account in settings.accounts for space in account.polled_spaces}


def test_a_shard_is_written_as_it_is_read() -> None:
    assert Shard.parse("2/5") == Shard(2, 5)
    assert str(Shard(2, 5)) == "2/5"


@pytest.mark.parametrize("text", ["", "2", "0/5", "6/5", "1/0", "-1/5", "2/5/1", "2 / 5", "2/5\n", "٢/5", "a/b", "/5"])
def test_anything_else_is_no_shard(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a shard such as 2/5, the second of five, found "):
        Shard.parse(text)


def test_one_process_has_everything_as_it_stands() -> None:
    settings = fleet(3, qps=7.3)

    assert WHOLE.of(settings) is settings


def test_where_a_space_goes_is_a_part_of_the_contract() -> None:
    homes = {
        (account, space): [str(shard) for shard in FIVE if shard.takes(account, 10, space)]
        for account in ("acme", "globex")
        for space in ("29348393884000", "29348393884001", "own")
    }

    assert homes == {
        ("acme", "29348393884000"): ["3/5"],
        ("acme", "29348393884001"): ["4/5"],
        ("acme", "own"): ["4/5"],
        ("globex", "29348393884000"): ["5/5"],
        ("globex", "29348393884001"): ["5/5"],
        ("globex", "own"): ["3/5"],
    }


@pytest.mark.parametrize(
    ("qps", "shards", "spaces"),
    [
        (10, 5, [2079, 1932, 1972, 1986, 2031]),
        (5, 3, [4051, 3918, 2031]),
        (3, 5, [0, 0, 3365, 3336, 3299]),
        (0.5, 5, [0, 0, 10_000, 0, 0]),
    ],
)
def test_10_000_spaces_are_each_in_one_shard_in_proportion_to_its_share(
    qps: float, shards: int, spaces: list[int]
) -> None:
    parts = [ids(Shard(index, shards).of(fleet(10_000, qps=qps))) for index in range(1, shards + 1)]

    assert [len(part) for part in parts] == spaces
    assert len(set().union(*parts)) == 10_000


@pytest.mark.parametrize(
    ("qps", "shards", "shares"),
    [
        (10, 5, [2, 2, 2, 2, 2]),
        (5, 3, [2, 2, 1]),
        (7.5, 2, [4 * 7.5 / 7, 3 * 7.5 / 7]),
        (3, 5, [0, 0, 1, 1, 1]),
        (1.9, 5, [0, 0, 1.9, 0, 0]),
        (0.001, 5, [0, 0, 0.001, 0, 0]),
    ],
)
def test_a_budget_is_dealt_out_in_whole_permits_and_nothing_of_it_is_lost(
    qps: float, shards: int, shares: list[float]
) -> None:
    dealt = [Shard(index, shards).share("acme", qps) for index in range(1, shards + 1)]

    assert dealt == pytest.approx(shares)
    assert sum(int(share) for share in dealt) == int(qps)
    assert sum(dealt) == pytest.approx(qps)


def test_accounts_with_little_of_a_budget_are_spread_over_the_shards() -> None:
    accounts = [Account(name=f"account-{number}", qps=1) for number in range(100)]
    settings = Settings(accounts=accounts)

    parts = [shard.of(settings).accounts for shard in FIVE]

    assert [len(part) for part in parts] == [23, 19, 14, 26, 18]
    assert Counter(account.name for part in parts for account in part) == Counter(a.name for a in accounts)
    assert all(account.polls_own_numbers and account.qps == 1 for part in parts for account in part)


def test_a_space_that_comes_or_goes_moves_no_other() -> None:
    before, after = fleet(1000), fleet(1001)

    for shard in FIVE:
        assert ids(shard.of(before)) == ids(shard.of(after)) - {"cams-01000"}


def test_an_account_is_left_out_where_it_has_no_space_and_there_may_be_none_left() -> None:
    parts = [[account.name for account in shard.of(fleet(1)).accounts] for shard in FIVE]

    assert sorted(parts) == [[], [], [], [], ["acme"]]


def test_each_shard_has_a_state_file_of_its_own() -> None:
    settings = fleet(9).model_copy(update={"state_file": "/var/lib/chatapp-exporter/state.db"})

    assert Shard(2, 5).of(settings).state_file == "/var/lib/chatapp-exporter/state.db.shard-2"
    assert Shard(2, 5).of(fleet(9)).state_file is None
