"""Requests for ListInstance, and the decoding of its pages."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import VirtualClock, run
from world import StaticCredentials

from exporter.source import DeniedError, MalformedError, QueryError
from exporter.sources.cams.signing import Credentials, authorization, canonical_query
from exporter.sources.cams.source import CamsSource
from exporter.sources.cams.wire import Instance, InstancePage, decode_instances

KEY = Credentials("key", "secret")
CONTOSO = {
    "InstanceId": "29339",
    "InstanceName": " Contoso ",
    "CustSpaceId": "cams-1",
    "ChannelType": "WHATSAPP",
    "State": "published",
    "FacebookBmId": "1",
}


def page(*entries: Any, **fields: Any) -> InstancePage:
    document = {"Code": "OK", "Data": list(entries), "TotalCount": len(entries), **fields}
    return decode_instances(200, {}, json.dumps(document).encode())


def test_all_pages_are_requested_and_signed() -> None:
    requests = []

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        start = (len(requests) - 1) * 50
        entries = [{**CONTOSO, "InstanceId": n, "CustSpaceId": f"cams-{n}"} for n in range(start, min(start + 50, 101))]
        body = json.dumps({"Code": "OK", "Data": entries, "TotalCount": 101}).encode()
        return httpx.Response(200, stream=httpx.ByteStream(body))

    async def main() -> Mapping[str, str]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as http:
            source = CamsSource(http, "https://cams.example", StaticCredentials(KEY), VirtualClock())
            return await source.list_spaces(nullcontext)

    assert run(main()) == {f"cams-{n}": "Contoso" for n in range(101)}
    _, _, request = requests
    assert request.url.query == b"ChannelType=whatsapp&PageIndex=3&PageSize=50"
    assert (request.method, request.headers["x-acs-action"]) == ("POST", "ListInstance")
    sent = request.headers["authorization"]
    signed = {name: request.headers[name] for name in sent.split("SignedHeaders=")[1].split(",")[0].split(";")}
    query = canonical_query(dict(parse_qsl(request.url.query.decode())))
    assert sent == authorization("POST", query, signed, request.headers["x-acs-content-sha256"], KEY)


def test_an_entry_is_decoded_to_a_space_with_its_name() -> None:
    assert page(CONTOSO) == InstancePage((Instance("29339", "cams-1", "Contoso"),), 1)


@pytest.mark.parametrize(
    ("changes", "instance"),
    [
        ({"InstanceId": None}, Instance("cams-1", "cams-1", "Contoso")),
        ({"InstanceName": None}, Instance("29339", "cams-1", "")),
        ({"CustSpaceId": 29348393884000}, Instance("29339", "29348393884000", "Contoso")),
        ({"CustSpaceId": ""}, Instance("29339", "", "Contoso")),
        ({"CustSpaceId": ["cams-1"]}, Instance("29339", "", "Contoso")),
        ({"CustSpaceId": "cams\0"}, Instance("29339", "", "Contoso")),
        ({"ChannelType": "whatsapp"}, Instance("29339", "cams-1", "Contoso")),
        ({"ChannelType": None}, Instance("29339", "cams-1", "Contoso")),
        ({"ChannelType": "VIBER"}, Instance("29339", "", "Contoso")),
        ({"InstanceName": "x" * 600}, Instance("29339", "cams-1", "x" * 512)),
    ],
)
def test_an_instance_with_missing_or_invalid_fields_or_of_another_channel_is_decoded(
    changes: dict[str, Any], instance: Instance
) -> None:
    assert page({**CONTOSO, **changes}).instances == (instance,)


@pytest.mark.parametrize("entry", [None, 5, "cams-1", [], {}, {"CustSpaceId": ""}, {"InstanceName": "Contoso"}])
def test_an_entry_without_an_id_is_ignored_but_included_in_the_total(entry: object) -> None:
    assert page(CONTOSO, entry) == InstancePage((Instance("29339", "cams-1", "Contoso"),), 2)


def test_a_null_list_of_instances_is_an_empty_page() -> None:
    assert page(Data=None, TotalCount="0") == InstancePage((), 0)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"TotalCount": None}, "malformed: TotalCount: expected a number, found ''"),
        ({"TotalCount": -1}, "malformed: TotalCount: expected a number, found '-1'"),
        ({"TotalCount": True}, "malformed: TotalCount: expected a number, found 'True'"),
        ({"TotalCount": [1]}, "malformed: TotalCount: expected a number, found ''"),
        ({"Data": CONTOSO}, "malformed: Data: expected a list, found dict"),
        ({"Data": "[]"}, "malformed: Data: expected a list, found str"),
        ({"Data": [CONTOSO] * 51}, "malformed: Data: expected at most 50, found 51"),
    ],
)
def test_an_invalid_page_is_malformed(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(MalformedError) as caught:
        page(CONTOSO, **fields)

    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("status", "code"), [(403, "NoPermission"), (200, "NoPermission"), (500, "OK"), (200, None), (200, "ok")]
)
def test_a_response_without_code_ok_or_without_http_2xx_is_an_error(status: int, code: str | None) -> None:
    body = json.dumps({"Code": code, "Data": [], "TotalCount": 0, "Success": True}).encode()

    with pytest.raises(QueryError) as caught:
        decode_instances(status, {}, body)

    assert isinstance(caught.value, DeniedError) == (code == "NoPermission")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["CustSpaceId", "InstanceId", "InstanceName", "ChannelType", "State"])


@given(
    st.fixed_dictionaries(
        {"Code": st.just("OK") | json_values},
        optional={
            "Data": st.lists(st.dictionaries(fields, json_values) | json_values) | json_values,
            "TotalCount": st.integers() | json_values,
        },
    )
)
def test_any_json_body_gives_a_page_or_a_query_error(document: Any) -> None:
    try:
        found = decode_instances(200, {}, json.dumps(document).encode())
    except QueryError:
        return
    assert document["Code"] == "OK"
    assert found.total >= 0
    for instance in found.instances:
        assert instance.id
        (instance.space_id + instance.name).encode()  # no lone surrogate
