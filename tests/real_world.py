"""The exporter in its own process, which polls the hostile API over real sockets."""

import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from hostile import Fault, HostileApi, serving
from processes import free_port, running, wait_until

from exporter.simulator.scenario import Scenario

SPACES = 20


@dataclass
class RealWorld:
    """The running exporter, its configuration file, its log, and an HTTP client for it."""

    http: httpx.Client
    port: int
    process: subprocess.Popen[bytes]
    file: Path
    log: Path
    api: HostileApi

    def metric(self, name: str) -> str:
        """Return the value of the first sample with this name, or of this series. Return "absent" if there is none."""
        lines = self.http.get("/metrics").text.splitlines()
        return next((line.rsplit(" ", 1)[1] for line in lines if line.startswith((f"{name} ", f"{name}{{"))), "absent")

    def write(self, *accounts: Mapping[str, object], **changes: object) -> None:
        """Write another configuration with these accounts. The default is the account of the API."""
        document = {"accounts": [dict(account) for account in accounts] or [self.api.account()], **changes}
        self.file.write_text(yaml.safe_dump(document))

    def with_spaces(self, count: int, **changes: object) -> dict[str, Any]:
        """Return the account of the API with only its first `count` spaces."""
        account = self.api.account(**changes)
        return account | {"spaces": account["spaces"][:count]}

    def reload(self) -> httpx.Response:
        return self.http.post("/-/reload")


@contextmanager
def real_world(
    directory: Path,
    *flags: str,
    fault: Fault | None = None,
    tls: ssl.SSLContext | None = None,
    main: Path | None = None,
    spaces: int = SPACES,
    environ: Mapping[str, str] | None = None,
) -> Iterator[RealWorld]:
    """Start the exporter with these flags and wait until it is ready.

    `tls` is the client's TLS context, if the flags configure TLS. `main` is a script that starts the exporter with an
    injected fault. `environ` has additional environment variables.
    """
    key = {"access_key_id": "key", "access_key_secret": "secret"}
    account = {"name": "acme", "spaces": spaces, "poll_interval": "2s", **key}
    api, port = HostileApi(Scenario.model_validate({"accounts": [account]}), fault=fault), free_port()
    base_url = f"http{'s' if tls else ''}://localhost:{port}"
    with serving(api), httpx.Client(base_url=base_url, trust_env=False, timeout=30, verify=tls or True) as http:
        file, log = directory / "exporter.yml", directory / "log"
        file.write_text(yaml.safe_dump({"accounts": [api.account()]}))
        arguments = ("--config.file", str(file), "--web.listen-address", f"127.0.0.1:{port}", *flags)
        command = (sys.executable, *([str(main)] if main else ["-m", "exporter"]), *arguments)
        with running(*command, log=log, **(environ or {})) as process:
            wait_until(lambda: _is_ready(http), "the exporter is ready")
            yield RealWorld(http, port, process, file, log, api)


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
