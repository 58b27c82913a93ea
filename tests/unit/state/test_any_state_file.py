"""State files with arbitrary content: opening such a file never raises an exception or destroys its content."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import example, given, settings
from hypothesis import strategies as st

from exporter.clock import SystemClock
from exporter.model import Callback, PhoneNumber
from exporter.state.state_file import StateFile
from exporter.state.store import Change, Key, SpaceRecord

IDENTITIES = {"acme": "https://a.example"}
RECORDS: dict[Key, SpaceRecord] = {
    ("acme", f"s{number}"): SpaceRecord(
        number % 2 == 0,
        1000.25 + number,
        (PhoneNumber(f"1555000{number}", "Contoso é", "RED", status_callback=Callback.BOTH),),
        {(f"1555000{number}", "status"): Change(900.5, "CONNECTED")},
        next_slot=1300.5,
    )
    for number in range(60)
}


def open_and_save(file: Path) -> tuple[dict[Key, SpaceRecord], int]:
    """Open the state file and save one record. Return the records that were read, and the number of failures of the
    open."""
    state_file = StateFile(file, SystemClock())
    records = state_file.open(IDENTITIES)
    failures = state_file.failures.total()
    state_file.save({("acme", "s1"): RECORDS["acme", "s1"]})
    state_file.close()
    return records, failures


@cache
def valid_content() -> bytes:
    """The content of a state file with RECORDS."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / "state.db"
        state_file = StateFile(file, SystemClock())
        assert state_file.open(IDENTITIES) == {}
        state_file.save(RECORDS)
        state_file.close()
        assert open_and_save(file) == (RECORDS, 0)
        return file.read_bytes()


damages = st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=40)), max_size=5)


@settings(max_examples=300)
@example([], 32773, False)  # a column of another type
@example([(60, bytes(4)), (5634, b"\0")], None, False)  # the version and a page
@example([(4060, b"\x80")], None, False)  # an error message of SQLite that is not valid UTF-8
@given(damages, st.none() | st.integers(0, 2**16), st.booleans())
def test_a_damaged_file_raises_no_exception_and_its_content_is_kept(
    damages: list[tuple[int, bytes]], length: int | None, with_wal: bool
) -> None:
    damaged = bytearray(valid_content()[:length])
    for position, replacement in damages:
        start = position % (len(damaged) + 1)
        damaged[start : start + len(replacement)] = replacement
    with TemporaryDirectory() as directory:
        file = Path(directory) / "state.db"
        file.write_bytes(damaged)
        if with_wal:
            Path(f"{file}-wal").write_bytes(damaged[::-1])
        records, failures = open_and_save(file)
        files = [
            path.read_bytes() for path in Path(directory).glob("state.db*") if not path.name.endswith(("-wal", "-shm"))
        ]
        if failures:
            assert bytes(damaged) in files  # renamed, or at its old path
        else:  # damage that SQLite does not detect, for example in the text of a record: the file is used
            assert len(files) == 1
            assert open_and_save(file)[0].keys() >= records.keys()


@given(st.binary(max_size=300) | st.text().map(str.encode))
def test_a_file_in_another_format_raises_no_exception_and_its_content_is_kept(content: bytes) -> None:
    with TemporaryDirectory() as directory:
        file = Path(directory) / "state.db"
        file.write_bytes(content)

        records, _ = open_and_save(file)
        assert records == {}

        files = [path.read_bytes() for path in Path(directory).iterdir()]
        assert content == b"" or content in files  # renamed, or at its old path
