"""The RAM policies allow the API operations that the exporter uses, and no others."""

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


def test_the_policy_allows_only_the_query_of_phone_numbers() -> None:
    assert policy("ram-policy.json") == {"Version": "1", "Statement": [QUERY]}


def test_the_policy_in_the_readme_matches_the_file() -> None:
    (policy,) = re.findall(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)

    assert policy == (CONFIG / "ram-policy.json").read_text()


def test_the_policy_for_discovery_also_allows_listing_instances() -> None:
    assert policy("ram-policy-with-discovery.json") == {"Version": "1", "Statement": [QUERY, LIST]}


def test_the_source_uses_only_the_operations_of_the_policies() -> None:
    members = vars(CamsSource).items()
    operations = {name for name, method in members if iscoroutinefunction(method) and not name.startswith("_")}

    assert operations - {"aclose"} == {"query", "list_spaces"}
    assert [QUERY["Action"], LIST["Action"]] == [f"cams:{QUERY_PHONE_NUMBERS}", f"cams:{LIST_INSTANCES}"]
