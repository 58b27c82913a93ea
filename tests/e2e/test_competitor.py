"""Someone else uses half of the account's limit for seven minutes, against the real program.

tests/integration/test_competitor.py plays more of it under virtual time.
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
def competitor(api: HostileApi, a_second: int) -> Iterator[None]:
    """Requests of someone else with the account's key, over a connection of its own, while the context lasts."""
    stop = Event()

    def compete() -> None:
        host, credentials = api.endpoint.removeprefix("http://"), Credentials("key", "secret")
        with httpx.Client(base_url=api.endpoint, trust_env=False) as http:
            for number in count():
                if stop.wait(1 / a_second):
                    return
                signed = encode_request(
                    host, QUERY_PHONE_NUMBERS, {}, credentials, now=time.time(), nonce=f"other-{number}"
                )
                http.post("/", headers=dict(signed.headers))

    thread = Thread(target=compete)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def requests(it: RealWorld) -> tuple[float, float, float]:
    """The moment, the requests until then, and how many of them were throttled."""
    lines = it.http.get("/metrics").text.splitlines()
    sums = [
        sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{"))
        for name in ("chatapp_api_requests_total", "chatapp_api_throttled_total")
    ]
    return time.monotonic(), sums[0], sums[1]


def measured(it: RealWorld, seconds: float) -> tuple[float, float]:
    """Requests a second, and the share of them that is throttled."""
    began, sent, throttled = requests(it)
    time.sleep(seconds)
    ended, sent_then, throttled_then = requests(it)
    return (sent_then - sent) / (ended - began), (throttled_then - throttled) / (sent_then - sent)


def test_few_requests_are_throttled_beside_it_and_its_share_is_won_back(tmp_path: Path) -> None:
    with real_world(tmp_path, spaces=200) as it:
        alone, _ = measured(it, MINUTE / 2)
        with competitor(it.api, LIMIT // 2):
            _, at_first = measured(it, 5 * MINUTE)
            beside, throttled = measured(it, 2 * MINUTE)
        time.sleep(5 * MINUTE)
        again, _ = measured(it, MINUTE / 2)
        print(
            f"\n{alone:.2f}/s alone; {beside:.2f}/s beside a competitor with {LIMIT // 2}/s; {again:.2f}/s five minutes"
            f" after it left; throttled {at_first:.2%} in the first five minutes, {throttled:.2%} in the two after"
        )

        assert throttled < 0.02
        assert beside > LIMIT / 4
        assert again > 0.97 * alone
        assert it.metric('chatapp_account_qps_current{account="acme"}') == "10.0"
