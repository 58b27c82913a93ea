"""Any content of a state file: opening it is never an error, and never destroys what was in it."""

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
KNOWN: dict[Key, SpaceRecord] = {
    ("acme", f"s{number}"): SpaceRecord(
        number % 2 == 0,
        1000.25 + number,
        (PhoneNumber(f"1555000{number}", "Contoso é", "RED", status_callback=Callback.BOTH),),
        {(f"1555000{number}", "status"): Change(900.5, "CONNECTED")},
        next_slot=1300.5,
    )
    for number in range(60)
}


def opened(file: Path) -> dict[Key, SpaceRecord]:
    state_file = StateFile(file, SystemClock())
    known = state_file.open(IDENTITIES)
    state_file.save({("acme", "s1"): KNOWN["acme", "s1"]})
    state_file.close()
    return known


@cache
def content() -> bytes:
    """A state file of all that is known."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / "state.db"
        state_file = StateFile(file, SystemClock())
        assert state_file.open(IDENTITIES) == {}
        state_file.save(KNOWN)
        state_file.close()
        assert opened(file) == KNOWN
        return file.read_bytes()


damages = st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=40)), max_size=5)


@settings(max_examples=300)
@example([], 32773, False)  # a column of another type
@example([(60, bytes(4)), (5634, b"\0")], None, False)  # the version, and a page
@example([(4060, b"\x80")], None, False)  # a message that is no text
@given(damages, st.none() | st.integers(0, 2**16), st.booleans())
def test_any_damage_is_no_error_and_a_damaged_file_is_kept(
    damages: list[tuple[int, bytes]], length: int | None, with_a_log: bool
) -> None:
    damaged = bytearray(content()[:length])
    for at, written in damages:
        begin = at % (len(damaged) + 1)
        damaged[begin : begin + len(written)] = written
    with TemporaryDirectory() as directory:
        file = Path(directory) / "state.db"
        file.write_bytes(damaged)
        if with_a_log:
            Path(f"{file}-wal").write_bytes(damaged[::-1])
        known = opened(file)
        kept = [
            path.read_bytes() for path in Path(directory).glob("state.db*") if not path.name.endswith(("-wal", "-shm"))
        ]

    assert bytes(damaged) == content() or known == KNOWN or bytes(damaged) in kept or len(kept) == 1


@given(st.binary(max_size=300) | st.text().map(str.encode))
def test_any_other_file_is_no_error_either(content: bytes) -> None:
    with TemporaryDirectory() as directory:
        file = Path(directory) / "state.db"
        file.write_bytes(content)

        assert opened(file) == {}

        files = [path.read_bytes() for path in Path(directory).iterdir()]
        assert content == b"" or content in files  # kept, aside or where it was
