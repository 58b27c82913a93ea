"""Decodes the stored responses of QueryChatappPhoneNumbers. An invalid response is an error, never "no numbers"."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import sources
from exporter.model import Answer, Callback, PhoneNumber, unknown_values
from exporter.source import (
    DeniedError,
    MalformedError,
    QueryError,
    RejectedError,
    ServerError,
    ThrottledError,
)
from exporter.sources.cams.wire import decode_phone_numbers

RESPONSES = {
    path.stem: json.loads(path.read_text()) for path in (Path(__file__).parents[2] / "data/responses").iterdir()
}

ONE_NUMBER = ["15550100001"]
FIVE_NUMBERS = [f"1555010000{n}" for n in range(1, 6)]
PHONE_NUMBERS: dict[str, list[str]] = {
    "ok": ["861380000****"],
    "ok_200_success_false_code_ok": ONE_NUMBER,
    "ok_empty": [],
    "ok_missing_fields": FIVE_NUMBERS[:2],
    "ok_multi": FIVE_NUMBERS,
    "ok_phone_numbers_absent": [],
    "ok_phone_numbers_null": [],
    "ok_sdk531_fields": ONE_NUMBER,
    "ok_unknown_enum": FIVE_NUMBERS,
}
ERRORS: dict[str, tuple[type[QueryError], str]] = {
    "clock_expired": (DeniedError, "InvalidTimeStamp.Expired"),
    "denied_400_product_unsubscript": (DeniedError, "Product.Unsubscript"),
    "denied_400_ram_permission_deny": (DeniedError, "Ram.PermissionDeny"),
    "denied_400_unknown_resource_owner": (RejectedError, "Unknown.ResourceOwnerId"),
    "denied_403_no_permission": (DeniedError, "NoPermission"),
    "denied_404_access_key": (DeniedError, "InvalidAccessKeyId.NotFound"),
    "error_lower_case_keys": (ThrottledError, "Throttling"),
    "error_xml": (DeniedError, "Forbidden.RAM"),
    "ok_200_not_json": (MalformedError, "malformed"),
    "ok_200_system_limit_control": (ThrottledError, "System.LimitControl"),
    "ok_200_with_error_code": (RejectedError, "Authentication.NoAuth"),
    "server_500": (ServerError, "InternalError"),
    "server_502_empty": (ServerError, "http_502"),
    "server_503": (ServerError, "ServiceUnavailable"),
    "server_503_html": (ServerError, "http_503"),
    "signature_mismatch": (DeniedError, "SignatureDoesNotMatch"),
    "throttled_429": (ThrottledError, "Throttling"),
    "throttled_ratelimit_header": (ThrottledError, "Throttling.Api"),
    "throttled_system_limit_control": (ThrottledError, "System.LimitControl"),
    "throttled_user_no_header": (ThrottledError, "Throttling.User"),
    "throttled_user_retry_after": (ThrottledError, "Throttling.User"),
    "token_expired": (DeniedError, "InvalidSecurityToken.Expired"),
}
RETRY_AFTER_SECONDS = {
    "error_lower_case_keys": None,
    "ok_200_system_limit_control": None,
    "throttled_429": 3.0,
    "throttled_ratelimit_header": 2.0,
    "throttled_system_limit_control": None,
    "throttled_user_no_header": None,
    "throttled_user_retry_after": 0.25,
}


def decode(name: str) -> Answer:
    stored = RESPONSES[name]
    body = stored["raw_body"] if "raw_body" in stored else json.dumps(stored["body"])
    return decode_phone_numbers(stored["http_status"], httpx.Headers(stored["headers"]), body.encode())


def decode_document(document: Any, status: int = 200) -> Answer:
    return decode_phone_numbers(status, {}, json.dumps(document).encode())


def test_each_of_the_31_stored_responses_has_an_expected_result() -> None:
    assert len(RESPONSES) == 31
    assert set(RESPONSES) == set(PHONE_NUMBERS) | set(ERRORS)


@pytest.mark.parametrize("name", PHONE_NUMBERS)
def test_a_successful_response_is_decoded_to_its_phone_numbers(name: str) -> None:
    assert [number.phone_number for number in decode(name).phone_numbers] == PHONE_NUMBERS[name]


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_response_raises_its_error_class_with_code_and_request_id(name: str) -> None:
    error_class, code = ERRORS[name]

    with pytest.raises(QueryError) as caught:
        decode(name)

    assert type(caught.value) is error_class
    assert caught.value.code == code
    assert caught.value.request_id == "90E63D28-E31D-1EB2-8939-A94866411B20"


def test_each_throttling_response_has_an_expected_retry_after_value() -> None:
    assert set(RETRY_AFTER_SECONDS) == {
        name for name, (error_class, _) in ERRORS.items() if error_class is ThrottledError
    }


@pytest.mark.parametrize("name", RETRY_AFTER_SECONDS)
def test_the_retry_after_value_is_decoded_from_a_throttling_response(name: str) -> None:
    with pytest.raises(ThrottledError) as caught:
        decode(name)

    assert caught.value.wait_seconds == RETRY_AFTER_SECONDS[name]


def test_every_field_of_the_published_sample_is_decoded() -> None:
    assert decode("ok").phone_numbers == (
        PhoneNumber(
            phone_number="861380000****",
            verified_name="Alibaba",
            quality_rating="GREEN",
            messaging_limit_tier="TIER_10K",
            status="CONNECTED",
            name_status="APPROVAL",
            new_name_status="APPROVAL",
            code_verification_status="VERIFIED",
            inbound_callback=Callback.BOTH,
            status_callback=Callback.BOTH,
        ),
    )


def test_rating_tier_and_status_of_five_numbers_are_decoded() -> None:
    assert [(n.quality_rating, n.messaging_limit_tier, n.status) for n in decode("ok_multi").phone_numbers] == [
        ("GREEN", "TIER_10K", "CONNECTED"),
        ("YELLOW", "TIER_1K", "FLAGGED"),
        ("RED", "TIER_250", "RESTRICTED"),
        ("UNKNOWN", "TIER_50", "PENDING"),
        ("GREEN", "TIER_UNLIMITED", "CONNECTED"),
    ]


def test_a_number_with_null_or_missing_fields_is_listed_with_empty_values() -> None:
    answer = decode("ok_missing_fields")

    first, second = answer.phone_numbers
    assert (first.quality_rating, first.messaging_limit_tier, first.status) == ("", "", "CONNECTED")
    assert (second.quality_rating, second.messaging_limit_tier, second.status) == ("", "", "")
    assert answer.entries_without_number == 2


@pytest.mark.parametrize(
    ("reported", "rating"), [("NA", "UNKNOWN"), ("unknown", "UNKNOWN"), ("", ""), (" ", ""), (None, ""), ([], "")]
)
def test_rating_na_becomes_unknown_and_a_missing_rating_is_empty(reported: object, rating: str) -> None:
    document = {"Code": "OK", "PhoneNumbers": [{"PhoneNumber": "1", "QualityRating": reported}]}

    assert decode_document(document).phone_numbers[0].quality_rating == rating
    assert list(unknown_values(decode_document(document).phone_numbers[0], {})) == []


def test_values_are_trimmed_and_upper_cased_and_unknown_values_are_kept_and_reported() -> None:
    limits = sources.Settings.model_validate({"accounts": [{"name": "a"}]}).limits
    numbers = decode("ok_unknown_enum").phone_numbers

    assert [(n.quality_rating, n.messaging_limit_tier, n.status) for n in numbers] == [
        ("UNKNOWN", "TIER_2K", "CONNECTED"),
        ("PURPLE", "TIER_5M", "HIBERNATING"),
        ("GREEN", "UNLIMITED", "OFFLINE"),
        ("GREEN", "TIER_1000", "PAUSED"),
        ("", "TIER_NOT_SET", "CONNECTED"),
    ]
    assert [list(unknown_values(number, limits)) for number in numbers] == [
        [],
        [("quality_rating", "PURPLE"), ("status", "HIBERNATING"), ("messaging_limit_tier", "TIER_5M")],
        [],
        [("messaging_limit_tier", "TIER_1000")],
        [],
    ]


def test_is_official_is_decoded_and_other_new_fields_are_ignored() -> None:
    assert decode("ok_sdk531_fields").phone_numbers[0].is_official == "Y"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"OK"',
        b"\xff\xfe",
        b'{"Code": "OK", "PhoneNumbers": [',
        b"[" * 100_000,
        b'{"PhoneNumbers": []}',
        b'{"Code": null, "PhoneNumbers": []}',
        b'{"Code": "OK", "PhoneNumbers": {"PhoneNumber": "1"}}',
        b'{"Code": "OK", "PhoneNumbers": "none"}',
        b'{"Code": "OK", "PhoneNumbers": [{"Phone": "15550100001"}]}',
        b'{"Code": "OK", "PhoneNumbers": [null, 1]}',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_a_body_in_another_format_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_phone_numbers(200, {}, body)


def test_an_unknown_code_with_http_200_is_rejected() -> None:
    with pytest.raises(RejectedError) as caught:
        decode_document({"Code": "Brand.New", "PhoneNumbers": []})

    assert caught.value.code == "Brand.New"


@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        (302, MalformedError),
        (400, RejectedError),
        (401, DeniedError),
        (403, DeniedError),
        (404, RejectedError),
        (429, ThrottledError),
        (500, ServerError),
        (599, ServerError),
    ],
)
def test_without_a_code_the_http_status_determines_the_error(status: int, error_class: type[QueryError]) -> None:
    with pytest.raises(QueryError) as caught:
        decode_phone_numbers(status, {}, b"")

    assert type(caught.value) is error_class
    assert caught.value.code == ("malformed" if status == 302 else f"http_{status}")


def test_code_ok_with_http_500_is_a_server_error() -> None:
    with pytest.raises(ServerError) as caught:
        decode_document({"Code": "OK", "PhoneNumbers": []}, status=500)

    assert caught.value.code == "http_500"


def test_control_characters_in_an_error_message_are_replaced() -> None:
    with pytest.raises(RejectedError) as caught:
        decode_document({"Code": "New\x1b[2J", "Message": "a\nb\x1b[31m"}, status=400)

    assert str(caught.value) == "New?[2J: a?b?[31m"


def test_a_field_is_cut_to_512_characters() -> None:
    answer = decode_document({"Code": "OK", "PhoneNumbers": [{"PhoneNumber": "1", "VerifiedName": "x" * 10**6}]})

    assert len(answer.phone_numbers[0].verified_name) == 512


def test_a_duplicate_phone_number_is_listed_once() -> None:
    duplicate = {"PhoneNumber": "1", "Status": "CONNECTED"}

    answer = decode_document({"Code": "OK", "PhoneNumbers": [duplicate, {"PhoneNumber": "2"}, duplicate]})

    assert [number.phone_number for number in answer.phone_numbers] == ["1", "2"]


def decode_entries(*entries: Any) -> Answer:
    return decode_document({"Code": "OK", "PhoneNumbers": [{"Status": "CONNECTED", **entry} for entry in entries]})


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ("+15550100001", "15550100001"),
        ("+1 (555) 010-0001", "15550100001"),
        ("+1.555.010.0001", "15550100001"),
        ("\u202a+1\u00a0555\u2009010\u20110001\u202c", "15550100001"),
        ("1 555\u200b010\ufeff\u00ad0001", "15550100001"),
        ("＋１（５５５）０１０－０００１", "15550100001"),
        ("\u0661\u0665\u0665\u0665 010 0001", "15550100001"),
        ("+86 1380000****", "861380000****"),
        ("1555 ext. 3", "1555 ext. 3"),
        ("1555/1556", "1555/1556"),
        ("+1555#", "+1555#"),
    ],
)
def test_only_digits_of_a_phone_number_are_kept_and_other_text_with_a_digit_is_unchanged(
    reported: str, expected: str
) -> None:
    assert [number.phone_number for number in decode_entries({"PhoneNumber": reported}).phone_numbers] == [expected]


@pytest.mark.parametrize(
    "value", [True, False, float("nan"), float("inf"), 1.5, "", "+", "-- --", "n/a", "\u200b", [], {}]
)
def test_an_entry_without_a_digit_in_its_phone_number_is_only_counted(value: object) -> None:
    answer = decode_entries({"PhoneNumber": value}, {"PhoneNumber": "1"})

    assert [number.phone_number for number in answer.phone_numbers] == ["1"]
    assert answer.entries_without_number == 1
    with pytest.raises(MalformedError):
        decode_entries({"PhoneNumber": value})


BAD = {"QualityRating": "RED", "Status": "BANNED", "MessagingLimitTier": "TIER_50", "VerifiedName": "bad"}
GOOD = {"QualityRating": "GREEN", "Status": "CONNECTED", "MessagingLimitTier": "TIER_10K", "VerifiedName": "good"}


@pytest.mark.parametrize(
    ("first", "second", "rating", "status", "tier"),
    [
        (BAD, GOOD, "RED", "BANNED", "TIER_50"),
        (BAD, {"Status": "CONNECTED"}, "RED", "BANNED", "TIER_50"),
        ({"QualityRating": "RED", "Status": None}, {**GOOD, "Status": "BANNED"}, "RED", "BANNED", "TIER_10K"),
        (
            {"QualityRating": "GREEN", "Status": "FLAGGED"},
            {**GOOD, "QualityRating": "YELLOW"},
            "YELLOW",
            "FLAGGED",
            "TIER_10K",
        ),
        ({**GOOD, "QualityRating": None}, GOOD, "", "CONNECTED", "TIER_10K"),
        ({**GOOD, "QualityRating": None}, {**GOOD, "QualityRating": "PURPLE"}, "PURPLE", "CONNECTED", "TIER_10K"),
        ({**GOOD, "MessagingLimitTier": "TIER_5M"}, GOOD, "GREEN", "CONNECTED", "TIER_10K"),
        (
            {**GOOD, "MessagingLimitTier": "TIER_5M"},
            {**GOOD, "MessagingLimitTier": None},
            "GREEN",
            "CONNECTED",
            "TIER_5M",
        ),
    ],
)
def test_two_entries_for_one_number_are_merged_to_their_most_severe_values(
    first: dict[str, Any], second: dict[str, Any], rating: str, status: str, tier: str
) -> None:
    for upper, lower in ((first, second), (second, first)):
        entries = {"PhoneNumber": "+1 555", **upper}, {"PhoneNumber": "1-555", **lower}
        (number,) = decode_entries(*entries).phone_numbers
        assert number.phone_number == "1555"
        assert (number.quality_rating, number.status, number.messaging_limit_tier) == (rating, status, tier)


def test_remaining_fields_of_merged_entries_are_from_the_more_severe_entry() -> None:
    entries = ({"PhoneNumber": "1", **fields} for fields in (GOOD, BAD, GOOD))

    assert [number.verified_name for number in decode_entries(*entries).phone_numbers] == ["bad"]


def test_a_phone_number_can_be_a_json_number() -> None:
    answer = decode_document({"Code": "OK", "PhoneNumbers": [{"PhoneNumber": 15550100001, "Status": ["x"]}]})

    assert answer.phone_numbers == (PhoneNumber("15550100001"),)


def test_an_error_message_is_cut_to_200_characters() -> None:
    with pytest.raises(ServerError) as caught:
        decode_document({"Code": "InternalError", "Message": "x" * 10_000}, status=500)

    assert len(caught.value.detail) == 200


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"x-acs-retry-after": "31536000000000"}, 60.0),
        ({"x-acs-retry-after": "-5"}, None),
        ({"x-acs-retry-after": "nan"}, None),
        ({"x-acs-retry-after": "inf"}, None),
        ({"x-acs-retry-after": "soon", "Retry-After": "2"}, 2.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"x-ratelimit-user": "Limit:1,Remain:0,TimeLeft:1500,Reset:1"}, 1.5),
    ],
)
def test_an_extreme_retry_after_value_is_limited_to_60_s_or_ignored(
    headers: dict[str, str], wait: float | None
) -> None:
    with pytest.raises(ThrottledError) as caught:
        decode_phone_numbers(429, httpx.Headers(headers), b"")

    assert caught.value.wait_seconds == wait


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["PhoneNumber", "QualityRating", "Status", "MessagingLimitTier", "VerifiedName", "UpQueue"])


@given(
    st.fixed_dictionaries(
        {"Code": st.just("OK") | json_values},
        optional={"PhoneNumbers": st.lists(st.dictionaries(fields, json_values) | json_values) | json_values},
    ),
    st.sampled_from([200, 400, 500]),
)
def test_any_json_body_gives_phone_numbers_or_a_query_error(document: Any, status: int) -> None:
    try:
        answer = decode_document(document, status)
    except QueryError:
        return
    assert status == 200
    assert document["Code"] == "OK"
    entries = document.get("PhoneNumbers") or []
    assert len(answer.phone_numbers) + answer.entries_without_number <= len(entries)
    for number in answer.phone_numbers:
        number.verified_name.encode()  # no lone surrogate


@pytest.mark.parametrize(
    "body",
    [
        b"<Response><Code>OK</Code><PhoneNumbers><PhoneNumber>15550001</PhoneNumber></PhoneNumbers></Response>",
        b'["<Code>OK</Code>"]',
        b"<html><Code>OK</Code></html>",
        b'{"Message": "<Code>OK</Code>", "PhoneNumb',
        b'{"Message": "<Code>OK</Code>"}',
        b'{"code": "OK", "phoneNumbers": [{"phoneNumber": "15550001", "qualityRating": "RED"}]}',
        b'{"Code": "OK", "PhoneNumbers": [' + b'{"PhoneNumber": "1"},' * 5000 + b'{"PhoneNumber": "2"}]}',
    ],
)
def test_a_body_that_only_resembles_a_success_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_phone_numbers(200, {}, body)
