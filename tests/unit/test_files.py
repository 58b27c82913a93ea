"""Configured files: only regular files are opened, and errors name the type that was found."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from virtual_time import run, virtual_loop

from exporter.config.loading import Configuration
from exporter.config.problems import ConfigError
from exporter.files import creation_problem, read_bytes, read_text
from exporter.source import DeniedError, SourceError
from exporter.sources import Settings
from exporter.sources.cams.credentials import AccessKey


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")


NOT_REGULAR = [
    pytest.param(os.mkfifo, "a FIFO", id="FIFO"),
    pytest.param(make_link_to_fifo, "a FIFO", id="link to a FIFO"),
    pytest.param(make_socket, "a socket", id="socket"),
    pytest.param(make_link_to_device, "a device", id="device"),
    pytest.param(Path.mkdir, "a directory", id="directory"),
]
ACCOUNT = "accounts: [{name: a, access_key_id: i, access_key_secret: s}]\n"


@pytest.mark.parametrize(("make", "found"), NOT_REGULAR)
def test_only_regular_files_are_opened(tmp_path: Path, make: Callable[[Path], object], found: str) -> None:
    make(path := tmp_path / "file")

    with pytest.raises(OSError, match=found):
        read_bytes(path)


def test_a_linked_file_is_read_without_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("\N{ZERO WIDTH NO-BREAK SPACE}caf\N{LATIN SMALL LETTER E WITH ACUTE}\n", "utf-8")
    (tmp_path / "link").symlink_to("file")

    assert read_text(tmp_path / "link") == "caf\N{LATIN SMALL LETTER E WITH ACUTE}\n"


def load_problems(directory: Path) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        Configuration(directory / "exporter.yml", {}, Settings).load()
    return str(raised.value).replace(f"{directory}/", "").splitlines()


@pytest.mark.parametrize(("make", "found"), NOT_REGULAR)
def test_a_configuration_file_that_is_not_a_regular_file_is_an_error(
    tmp_path: Path, make: Callable[[Path], object], found: str
) -> None:
    make(tmp_path / "exporter.yml")

    assert load_problems(tmp_path) == [f"exporter.yml: expected a regular file, found {found}"]


@pytest.mark.parametrize(("make", "found"), NOT_REGULAR)
def test_a_space_file_that_is_not_a_regular_file_is_an_error(
    tmp_path: Path, make: Callable[[Path], object], found: str
) -> None:
    make(tmp_path / "spaces.yml")
    (tmp_path / "exporter.yml").write_text(ACCOUNT.replace("}]", ", space_files: [spaces.yml]}]"))

    assert load_problems(tmp_path) == [f"spaces.yml: expected a regular file, found {found}"]


@pytest.mark.parametrize(("make", "found"), NOT_REGULAR)
def test_a_secret_file_that_is_not_a_regular_file_is_an_error(
    tmp_path: Path, make: Callable[[Path], object], found: str
) -> None:
    make(tmp_path / "key")
    (tmp_path / "exporter.yml").write_text(ACCOUNT.replace("access_key_secret: s", "access_key_secret_file: key"))

    assert load_problems(tmp_path) == [
        f"exporter.yml:1: accounts[0].access_key_secret_file: expected a regular file, found {found}"
    ]


@pytest.mark.parametrize(("make", "found"), NOT_REGULAR)
def test_a_state_file_that_is_not_a_regular_file_is_an_error(
    tmp_path: Path, make: Callable[[Path], object], found: str
) -> None:
    make(tmp_path / "state.db")
    (tmp_path / "exporter.yml").write_text(f"{ACCOUNT}state_file: state.db\n")

    assert load_problems(tmp_path) == [f"exporter.yml:2: state_file: expected a regular file, found {found}"]
    assert os.path.lexists(tmp_path / "state.db")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/etc", "expected a regular file, found a directory"),
        ("/dev/full", "expected a regular file, found a device"),
        ("/proc/state.db", "cannot create a file in the directory: No such file or directory"),
        ("/etc/passwd/state.db", "cannot create the file: Not a directory"),
        ("/nowhere/state.db", None),  # a missing directory can be mounted later; `check` warns
    ],
)
def test_a_path_where_no_file_can_be_created_is_a_problem(path: str, problem: str | None) -> None:
    assert creation_problem(Path(path)) == problem


def test_checking_a_path_does_not_create_a_file(tmp_path: Path) -> None:
    assert creation_problem(tmp_path / "state.db") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read_before", [True, False])
def test_if_reading_a_key_file_hangs_the_last_key_is_used_after_one_timeout(tmp_path: Path, read_before: bool) -> None:
    (tmp_path / "secret").write_text("s1")
    key = AccessKey("acme", {"access_key_id": "id"}, {"access_key_secret": str(tmp_path / "secret")}, {})

    async def main() -> list[object]:
        loop = virtual_loop()
        if read_before:
            await key.current()
        loop.hangs = lambda _: True
        if not read_before:
            with pytest.raises(DeniedError, match="timed out after 2 s"):
                await key.current()
            return [loop.time()]
        seen: list[object] = []
        for _ in range(3):
            seen += [(await key.current()).access_key_secret, loop.time()]
        (tmp_path / "secret").write_text("s2")
        loop.release()
        await key.current()
        return [*seen, (await key.current()).access_key_secret]

    assert run(main()) == (["s1", 2.0, "s1", 2.0, "s1", 2.0, "s2"] if read_before else [2.0])


def test_a_source_error_has_the_configuration_key_but_not_the_file_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "looks-like-a-secret")
    key = AccessKey("acme", {"access_key_id": "id"}, {"access_key_secret": str(tmp_path / "looks-like-a-secret")}, {})

    with pytest.raises(SourceError) as raised:
        key.read()

    assert (raised.value.key, str(raised.value)) == (
        "access_key_secret_file",
        "expected a regular file, found a FIFO",
    )


def test_if_a_key_file_becomes_a_fifo_the_last_key_is_used(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s1")
    key = AccessKey("acme", {"access_key_id": "id"}, {"access_key_secret": str(tmp_path / "secret")}, {})

    async def main() -> list[str]:
        before = await key.current()
        (tmp_path / "secret").unlink()
        os.mkfifo(tmp_path / "secret")
        with capture_logs() as logs:
            after = await key.current()
        return [before.access_key_secret, after.access_key_secret, *(line["event"] for line in logs)]

    assert run(main()) == ["s1", "s1", "access key cannot be read, using the last key"]
