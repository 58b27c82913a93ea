"""Builds the image from the Dockerfile and runs it like an orchestrator, without Docker or an image registry.

The base is Debian 12 from debootstrap instead of python:3.13-slim, with the same layout: `python` and `pip` in
/usr/local, CA certificates of the system, no compiler. Python is 3.11, and the size of the base is different. The
Dockerfile adds the same files.
"""

import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pytest
from processes import wait_until
from programs import require_program

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
EXCLUDED_FROM_BASE = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man")
HARDENED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
# lower than the limits of any machine: the tests also run without permission to raise limits
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
GET = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())"


class CommandFailed(Exception):
    """A command exited with a status other than 0. The message contains its output."""


def run(*command: object, seconds: float = 60) -> str:
    """Run a command and return its standard output."""
    process = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=seconds)
    if process.returncode:
        raise CommandFailed(f"{command} exited with status {process.returncode}: {process.stdout}{process.stderr}")
    return process.stdout


@dataclass(frozen=True)
class Store:
    """A separate storage for images and containers."""

    directory: Path

    def podman(self, *arguments: object, seconds: float = 60) -> str:
        return self._run("podman", *arguments, seconds=seconds)

    def buildah(self, *arguments: object, seconds: float = 60) -> str:
        return self._run("buildah", *arguments, seconds=seconds)

    def _run(self, program: str, *arguments: object, seconds: float) -> str:
        storage = ("--root", self.directory / "storage", "--runroot", self.directory / "run")
        return run(program, *storage, *arguments, seconds=seconds)


@dataclass(frozen=True)
class Container:
    store: Store
    name: str

    @property
    def pid(self) -> int:
        return int(self.store.podman("inspect", "--format={{.State.Pid}}", self.name))

    def get(self, path: str) -> str:
        """Return the response on the loopback interface of the container. The container has no other network."""
        url = f"http://127.0.0.1:10144{path}"
        return run("nsenter", f"--net=/proc/{self.pid}/ns/net", sys.executable, "-c", GET, url)

    def responds(self, path: str, text: str = "") -> bool:
        try:
            return text in self.get(path)
        except CommandFailed:
            return False

    def healthy(self) -> bool:
        """Whether the HEALTHCHECK of the image succeeds."""
        try:
            self.store.podman("healthcheck", "run", self.name)
        except CommandFailed:
            return False
        return True


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    for tool in ("buildah", "debootstrap", "podman", "runc"):
        require_program(tool, package=tool)
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("debootstrap needs root")
    directory = Path(mkdtemp())
    try:
        yield Store(directory)
    finally:
        Store(directory).podman("rm", "--all", "--force")
        unmount_and_remove(directory)


