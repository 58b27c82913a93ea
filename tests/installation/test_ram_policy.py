"""The policies that people paste into the RAM console: what the exporter asks for, and nothing more."""

import json
import re
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

from exporter.sources.cams.source import CamsSource
from exporter.sources.cams.wire import LIST_INSTANCES, QUERY_PHONE_NUMBERS

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
QUERY = {"Effect": "Allow", "Action": "cams:QueryChatappPhoneNumbers", "Resource": "*"}
LIST = {"Effect": "Allow", "Action": "cams:ListInstance", "Resource": "acs:cams:*:*:instance/*"}


def policy(name: str) -> Any:
    return json.loads((CONFIG / name).read_text("utf-8"))


def test_a_policy_allows_what_polling_asks_for() -> None:
    assert policy("ram-policy.json") == {"Version": "1", "Statement": [QUERY]}


def test_the_policy_in_the_readme_is_that_of_the_file() -> None:
    (policy,) = re.findall(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)

    assert policy == (CONFIG / "ram-policy.json").read_text()


def test_a_policy_for_discovery_allows_listing_too() -> None:
    assert policy("ram-policy-with-discovery.json") == {"Version": "1", "Statement": [QUERY, LIST]}


def test_the_source_uses_these_operations_and_no_others() -> None:
    members = vars(CamsSource).items()
    operations = {name for name, method in members if iscoroutinefunction(method) and not name.startswith("_")}

    assert operations - {"aclose"} == {"query", "list_spaces"}
    assert [QUERY["Action"], LIST["Action"]] == [f"cams:{QUERY_PHONE_NUMBERS}", f"cams:{LIST_INSTANCES}"]
