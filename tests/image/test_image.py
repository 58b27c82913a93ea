"""The image, built from the Dockerfile and run as an orchestrator runs it, without Docker or a registry of images.

In place of python:3.13-slim its base is Debian 12 from debootstrap, arranged alike: `python` and `pip` in /usr/local,
the system's certificates, no compiler. Python is 3.11, and the base has another size; what the Dockerfile adds is the
same.
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
NOT_IN_A_BASE = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man")
HARDENED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
# lower than anywhere: a machine that may not raise its limits runs the tests too
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
GET = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())"


class Failed(Exception):
    """A command that did not end with 0, and what it said."""


def done(*command: object, seconds: float = 60) -> str:
    """What a command printed."""
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=seconds)
    if ran.returncode:
        raise Failed(f"{command} ended with {ran.returncode}: {ran.stdout}{ran.stderr}")
    return ran.stdout


@dataclass(frozen=True)
class Store:
    """A place for images and containers that is nobody else's."""

    directory: Path

    def podman(self, *arguments: object, seconds: float = 60) -> str:
        return self._done("podman", *arguments, seconds=seconds)

    def buildah(self, *arguments: object, seconds: float = 60) -> str:
        return self._done("buildah", *arguments, seconds=seconds)

    def _done(self, program: str, *arguments: object, seconds: float) -> str:
        place = ("--root", self.directory / "storage", "--runroot", self.directory / "run")
        return done(program, *place, *arguments, seconds=seconds)


@dataclass(frozen=True)
class Container:
    store: Store
    name: str

    @property
    def pid(self) -> int:
        return int(self.store.podman("inspect", "--format={{.State.Pid}}", self.name))

    def get(self, path: str) -> str:
        """What is answered on the container's own loopback, which is the only network that it has."""
        url = f"http://127.0.0.1:10144{path}"
        return done("nsenter", f"--net=/proc/{self.pid}/ns/net", sys.executable, "-c", GET, url)

    def answers(self, path: str, text: str = "") -> bool:
        try:
            return text in self.get(path)
        except Failed:
            return False

    def healthy(self) -> bool:
        """What the image's HEALTHCHECK finds."""
        try:
            self.store.podman("healthcheck", "run", self.name)
        except Failed:
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
        dismantle(directory)


def dismantle(directory: Path) -> None:
    """Remove a directory that others may have mounted something in."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed(mounted):
        if Path(place).is_relative_to(directory):
            done("umount", place)
    done("rm", "--recursive", "--force", "--one-file-system", directory)


@pytest.fixture(scope="module")
def base(store: Store) -> str:
    root, tar = store.directory / "base", store.directory / "base.tar"
    packages = "--include=ca-certificates,python3,python3-venv"
    done("debootstrap", "--variant=minbase", packages, "bookworm", root, mirror(), seconds=600)
    done("chroot", root, "python3", "-m", "venv", "/usr/local")
    done("chroot", root, "pip", "uninstall", "--quiet", "--yes", "setuptools")
    done("tar", "-C", root, *(f"--exclude=./{place}/*" for place in NOT_IN_A_BASE), "-cf", tar, ".")
    store.podman("import", tar, "localhost/base", seconds=300)
    return "localhost/base"


def mirror() -> str:
    """Where this machine's packages of Debian come from."""
    found = done("apt-get", "indextargets", "--format=$(REPO_URI)", "Created-By: Packages", "Release: bookworm").split()
    return found[0] if found else pytest.fail("apt knows no packages of Debian 12: apt-get update")