def unmount_and_remove(directory: Path) -> None:
    """Unmount all file systems in a directory and remove the directory."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount_point in reversed(mounted):
        if Path(mount_point).is_relative_to(directory):
            run("umount", mount_point)
    run("rm", "--recursive", "--force", "--one-file-system", directory)


@pytest.fixture(scope="module")
def base(store: Store) -> str:
    root, tar = store.directory / "base", store.directory / "base.tar"
    packages = "--include=ca-certificates,python3,python3-venv"
    run("debootstrap", "--variant=minbase", packages, "bookworm", root, mirror(), seconds=600)
    run("chroot", root, "python3", "-m", "venv", "/usr/local")
    run("chroot", root, "pip", "uninstall", "--quiet", "--yes", "setuptools")
    run("tar", "-C", root, *(f"--exclude=./{directory}/*" for directory in EXCLUDED_FROM_BASE), "-cf", tar, ".")
    store.podman("import", tar, "localhost/base", seconds=300)
    return "localhost/base"


def mirror() -> str:
    """Return the Debian mirror that apt uses on this machine."""
    found = run("apt-get", "indextargets", "--format=$(REPO_URI)", "Created-By: Packages", "Release: bookworm").split()
    return found[0] if found else pytest.fail("apt has no package lists of Debian 12: run apt-get update")


@pytest.fixture(scope="module")
def image(store: Store, base: str) -> str:
    """The build uses the network and the CA certificates of the host to download packages."""
    host_access = ("--network=host", f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
    options = (
        "--isolation=chroot",
        "--format=docker",
        f"--build-arg=BASE={base}",
        *host_access,
    )  # the OCI format has no HEALTHCHECK
    store.buildah("build", *options, "--tag=localhost/chatapp-exporter", ROOT, seconds=600)
    return "localhost/chatapp-exporter"


@contextmanager
def running(store: Store, image: str, *arguments: str) -> Iterator[Container]:
    flags = ("--detach", "--network=none", *HARDENED, *LIMITS)
    name = store.podman("run", *flags, *arguments[:-1], image, arguments[-1]).strip()
    yield Container(store, name)
    store.podman("rm", "--force", name)


@pytest.fixture(scope="module")
def demo(store: Store, image: str) -> Iterator[Container]:
    started = time.monotonic()
    with running(store, image, "demo") as container:
        wait_until(lambda: container.responds("/metrics"), "response to a scrape")
        scraped = time.monotonic() - started
        wait_until(lambda: container.responds("/metrics", "chatapp_phone_number_status{"), "scrape with phone numbers")
        polled = time.monotonic() - started
        print(f"\nafter `podman run`: first scrape {scraped:.1f} s, first scrape with phone numbers {polled:.1f} s")
        yield container


def test_the_process_has_uid_65532_and_no_capabilities(demo: Container) -> None:
    process_status = dict(re.findall(r"^(\w+):\t(.*)$", Path(f"/proc/{demo.pid}/status").read_text(), re.MULTILINE))

    assert process_status["Uid"].split() == process_status["Gid"].split() == ["65532"] * 4
    assert [process_status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")] == ["0" * 16] * 4
    assert process_status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("directory", ["/", "/tmp", "/opt/venv"])
def test_the_exporter_runs_on_a_read_only_file_system(demo: Container, directory: str) -> None:
    with pytest.raises(CommandFailed, match="Read-only file system"):
        demo.store.podman("exec", demo.name, "touch", f"{directory}/written")


def test_the_container_polls_serves_metrics_and_becomes_ready(demo: Container) -> None:
    wait_until(lambda: demo.responds("/-/ready"), "all spaces polled")

    page = demo.get("/metrics")
    assert re.search(r'chatapp_phone_number_quality_rating{.*quality_rating="GREEN"} 1\n', page)
    assert re.search(r'chatapp_account_up{account="acme"} 1\n', page)
    assert "chatapp_exporter_build_info{" in page


def test_the_healthcheck_fails_if_the_process_does_not_respond(demo: Container, image: str) -> None:
    with running(demo.store, image, "--entrypoint=/bin/sleep", "60") as sleeping:
        assert (demo.healthy(), sleeping.healthy()) == (True, False)


def test_sigterm_stops_the_container_within_10_seconds_with_exit_status_0(store: Store, image: str) -> None:
    with running(store, image, "demo") as container:
        wait_until(lambda: container.responds("/metrics"), "response to a scrape")

        started = time.monotonic()
        store.podman("stop", "--time=10", container.name)
        print(f"\nstopped in {time.monotonic() - started:.1f} s")

        assert store.podman("inspect", "--format={{.State.ExitCode}}", container.name).strip() == "0"
        assert time.monotonic() - started < 10


def test_the_image_adds_only_the_exporter_and_its_locked_packages(store: Store, base: str, image: str) -> None:
    sizes = [int(store.podman("image", "inspect", "--format={{.Size}}", name)) / 1e6 for name in (image, base)]
    print(f"\nthe image has {sizes[0]:.0f} MB, {sizes[0] - sizes[1]:.0f} MB more than its base")
    names = re.findall(r"^A (\S+)$", store.podman("diff", image), re.MULTILINE)
    pins = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))

    installed = {match[1] for name in names if (match := re.search(r"/([\w.]+)-[^/]*\.dist-info$", name))}
    # this directory is the mount point for the volume with the state file
    assert {name for name in names if not f"{name}/".startswith("/opt/venv/")} == {"/var/lib/chatapp-exporter"}
    assert {name.lower().replace("_", "-") for name in installed} <= pins | {"chatapp-exporter"}
    assert {"chatapp_exporter", "httpx", "uvicorn"} <= installed


def test_the_image_has_no_package_installer(store: Store, image: str) -> None:
    for python in ("/usr/local/bin/python", "/opt/venv/bin/python"):
        code = "import importlib.util as i; print(*filter(i.find_spec, ['pip', 'setuptools', 'hatchling']))"
        assert (
            store.podman("run", "--rm", "--network=none", *LIMITS, f"--entrypoint={python}", image, "-c", code) == "\n"
        )


def test_the_image_labels_match_pyproject_and_the_runbook_urls(store: Store, image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rules = (ROOT / "config/prometheus/chatapp.rules.yml").read_text()

    def label(name: str) -> str:
        name = f"org.opencontainers.image.{name}"
        return store.podman("image", "inspect", f'--format={{{{index .Labels "{name}"}}}}', image).strip()

    assert label("title") == project["name"]
    assert label("description") == project["description"]
    assert label("licenses") == project["license"]
    assert f"runbook_url: {label('source')}/blob/" in rules
