"""A DNS resolver that does not respond for one endpoint, the most common DNS failure."""

import signal
from pathlib import Path

import pytest
from hostile import Exchange
from processes import wait_until
from real_world import SPACES, real_world

pytestmark = pytest.mark.slow

MAIN = """
import socket, time
real = socket.getaddrinfo
def getaddrinfo(host, *arguments, **options):
    if host in ("hangs.invalid", b"hangs.invalid"):
        time.sleep(600)
    return real(host, *arguments, **options)
socket.getaddrinfo = getaddrinfo
from exporter.cli import main
main()
"""


async def closes_connection(exchange: Exchange) -> None:
    """Respond, then close the connection, so that the next request uses the resolver."""
    await exchange.send_api_response()
    exchange.writer.close()


def test_a_hung_resolver_delays_no_other_account_no_reload_and_no_shutdown(tmp_path: Path) -> None:
    hung = {"name": "hung", "endpoint": "https://hangs.invalid", "poll_interval": "30s", "qps": 10}
    hung |= {"spaces": [{"id": f"space-{number}"} for number in range(30)], "access_key_id": "another"}
    (tmp_path / "main.py").write_text(MAIN)
    with real_world(tmp_path, "--web.enable-lifecycle", fault=closes_connection, main=tmp_path / "main.py") as world:
        world.write(world.api.account(), world.api.account(**hung))
        assert world.reload().status_code == 200
        timeout = 'reason="timeout"'
        wait_until(lambda: world.http.get("/metrics").text.count(timeout) >= 10, "polls of 10 spaces have timed out")

        polled = len(world.api.arrivals)
        wait_until(lambda: len(world.api.arrivals) > polled + 30, "the other account is polled at the usual rate", 5)
        page = world.http.get("/metrics").text
        assert page.count('chatapp_space_up{account="acme"') == SPACES
        assert 'chatapp_space_poll_failures_total{account="acme"' not in page
        assert 'chatapp_account_up{account="hung"} 0' in page
        assert world.reload().status_code == 200
        world.process.send_signal(signal.SIGTERM)
        assert world.process.wait(10) == 0
        assert "Traceback" not in world.log.read_text()