@pytest.fixture(scope="module")
def image(store: Store, base: str) -> str:
    """What reaches the index of packages, the machine's network and certificates, is lent for this build."""
    lent = ("--network=host", f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
    how = (
        "--isolation=chroot",
        "--format=docker",
        f"--build-arg=BASE={base}",
        *lent,
    )  # OCI's format has no HEALTHCHECK
    store.buildah("build", *how, "--tag=localhost/chatapp-exporter", ROOT, seconds=600)
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
        wait_until(lambda: container.answers("/metrics"), "a scrape is answered")
        scraped = time.monotonic() - started
        wait_until(lambda: container.answers("/metrics", "chatapp_phone_number_status{"), "a scrape has numbers")
        polled = time.monotonic() - started
        print(f"\nfrom `podman run` to the first scrape {scraped:.1f} s, to the first with numbers {polled:.1f} s")
        yield container


def test_the_process_is_nobody_without_capabilities(demo: Container) -> None:
    facts = dict(re.findall(r"^(\w+):\t(.*)$", Path(f"/proc/{demo.pid}/status").read_text(), re.MULTILINE))

    assert facts["Uid"].split() == facts["Gid"].split() == ["65532"] * 4
    assert [facts[of] for of in ("CapPrm", "CapEff", "CapBnd", "CapAmb")] == ["0" * 16] * 4
    assert facts["NoNewPrivs"] == "1"


@pytest.mark.parametrize("place", ["/", "/tmp", "/opt/venv"])
def test_it_does_without_a_place_to_write(demo: Container, place: str) -> None:
    with pytest.raises(Failed, match="Read-only file system"):
        demo.store.podman("exec", demo.name, "touch", f"{place}/written")


def test_it_polls_serves_and_gets_ready(demo: Container) -> None:
    wait_until(lambda: demo.answers("/-/ready"), "every space is polled")

    page = demo.get("/metrics")
    assert re.search(r'chatapp_phone_number_quality_rating{.*quality_rating="GREEN"} 1\n', page)
    assert re.search(r'chatapp_account_up{account="acme"} 1\n', page)
    assert "chatapp_exporter_build_info{" in page


def test_its_healthcheck_tells_a_process_that_answers_from_one_that_does_not(demo: Container, image: str) -> None:
    with running(demo.store, image, "--entrypoint=/bin/sleep", "60") as asleep:
        assert (demo.healthy(), asleep.healthy()) == (True, False)


def test_sigterm_ends_it_within_ten_seconds_with_0(store: Store, image: str) -> None:
    with running(store, image, "demo") as container:
        wait_until(lambda: container.answers("/metrics"), "a scrape is answered")

        started = time.monotonic()
        store.podman("stop", "--time=10", container.name)
        print(f"\nstopped in {time.monotonic() - started:.1f} s")

        assert store.podman("inspect", "--format={{.State.ExitCode}}", container.name).strip() == "0"
        assert time.monotonic() - started < 10


def test_to_its_base_it_adds_the_program_and_what_the_runtime_lock_pins(store: Store, base: str, image: str) -> None:
    sizes = [int(store.podman("image", "inspect", "--format={{.Size}}", one)) / 1e6 for one in (image, base)]
    print(f"\nthe image has {sizes[0]:.0f} MB, {sizes[0] - sizes[1]:.0f} MB of it ours")
    names = re.findall(r"^A (\S+)$", store.podman("diff", image), re.MULTILINE)
    pins = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))

    installed_there = {match[1] for name in names if (match := re.search(r"/([\w.]+)-[^/]*\.dist-info$", name))}
    # the directory is where a volume for the state goes
    assert {name for name in names if not f"{name}/".startswith("/opt/venv/")} == {"/var/lib/chatapp-exporter"}
    assert {name.lower().replace("_", "-") for name in installed_there} <= pins | {"chatapp-exporter"}
    assert {"chatapp_exporter", "httpx", "uvicorn"} <= installed_there


def test_nothing_in_it_installs_packages(store: Store, image: str) -> None:
    for python in ("/usr/local/bin/python", "/opt/venv/bin/python"):
        look = "import importlib.util as i; print(*filter(i.find_spec, ['pip', 'setuptools', 'hatchling']))"
        assert (
            store.podman("run", "--rm", "--network=none", *LIMITS, f"--entrypoint={python}", image, "-c", look) == "\n"
        )


def test_its_labels_say_what_the_project_says_of_itself(store: Store, image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rules = (ROOT / "config/prometheus/chatapp.rules.yml").read_text()

    def label(name: str) -> str:
        name = f"org.opencontainers.image.{name}"
        return store.podman("image", "inspect", f'--format={{{{index .Labels "{name}"}}}}', image).strip()

    assert label("title") == project["name"]
    assert label("description") == project["description"]
    assert label("licenses") == project["license"]
    assert f"runbook_url: {label('source')}/blob/" in rules
