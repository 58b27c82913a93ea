"""What is made from files is made again when they change, however the change and the making meet."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exporter.config.following import Followed
from exporter.config.problems import ConfigError, Problem


def text_of(file: Path, *, written_meanwhile: str | None = None) -> Followed[str]:
    """The text of a file; the first time someone writes it just after it was read."""
    pending = [written_meanwhile] if written_meanwhile else []

    def make() -> tuple[str, tuple[Path, ...]]:
        text = file.read_text()
        if pending:
            file.write_text(pending.pop())
        if text == "bad":
            raise ConfigError([Problem(str(file), (), "expected something else")])
        return text, (file,)

    return Followed("text", make)


def test_a_change_while_it_is_made_is_seen_the_next_time(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    followed = text_of(file, written_meanwhile="newer")

    assert (followed(), followed()) == ("old", "newer")


def test_a_file_that_turns_bad_keeps_the_last_value_and_is_told_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("good")
    followed = text_of(file)
    assert followed() == "good"

    file.write_text("bad")
    with capture_logs() as logs:
        assert [followed(), followed(), followed()] == ["good"] * 3
    assert [line["event"] for line in logs] == ["text refused, the last one stays"]

    file.write_text("better")
    assert followed() == "better"


def test_a_file_that_is_bad_from_the_start_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("bad")

    with pytest.raises(ConfigError, match="expected something else"):
        text_of(file)()


def test_a_file_that_comes_back_as_it_was_and_goes_again_is_told_again(tmp_path: Path) -> None:
    file, away = tmp_path / "file", tmp_path / "away"
    file.write_text("good")

    def make() -> tuple[str, tuple[Path, ...]]:
        try:
            return file.read_text(), (file,)
        except OSError as error:
            raise ConfigError([Problem(str(file), (), "expected a file")]) from error

    followed = Followed("text", make)
    assert [followed(), followed()] == ["good", "good"]
    with capture_logs() as logs:
        for _ in range(2):
            file.rename(away)
            assert [followed(), followed()] == ["good", "good"]
            away.rename(file)
            assert followed() == "good"

    assert len(logs) == 2
