"""A resolver that does not answer, for one endpoint: the most usual way in which names are not found."""

import signal
from pathlib import Path

import pytest
from hostile import Exchange
from processes import wait_until
from real_world import SPACES, real_world

pytestmark = pytest.mark.slow

HANGING = """
import socket, time
real = socket.getaddrinfo
def getaddrinfo(host, *arguments, **named):
    if host in ("hangs.invalid", b"hangs.invalid"):
        time.sleep(600)
    return real(host, *arguments, **named)
socket.getaddrinfo = getaddrinfo
from exporter.cli import main
main()
"""


async def answers_once(exchange: Exchange) -> None:
    """An answer after which the connection ends, so that the next request needs the resolver again."""
    await exchange.send_answer()
    exchange.writer.close()


def test_it_holds_up_no_other_account_no_reload_and_no_stop(tmp_path: Path) -> None:
    hung = {"name": "hung", "endpoint": "https://hangs.invalid", "poll_interval": "30s", "qps": 10}
    hung |= {"spaces": [{"id": f"space-{number}"} for number in range(30)], "access_key_id": "another"}
    (tmp_path / "planted.py").write_text(HANGING)
    with real_world(tmp_path, "--web.enable-lifecycle", fault=answers_once, main=tmp_path / "planted.py") as it:
        it.write(it.api.account(), it.api.account(**hung))
        assert it.reload().status_code == 200
        timeout = 'reason="timeout"'
        wait_until(lambda: it.http.get("/metrics").text.count(timeout) >= 10, "ten requests have hung for ten seconds")

        polled = len(it.api.arrivals)
        wait_until(lambda: len(it.api.arrivals) > polled + 30, "the other account is polled at its pace", 5)
        page = it.http.get("/metrics").text
        assert page.count('chatapp_space_up{account="acme"') == SPACES
        assert 'chatapp_space_poll_failures_total{account="acme"' not in page
        assert 'chatapp_account_up{account="hung"} 0' in page
        assert it.reload().status_code == 200
        it.process.send_signal(signal.SIGTERM)
        assert it.process.wait(10) == 0
        assert "Traceback" not in it.log.read_text()
