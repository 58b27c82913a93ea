"""Accounts with one access key: their queries per second together, and the spaces that they poll twice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from configured import load

from exporter.config.effective import Shard, effective_settings
from exporter.config.problems import ConfigError

MARK = "LTAIq7pW3vXk9RtB2mLs"
KEY = {"access_key_id": MARK, "access_key_secret": "example-secret"}
OTHER = {"access_key_id": "LTAIother", "access_key_secret": "example-secret"}
ENVIRON = {"ALIBABA_CLOUD_ACCESS_KEY_ID": MARK, "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "example-secret"}
CHAIN = {"credentials": "default"}
FILES = {"access_key_id_file": "id", "access_key_secret_file": "secret"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "id").write_text(f"{MARK}\n")
    (tmp_path / "secret").write_text("example-secret\n")
    return tmp_path / "config.yml"


def write(path: Path, *accounts: Mapping[str, Any]) -> Path:
    named = [{"name": f"account-{number}", **account} for number, account in enumerate(accounts, 1)]
    path.write_text(yaml.safe_dump({"accounts": named}, sort_keys=False, default_flow_style=None, width=1000))
    return path


def problems(path: Path, environ: Mapping[str, str]) -> list[str]:
    try:
        load(path, environ)
    except ConfigError as error:
        return str(error).replace(f"{path}:", "").splitlines()
    return []


def places(found: list[str]) -> list[str]:
    return [problem.split(": ")[1] for problem in found]


def twice(path: Path, *accounts: Mapping[str, Any]) -> list[str]:
    return list(load(write(path, *({"qps": 1, **account} for account in accounts)), ENVIRON).shared_space_warnings)


SAME = {
    "literals": ([KEY, KEY], {}),
    "files": ([FILES, FILES], {}),
    "the environment": ([{}, {}], ENVIRON),
    "a literal and a file": ([KEY, FILES], {}),
    "a literal and the environment": ([KEY, {}], ENVIRON),
    "a file and the environment": ([FILES, {}], ENVIRON),
    "different secrets": ([KEY, {**KEY, "access_key_secret": "another"}], {}),
    "different endpoints": ([KEY, {**KEY, "endpoint": "https://cams.eu-central-1.aliyuncs.com"}], {}),
    "an endpoint on this machine": ([KEY, {**KEY, "endpoint": "http://127.0.0.1:1"}], {}),
}


@pytest.mark.parametrize(("accounts", "environ"), SAME.values(), ids=SAME.keys())
def test_accounts_with_one_access_key_have_at_most_10_qps_together(
    path: Path, accounts: list[dict[str, str]], environ: Mapping[str, str]
) -> None:
    first, second = accounts

    assert problems(write(path, {**first, "qps": 4}, {**second, "qps": 6}), environ) == []
    (problem,) = problems(write(path, {**first, "qps": 4}, {**second, "qps": 6.5}), environ)
    assert problem == (
        "3: accounts[1].qps: expected a total of at most 10 for all accounts with the same access key,"
        " found 10.5 ('account-1' 4, 'account-2' 6.5)"
    )


DIFFERENT = {
    "literals": ([KEY, OTHER], {}),
    "a file and a literal": ([FILES, OTHER], {}),
    "a literal and the environment": ([OTHER, {}], ENVIRON),
    "one secret for two ids": ([KEY, {**KEY, "access_key_id": "LTAIother"}], {}),
}


@pytest.mark.parametrize(("accounts", "environ"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_accounts_with_keys_of_their_own_have_10_qps_each(
    path: Path, accounts: list[dict[str, str]], environ: Mapping[str, str]
) -> None:
    file = write(path, *({**account, "qps": 10} for account in accounts))

    assert problems(file, environ) == []
    assert load(file, environ).shared_space_warnings == ()


@pytest.mark.parametrize(
    "qps", [[3.3333, 3.3333, 3.3334], [1] * 10, [0.4] * 25, [0.05] * 200, [0.01] * 1000, [10 / 3] * 3, [9.9, 0.1], [10]]
)
def test_a_sum_of_10_is_not_refused_for_its_rounding(path: Path, qps: list[float]) -> None:
    assert problems(write(path, *({**KEY, "qps": each} for each in qps)), {}) == []


@pytest.mark.parametrize(("qps", "total"), [([5] * 3, "15"), ([3.3334] * 3, "10.0002"), ([10, 0.001], "10.001")])
def test_more_than_10_is_refused_however_it_is_divided(path: Path, qps: list[float], total: str) -> None:
    (problem,) = problems(write(path, *({**KEY, "qps": each} for each in qps)), {})

    assert f"access key, found {total} (" in problem


def test_the_default_counts_and_the_account_s_line_is_named(path: Path) -> None:
    path.write_text("accounts:\n- name: acme\n- name: globex\n- name: initech\n")

    assert problems(path, ENVIRON) == [
        "4: accounts[2].qps: expected a total of at most 10 for all accounts with the same access key,"
        " found 15 ('acme' 5, 'globex' 5, 'initech' 5)"
    ]


def test_each_key_has_an_error_beside_all_others_and_none_shows_a_key(path: Path) -> None:
    accounts: list[dict[str, Any]] = [KEY, OTHER, KEY, OTHER, {**OTHER, "max_agee": 1}, {"security_token_file": "id"}]

    found = problems(write(path, *({**account, "qps": 9} for account in accounts)), {})

    assert places(found) == [
        "accounts[2].qps",
        "accounts[3].qps",
        "accounts[4].max_agee",
        "accounts[5].access_key_id",
        "accounts[5].access_key_secret",
    ]
    assert MARK not in "".join(found)
    assert "LTAI" not in "".join(found)


def test_half_a_key_is_counted_too(path: Path) -> None:
    found = problems(write(path, {**KEY, "qps": 9}, {"access_key_id": MARK, "qps": 9}), {})

    assert places(found) == ["accounts[1].access_key_secret", "accounts[1].qps"]


def test_accounts_with_one_key_are_polled_by_one_shard_in_whatever_number_of_shards(path: Path) -> None:
    names = [f"account-{number}" for number in range(20)]
    of_one_key = ({**KEY, "name": name, "qps": 0.5} for name in names)
    settings = load(write(path, *of_one_key, {**OTHER, "name": "other"}), {})

    for count in (1, 2, 5, 100):
        shards = [effective_settings(settings, {}, Shard(index, count)).accounts for index in range(1, count + 1)]
        polled = [[account.name for account in shard if account.name != "other"] for shard in shards]
        assert sorted(map(len, polled))[-2:] in ([20], [0, 20])
        assert Shard(polled.index(names) + 1, count).polls("account-0")


def test_without_a_readable_key_no_limit_is_shared(path: Path) -> None:
    found = problems(write(path, {"qps": 9}, {"qps": 9}), {})

    assert [place.partition(".")[2] for place in places(found)] == ["access_key_id", "access_key_secret"] * 2


def test_the_default_chain_is_one_key_and_takes_that_of_the_environment_first(path: Path) -> None:
    chain, chain_too = {**CHAIN, "qps": 6}, {**CHAIN, "qps": 6}

    def sums(*accounts: Mapping[str, Any], environ: Mapping[str, str]) -> list[str]:
        found = problems(write(path, *accounts), environ)
        return [problem.partition("found ")[2] for problem in found if ".qps: " in problem]

    assert sums(chain, chain_too, environ={}) == ["12 ('account-1' 6, 'account-2' 6)"]
    assert sums(chain, {"qps": 5}, environ=ENVIRON) == ["11 ('account-1' 6, 'account-2' 5)"]
    assert sums(chain, {**KEY, "qps": 5}, environ=ENVIRON) == ["11 ('account-1' 6, 'account-2' 5)"]
    assert sums(chain, {**KEY, "qps": 5}, environ={}) == []
    assert sums(chain, {**OTHER, "qps": 5}, environ=ENVIRON) == []


def test_a_space_that_two_accounts_with_one_key_poll_is_a_warning(path: Path) -> None:
    found = twice(path, {"spaces": [{"id": "1"}, {"id": "2"}]}, {**KEY, "spaces": [{"id": "2"}, {"id": "3"}]})

    assert found == [
        "accounts account-1, account-2 have the same access key and poll the same space 2;"
        " configure each space in one account only"
    ]


def test_own_numbers_that_two_accounts_with_one_key_poll_are_a_warning(path: Path) -> None:
    assert twice(path, {}, {"spaces": [{"id": "1"}]}, KEY) == [
        "accounts account-1, account-3 have the same access key and poll the same space own;"
        " configure each space in one account only"
    ]


def test_many_spaces_that_are_polled_twice_are_one_warning_for_each_group_of_accounts(path: Path) -> None:
    many = [{"id": f"{number}"} for number in range(8)]
    path.with_name("spaces.yml").write_text("".join(f"- {{id: {number}}}\n" for number in (7, 8)))

    found = twice(path, {"spaces": many}, {"spaces": many[:7]}, {"space_files": ["spaces.yml"]})

    assert [warning.partition(";")[0] for warning in found] == [
        "accounts account-1, account-2 have the same access key and poll the same spaces 0, 1, 2, 3, 4 and 2 more",
        "accounts account-1, account-3 have the same access key and poll the same space 7",
    ]


def test_spaces_that_are_discovered_for_one_of_two_accounts_with_one_key_are_a_warning(path: Path) -> None:
    discovering, listing = {"discover": True}, {"spaces": [{"id": "1"}]}

    assert twice(path, discovering, listing, {}) == [
        "accounts account-1, account-2 have the same access key, and may all poll the spaces that are discovered for"
        " account-1; configure each space in one account only"
    ]
    assert len(twice(path, discovering, discovering)) == 1
    assert twice(path, discovering, {}) == []
    assert twice(path, discovering, {**OTHER, **listing}) == []


@pytest.mark.parametrize("second", [{"spaces": [{"id": "2"}]}, {**OTHER, "spaces": [{"id": "1"}]}])
def test_spaces_of_their_own_or_keys_of_their_own_are_no_warning(path: Path, second: Mapping[str, Any]) -> None:
    assert twice(path, {"spaces": [{"id": "1"}]}, second) == []
