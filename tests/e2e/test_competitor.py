"""Another program uses half of the account's rate limit for seven minutes, with a real process.

tests/integration/test_competitor.py tests more cases in virtual time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest
from hostile import HostileApi
from real_world import RealWorld, real_world

from exporter.sources.cams.signing import Credentials
from exporter.sources.cams.wire import QUERY_PHONE_NUMBERS, encode_request

pytestmark = pytest.mark.slow

LIMIT = 10
MINUTE = 60


@contextmanager
def competitor(api: HostileApi, qps: int) -> Iterator[None]:
    """Send requests with the account's key over another connection until the context ends."""
    stop = Event()

    def send_requests() -> None:
        host, credentials = api.endpoint.removeprefix("http://"), Credentials("key", "secret")
        with httpx.Client(base_url=api.endpoint, trust_env=False) as http:
            for number in count():
                if stop.wait(1 / qps):
                    return
                signed = encode_request(
                    host, QUERY_PHONE_NUMBERS, {}, credentials, now=time.time(), nonce=f"competitor-{number}"
                )
                http.post("/", headers=dict(signed.headers))

    thread = Thread(target=send_requests)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def request_counts(world: RealWorld) -> tuple[float, float, float]:
    """Return the time in monotonic seconds, the number of requests and the number of throttled requests."""
    lines = world.http.get("/metrics").text.splitlines()
    sums = [
        sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))
        for name in ("chatapp_api_requests_total", "chatapp_api_throttled_total")
    ]
    return time.monotonic(), sums[0], sums[1]


def measure(world: RealWorld, seconds: float) -> tuple[float, float]:
    """Return the requests per second and the ratio of throttled requests."""
    start, sent_before, throttled_before = request_counts(world)
    time.sleep(seconds)
    end, sent, throttled = request_counts(world)
    return (sent - sent_before) / (end - start), (throttled - throttled_before) / (sent - sent_before)


def test_a_competitor_causes_few_throttled_requests_and_the_rate_recovers_afterwards(tmp_path: Path) -> None:
    with real_world(tmp_path, spaces=200) as world:
        rate_alone, _ = measure(world, MINUTE / 2)
        with competitor(world.api, LIMIT // 2):
            _, throttled_at_first = measure(world, 5 * MINUTE)
            rate_shared, throttled = measure(world, 2 * MINUTE)
        time.sleep(5 * MINUTE)
        rate_after, _ = measure(world, MINUTE / 2)
        print(
            f"\nrequests per second: {rate_alone:.2f} alone, {rate_shared:.2f} with a competitor with {LIMIT // 2},"
            f" {rate_after:.2f} five minutes after the competitor; throttled: {throttled_at_first:.2%} in the first"
            f" five minutes, {throttled:.2%} in the next two"
        )

        assert throttled < 0.02
        assert rate_shared > LIMIT / 4
        assert rate_after > 0.97 * rate_alone
        assert world.metric('chatapp_account_qps_current{account="acme"}') == "10.0"
