"""The simulated API. It checks signature, date, nonce and rate limit as strictly as the real gateway, and returns
the same errors.

The demo serves the Starlette application on a loopback socket. Tests call it in process, with httpx's ASGI transport.
"""

import asyncio
import hashlib
import hmac
import re
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from random import Random
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from exporter.clock import Clock
from exporter.simulator.fleet import Fleet
from exporter.simulator.scenario import Scenario, SimulatedAccount
from exporter.sources.cams.signing import Credentials, authorization, canonical_query
from exporter.sources.cams.wire import DATE_FORMAT, LIST_INSTANCES, QUERY_PHONE_NUMBERS, VERSION

_AUTHORIZATION = re.compile(
    r"ACS3-HMAC-SHA256 Credential=(?P<id>[^,]+),SignedHeaders=(?P<names>[^,]+),Signature=(?P<signature>[0-9a-f]{64})"
)
_DATE_TOLERANCE_SECONDS = 900
_WINDOW_SECONDS = 1 - 1e-6
"""1 second, minus a margin for floating-point errors."""
_ERRORS: Mapping[str, tuple[int, str]] = {
    "Throttling.User": (400, "Request was denied due to user flow control."),
    "System.LimitControl": (400, "The system is under flow control."),
    "InvalidAccessKeyId.NotFound": (404, "Specified access key is not found."),
    "SignatureDoesNotMatch": (400, "Specified signature does not match our calculation."),
    "IncompleteSignature": (400, "The request signature does not conform to the standards."),
    "InvalidTimeStamp.Expired": (400, "Specified time stamp or date value is expired."),
    "SignatureNonceUsed": (400, "Specified signature nonce was used already."),
    "NoPermission": (403, "You are not authorized to perform this action."),
    "Ram.PermissionDeny": (400, "You are not authorized to perform the operation."),
    "Product.Unsubscript": (400, "You have not subscribed to the specified product."),
    "Unknown.ResourceOwnerId": (400, "The resource does not belong to the current user."),
    "Authentication.NoAuth": (200, "You do not have the permission."),
    "InternalError": (500, "The request processing has failed due to some unknown error."),
    "ServiceUnavailable": (503, "The request has failed due to a temporary failure of the server."),
}
"""Maps an error Code to its HTTP status and message. The default status is 400."""


