"""Accounts with the same access key: their total rate limit, and spaces that several of them poll."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from configured import load

from exporter.config.effective import Shard, effective_settings
from exporter.config.problems import ConfigError

ACCESS_KEY_ID = "LTAIq7pW3vXk9RtB2mLs"
KEY = {"access_key_id": ACCESS_KEY_ID, "access_key_secret": "example-secret"}
OTHER_KEY = {"access_key_id": "LTAIother", "access_key_secret": "example-secret"}
ENVIRON = {"ALIBABA_CLOUD_ACCESS_KEY_ID": ACCESS_KEY_ID, "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "example-secret"}
DEFAULT_CHAIN = {"credentials": "default"}
KEY_FILES = {"access_key_id_file": "id", "access_key_secret_file": "secret"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "id").write_text(f"{ACCESS_KEY_ID}\n")
    (tmp_path / "secret").write_text("example-secret\n")
    return tmp_path / "config.yml"


def write_config(path: Path, *accounts: Mapping[str, Any]) -> Path:
    with_names = [{"name": f"account-{number}", **account} for number, account in enumerate(accounts, 1)]
    path.write_text(yaml.safe_dump({"accounts": with_names}, sort_keys=False, default_flow_style=None, width=1000))
    return path


def problems(path: Path, environ: Mapping[str, str]) -> list[str]:
    try:
        load(path, environ)
    except ConfigError as error:
        return str(error).replace(f"{path}:", "").splitlines()
    return []


def places(found: list[str]) -> list[str]:
    return [problem.split(": ")[1] for problem in found]


def warnings(path: Path, *accounts: Mapping[str, Any]) -> list[str]:
    file = write_config(path, *({"qps": 1, **account} for account in accounts))
    return list(load(file, ENVIRON).shared_space_warnings)


SAME_KEY = {
    "literals": ([KEY, KEY], {}),
    "files": ([KEY_FILES, KEY_FILES], {}),
    "the environment": ([{}, {}], ENVIRON),
    "a literal and a file": ([KEY, KEY_FILES], {}),
    "a literal and the environment": ([KEY, {}], ENVIRON),
    "a file and the environment": ([KEY_FILES, {}], ENVIRON),
    "different secrets": ([KEY, {**KEY, "access_key_secret": "another"}], {}),
    "different endpoints": ([KEY, {**KEY, "endpoint": "https://cams.eu-central-1.aliyuncs.com"}], {}),
    "a loopback endpoint": ([KEY, {**KEY, "endpoint": "http://127.0.0.1:1"}], {}),
}


@pytest.mark.parametrize(("accounts", "environ"), SAME_KEY.values(), ids=SAME_KEY.keys())
def test_accounts_with_the_same_access_key_have_at_most_10_qps_in_total(
    path: Path, accounts: list[dict[str, str]], environ: Mapping[str, str]
) -> None:
    first, second = accounts

    assert problems(write_config(path, {**first, "qps": 4}, {**second, "qps": 6}), environ) == []
    (problem,) = problems(write_config(path, {**first, "qps": 4}, {**second, "qps": 6.5}), environ)
    assert problem == (
        "3: accounts[1].qps: expected a total of at most 10 for all accounts with the same access key,"
        " found 10.5 ('account-1' 4, 'account-2' 6.5)"
    )


DIFFERENT_KEYS = {
    "literals": ([KEY, OTHER_KEY], {}),
    "a file and a literal": ([KEY_FILES, OTHER_KEY], {}),
    "a literal and the environment": ([OTHER_KEY, {}], ENVIRON),
    "one secret for two ids": ([KEY, {**KEY, "access_key_id": "LTAIother"}], {}),
}


@pytest.mark.parametrize(("accounts", "environ"), DIFFERENT_KEYS.values(), ids=DIFFERENT_KEYS.keys())
def test_accounts_with_different_access_keys_have_10_qps_each(
    path: Path, accounts: list[dict[str, str]], environ: Mapping[str, str]
) -> None:
    file = write_config(path, *({**account, "qps": 10} for account in accounts))

    assert problems(file, environ) == []
    assert load(file, environ).shared_space_warnings == ()


@pytest.mark.parametrize(
    "qps", [[3.3333, 3.3333, 3.3334], [1] * 10, [0.4] * 25, [0.05] * 200, [0.01] * 1000, [10 / 3] * 3, [9.9, 0.1], [10]]
)
def test_a_total_of_10_qps_is_accepted_despite_rounding(path: Path, qps: list[float]) -> None:
    assert problems(write_config(path, *({**KEY, "qps": account_qps} for account_qps in qps)), {}) == []


@pytest.mark.parametrize(("qps", "total"), [([5] * 3, "15"), ([3.3334] * 3, "10.0002"), ([10, 0.001], "10.001")])
def test_a_total_above_10_qps_is_an_error(path: Path, qps: list[float], total: str) -> None:
    (problem,) = problems(write_config(path, *({**KEY, "qps": account_qps} for account_qps in qps)), {})

    assert f"access key, found {total} (" in problem


def test_the_total_includes_default_qps_and_the_error_has_the_line_of_the_last_account(path: Path) -> None:
    path.write_text("accounts:\n- name: acme\n- name: globex\n- name: initech\n")

    assert problems(path, ENVIRON) == [
        "4: accounts[2].qps: expected a total of at most 10 for all accounts with the same access key,"
        " found 15 ('acme' 5, 'globex' 5, 'initech' 5)"
    ]


def test_shared_keys_above_the_limit_are_reported_with_all_other_errors_and_not_shown(path: Path) -> None:
    unknown_key, incomplete_key = {**OTHER_KEY, "max_agee": 1}, {"security_token_file": "id"}
    accounts: list[dict[str, Any]] = [KEY, OTHER_KEY, KEY, OTHER_KEY, unknown_key, incomplete_key]

    found = problems(write_config(path, *({**account, "qps": 9} for account in accounts)), {})

    assert places(found) == [
        "accounts[2].qps",
        "accounts[3].qps",
        "accounts[4].max_agee",
        "accounts[5].access_key_id",
        "accounts[5].access_key_secret",
    ]
    assert ACCESS_KEY_ID not in "".join(found)
    assert "LTAI" not in "".join(found)


def test_the_total_includes_accounts_with_an_incomplete_key(path: Path) -> None:
    found = problems(write_config(path, {**KEY, "qps": 9}, {"access_key_id": ACCESS_KEY_ID, "qps": 9}), {})

    assert places(found) == ["accounts[1].access_key_secret", "accounts[1].qps"]


def test_accounts_with_the_same_key_are_polled_by_one_shard_for_any_number_of_shards(path: Path) -> None:
    names = [f"account-{number}" for number in range(20)]
    with_same_key = ({**KEY, "name": name, "qps": 0.5} for name in names)
    settings = load(write_config(path, *with_same_key, {**OTHER_KEY, "name": "other"}), {})

    for count in (1, 2, 5, 100):
        shards = [effective_settings(settings, {}, Shard(index, count)).accounts for index in range(1, count + 1)]
        polled = [[account.name for account in shard if account.name != "other"] for shard in shards]
        assert sorted(map(len, polled))[-2:] in ([20], [0, 20])
        assert Shard(polled.index(names) + 1, count).polls("account-0")


def test_accounts_without_a_readable_key_share_no_rate_limit(path: Path) -> None:
    found = problems(write_config(path, {"qps": 9}, {"qps": 9}), {})

    assert [place.partition(".")[2] for place in places(found)] == ["access_key_id", "access_key_secret"] * 2


def test_the_default_chain_counts_as_one_key_or_as_the_key_of_the_environment(path: Path) -> None:
    chain = {**DEFAULT_CHAIN, "qps": 6}

    def totals(*accounts: Mapping[str, Any], environ: Mapping[str, str]) -> list[str]:
        found = problems(write_config(path, *accounts), environ)
        return [problem.partition("found ")[2] for problem in found if ".qps: " in problem]

    assert totals(chain, chain, environ={}) == ["12 ('account-1' 6, 'account-2' 6)"]
    assert totals(chain, {"qps": 5}, environ=ENVIRON) == ["11 ('account-1' 6, 'account-2' 5)"]
    assert totals(chain, {**KEY, "qps": 5}, environ=ENVIRON) == ["11 ('account-1' 6, 'account-2' 5)"]
    assert totals(chain, {**KEY, "qps": 5}, environ={}) == []
    assert totals(chain, {**OTHER_KEY, "qps": 5}, environ=ENVIRON) == []


def test_a_space_polled_by_two_accounts_with_the_same_key_is_a_warning(path: Path) -> None:
    found = warnings(path, {"spaces": [{"id": "1"}, {"id": "2"}]}, {**KEY, "spaces": [{"id": "2"}, {"id": "3"}]})

    assert found == [
        "accounts account-1, account-2 have the same access key and poll the same space 2;"
        " configure each space in one account only"
    ]


def test_own_numbers_polled_by_two_accounts_with_the_same_key_are_a_warning(path: Path) -> None:
    assert warnings(path, {}, {"spaces": [{"id": "1"}]}, KEY) == [
        "accounts account-1, account-3 have the same access key and poll the same space own;"
        " configure each space in one account only"
    ]


def test_several_shared_spaces_are_one_warning_for_each_group_of_accounts(path: Path) -> None:
    many = [{"id": f"{number}"} for number in range(8)]
    path.with_name("spaces.yml").write_text("".join(f"- {{id: {number}}}\n" for number in (7, 8)))

    found = warnings(path, {"spaces": many}, {"spaces": many[:7]}, {"space_files": ["spaces.yml"]})

    assert [warning.partition(";")[0] for warning in found] == [
        "accounts account-1, account-2 have the same access key and poll the same spaces 0, 1, 2, 3, 4 and 2 more",
        "accounts account-1, account-3 have the same access key and poll the same space 7",
    ]


def test_discovery_for_one_of_two_accounts_with_the_same_key_is_a_warning(path: Path) -> None:
    discovering, listing = {"discover": True}, {"spaces": [{"id": "1"}]}

    assert warnings(path, discovering, listing, {}) == [
        "accounts account-1, account-2 have the same access key, and may all poll the spaces that are discovered for"
        " account-1; configure each space in one account only"
    ]
    assert len(warnings(path, discovering, discovering)) == 1
    assert warnings(path, discovering, {}) == []
    assert warnings(path, discovering, {**OTHER_KEY, **listing}) == []


@pytest.mark.parametrize("second", [{"spaces": [{"id": "2"}]}, {**OTHER_KEY, "spaces": [{"id": "1"}]}])
def test_different_spaces_or_different_keys_are_not_a_warning(path: Path, second: Mapping[str, Any]) -> None:
    assert warnings(path, {"spaces": [{"id": "1"}]}, second) == []