class _ApiError(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class SimulatedApi:
    """The state of the simulated API: accounts, recent requests and nonces."""

    def __init__(self, scenario: Scenario, clock: Clock) -> None:
        self.scenario = scenario
        self.fleet = Fleet(scenario)
        self._clock = clock
        self._started = clock.monotonic()
        self._keys = {account.access_key_id: account for account in scenario.accounts}
        self._request_times: dict[str, deque[float]] = {name: deque() for name in self.fleet.accounts}
        self._nonces: dict[str, float] = {}
        self._request_ids = Random(scenario.seed)

    def respond(self, method: str, query: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Return the response to a request. `query` is not decoded. `headers` must be case-insensitive."""
        try:
            if method != "POST":
                raise _ApiError("UnsupportedHTTPMethod")
            parameters = dict(parse_qsl(query, keep_blank_values=True))
            account = self._authenticate(method, parameters, headers, body)
            action = headers["x-acs-action"]
            self._check_account(account, action)
            operation = self._list_instances if action == LIST_INSTANCES else self._query_phone_numbers
            return operation(account, parameters)
        except _ApiError as error:
            return self._error(error.code)

    def _authenticate(
        self, method: str, parameters: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> SimulatedAccount:
        claimed = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
        if not claimed:
            raise _ApiError("IncompleteSignature")
        account = self._keys.get(claimed["id"])
        if not account:
            raise _ApiError("InvalidAccessKeyId.NotFound")
        credentials = Credentials(account.access_key_id, account.access_key_secret)
        signed = _signed_headers(headers, claimed["names"])
        body_sha256 = hashlib.sha256(body).hexdigest()
        expected = authorization(method, canonical_query(parameters), signed, body_sha256, credentials)
        if not hmac.compare_digest(expected, claimed[0]) or headers.get("x-acs-content-sha256") != body_sha256:
            raise _ApiError("SignatureDoesNotMatch")
        self._check_headers(headers)
        return account

    def _check_headers(self, headers: Mapping[str, str]) -> None:
        if headers.get("x-acs-action") not in (QUERY_PHONE_NUMBERS, LIST_INSTANCES):
            raise _ApiError("InvalidAction.NotFound")
        if headers.get("x-acs-version") != VERSION:
            raise _ApiError("InvalidVersion")
        now = self._clock.now()
        if abs(_unix_time(headers.get("x-acs-date", "")) - now) > _DATE_TOLERANCE_SECONDS:
            raise _ApiError("InvalidTimeStamp.Expired")
        while self._nonces and next(iter(self._nonces.values())) < now - 2 * _DATE_TOLERANCE_SECONDS:
            del self._nonces[next(iter(self._nonces))]
        nonce = headers.get("x-acs-signature-nonce", "")
        if not nonce or nonce in self._nonces:
            raise _ApiError("SignatureNonceUsed")
        self._nonces[nonce] = now

    def _check_account(self, account: SimulatedAccount, action: str) -> None:
        """Raise an error if the rate limit is exceeded, or if an event sets an error for the account."""
        now, request_times = self._clock.monotonic(), self._request_times[account.name]
        while request_times and request_times[0] <= now - _WINDOW_SECONDS:
            request_times.popleft()
        if len(request_times) >= self.scenario.limit_qps:
            raise _ApiError("Throttling.User")
        request_times.append(now)
        if code := self.fleet.account_error_at(account.name, action, now - self._started):
            raise _ApiError(code)

    def _query_phone_numbers(self, account: SimulatedAccount, parameters: Mapping[str, str]) -> Response:
        elapsed = self._clock.monotonic() - self._started
        space = self.fleet.find(account.name, parameters.get("CustSpaceId"))
        if not space:
            raise _ApiError("Unknown.ResourceOwnerId")
        if code := space.error_at(elapsed):
            raise _ApiError(code)
        return self._success({"PhoneNumbers": space.numbers_at(elapsed)})

    def _list_instances(self, account: SimulatedAccount, parameters: Mapping[str, str]) -> Response:
        page, size = (parameters.get(name, "") for name in ("PageIndex", "PageSize"))
        if not re.fullmatch("[1-9][0-9]{0,3}", page) or not re.fullmatch("[1-9][0-9]?|100", size):
            raise _ApiError("InvalidParameter")
        spaces = self.fleet.spaces[account.name] if parameters.get("ChannelType", "whatsapp") == "whatsapp" else []
        listed = [space.instance for space in spaces[(int(page) - 1) * int(size) :][: int(size)]]
        return self._success({"Data": listed, "TotalCount": len(spaces), "Success": True})

    def _success(self, content: Mapping[str, Any]) -> Response:
        request_id = self._request_id()
        document = {
            "RequestId": request_id,
            "Code": "OK",
            "Message": "SUCCESS",
            **content,
            "AccessDeniedDetail": "None",
        }
        return JSONResponse(document, headers={"x-acs-request-id": request_id})

    def _error(self, code: str) -> Response:
        status, message = _ERRORS.get(code, (400, code))
        request_id = self._request_id()
        document = {"RequestId": request_id, "HostId": "simulator", "Code": code, "Message": message}
        headers = {"x-acs-request-id": request_id}
        if code.startswith("Throttling"):
            headers["x-acs-retry-after"] = "1000"
        return JSONResponse(document, status_code=status, headers=headers)

    def _request_id(self) -> str:
        return f"{self._request_ids.getrandbits(128):032X}"


def create_simulator(api: SimulatedApi) -> Starlette:
    """Create the application. A response takes 0.5 to 1.5 times the latency, half of it before the checks."""
    random = Random(api.scenario.seed)

    async def query(request: Request) -> Response:
        delay = api.scenario.latency * random.uniform(0.25, 0.75)
        await asyncio.sleep(delay)
        response = api.respond(request.method, request.url.query, request.headers, await request.body())
        await asyncio.sleep(delay)
        return response

    return Starlette(routes=[Route("/", query, methods=["GET", "POST"])])


def _signed_headers(headers: Mapping[str, str], names: str) -> dict[str, str]:
    """Return the signed headers. `host` and all `x-acs-*` headers must be signed."""
    listed = names.split(";")
    required = {"host"} | {name.lower() for name in headers if name.lower().startswith("x-acs-")}
    if not required.issubset(listed) or any(name not in headers for name in listed):
        raise _ApiError("IncompleteSignature")
    return {name: headers[name] for name in listed}


def _unix_time(date: str) -> float:
    try:
        return datetime.strptime(date, DATE_FORMAT).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
