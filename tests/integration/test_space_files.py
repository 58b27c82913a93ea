"""Space files while the exporter runs: each is followed on its own, and a broken one keeps what counted before."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from structlog.testing import capture_logs
from virtual_time import run
from world import World, scenario

from exporter.config.loading import Configuration, load
from exporter.config.problems import ConfigError
from exporter.config.settings import Settings
from exporter.service import Reloader

CONFIG = """
accounts:
  - {name: acme, access_key_id: id, access_key_secret: secret, space_files: [spaces/*.yml]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "exporter.yml").write_text(CONFIG)
    (tmp_path / "spaces").mkdir()
    write(tmp_path, "one", "s1")
    return tmp_path


def write(folder: Path, name: str, *ids: str) -> Path:
    """A space file with these spaces."""
    file = folder / "spaces" / f"{name}.yml"
    file.write_text("".join(f"- {{id: {space}}}\n" for space in ids))
    return file


def started(folder: Path) -> Configuration:
    configuration = Configuration(folder / "exporter.yml", {})
    configuration.load()
    return configuration


def ids(settings: Settings | None) -> list[str]:
    return [space.id for space in settings.accounts[0].polled_spaces] if settings else []


def after_two_looks(configuration: Configuration) -> Settings | None:
    """What becomes of a changed space file, which may be half written at the first look."""
    assert configuration.load_changed_spaces() is None
    return configuration.load_changed_spaces()


def broken(configuration: Configuration) -> list[str]:
    return [Path(file).name for file, up in configuration.space_files().items() if not up]


def followed(folder: Path) -> tuple[World, Reloader, Callable[[], list[str]]]:
    """An exporter with the configuration of the folder, what brings it another, and what metrics say of that."""
    configuration = Configuration(folder / "exporter.yml", {})
    world = World(scenario(1))
    world.settings = configuration.load()
    world.exporter = world.fresh_exporter()

    def told() -> list[str]:
        lines = world.samples("chatapp_exporter_config_last_reload_successful")
        lines += world.samples("chatapp_exporter_space_file_up")
        return [line.replace(f"{folder}/spaces/", "").removeprefix("chatapp_exporter_") for line in lines]

    return world, Reloader(configuration, world.exporter), told


async def two_looks(reloader: Reloader) -> None:
    for _ in range(2):
        await reloader.take_over_changes()


def spaces_shown(world: World) -> list[str]:
    lines = b"".join(world.exporter.exposition(openmetrics=False)).decode().splitlines()
    return [line.split('space="')[1].split('"')[0] for line in lines if line.startswith("chatapp_space_up{")]


def unnoticed(file: Path, text: str) -> None:
    """Other content of the same size, which its time does not tell of: who reads the file sees it, nobody else."""
    before = file.stat()
    assert len(text) == before.st_size
    with file.open("r+") as opened:
        opened.write(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_of_500_files_only_the_one_that_changed_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "exporter.yml").write_text(CONFIG)
    (tmp_path / "spaces").mkdir()
    files = [write(tmp_path, f"{n:03}", *(f"s{n:03}-{i:02}" for i in range(20))) for n in range(500)]
    configuration = started(tmp_path)
    for file in files[1:]:
        unnoticed(file, "[" * file.stat().st_size)

    write(tmp_path, "000", "s000-new")
    settings = after_two_looks(configuration)

    assert len(ids(settings)) == 1 + 499 * 20
    assert ids(settings)[:2] == ["s000-new", "s001-00"]
    assert (len(configuration.space_files()), broken(configuration)) == (500, [])


def test_a_broken_file_keeps_its_last_spaces_and_others_are_taken_over_in_the_same_look(folder: Path) -> None:
    write(folder, "two", "s2", "s3")
    configuration = started(folder)

    (folder / "spaces" / "two.yml").write_text("- {id: s2}\n- {id: [")
    write(folder, "one", "s1", "s4")
    with capture_logs() as logs:
        settings = after_two_looks(configuration)
        assert configuration.load_changed_spaces() is None

    assert ids(settings) == ["s1", "s4", "s2", "s3"]
    assert broken(configuration) == ["two.yml"]
    two = folder / "spaces" / "two.yml"
    assert logs == [
        {
            "event": "space file broken, its last good spaces stay",
            "log_level": "warning",
            "file": str(two),
            "problems": f"{two}:3: expected YAML, but did not find expected node content",
        }
    ]


def test_a_file_that_is_broken_in_another_way_is_told_of_again_and_mended_is_taken_over(folder: Path) -> None:
    configuration = started(folder)
    told = []

    with capture_logs() as logs:
        for text in ("- {idd: s1}", "- {idd: s1}\n", "- s1", "- {id: s1}\n- {id: s3}"):
            (folder / "spaces" / "one.yml").write_text(text)
            settings = after_two_looks(configuration)
            told.append((len(logs), ids(settings), broken(configuration)))

    assert told == [(1, [], ["one.yml"]), (2, [], ["one.yml"]), (3, [], ["one.yml"]), (4, ["s1", "s3"], [])]
    assert "[0].idd: unknown key; did you mean id?" in logs[0]["problems"]
    assert logs[3] == {
        "event": "space file good again",
        "log_level": "info",
        "file": str(folder / "spaces" / "one.yml"),
    }


def test_metrics_name_each_file_from_the_start_and_the_broken_one_until_it_is_mended(folder: Path) -> None:
    async def main() -> list[list[str]]:
        write(folder, "two", "s2")
        world, reloader, told = followed(folder)
        seen = [told()]
        (folder / "spaces" / "two.yml").write_text("- {idd: s2}")
        write(folder, "three", "s3")
        await two_looks(reloader)
        seen.append(told())
        (folder / "spaces" / "one.yml").write_text("-")
        await two_looks(reloader)
        seen.append(told())
        assert spaces_shown(world) == ["s1", "s2", "s3"]
        (folder / "spaces" / "two.yml").unlink()
        write(folder, "one", "s1")
        await two_looks(reloader)
        assert spaces_shown(world) == ["s1", "s3"]
        await world.exporter.stop()
        return [*seen, told()]

    assert run(main()) == [
        ["config_last_reload_successful 1.0", 'space_file_up{file="one.yml"} 1.0', 'space_file_up{file="two.yml"} 1.0'],
        [
            "config_last_reload_successful 0.0",
            'space_file_up{file="one.yml"} 1.0',
            'space_file_up{file="three.yml"} 1.0',
            'space_file_up{file="two.yml"} 0.0',
        ],
        [
            "config_last_reload_successful 0.0",
            'space_file_up{file="one.yml"} 0.0',
            'space_file_up{file="three.yml"} 1.0',
            'space_file_up{file="two.yml"} 0.0',
        ],
        [
            "config_last_reload_successful 1.0",
            'space_file_up{file="one.yml"} 1.0',
            'space_file_up{file="three.yml"} 1.0',
        ],
    ]


def test_a_file_that_changes_its_size_at_every_look_holds_up_no_other(folder: Path) -> None:
    write(folder, "two", "s2")
    configuration = started(folder)

    seen = []
    for look in range(3):
        write(folder, "one", *(f"s1{n}" for n in range(look)))
        write(folder, "two", "s3")
        seen.append(ids(configuration.load_changed_spaces()))

    assert seen == [[], ["s1", "s3"], []]


def test_a_file_that_is_half_written_for_a_moment_takes_no_space_away(folder: Path) -> None:
    write(folder, "one", "s1", "s2")
    configuration = started(folder)

    write(folder, "one", "s1")
    assert configuration.load_changed_spaces() is None
    write(folder, "one", "s1", "s2", "s3")

    assert ids(after_two_looks(configuration)) == ["s1", "s2", "s3"]


def test_a_file_that_is_always_being_written_anew_is_followed_all_the_same(folder: Path) -> None:
    configuration = started(folder)

    seen = []
    for look in range(3):
        file = write(folder, "one", "s1", f"s{look}0")
        os.utime(file, (look, look))
        seen.append(ids(configuration.load_changed_spaces()))

    assert seen == [[], ["s1", "s10"], ["s1", "s20"]]


def test_a_file_that_is_written_anew_with_the_same_spaces_changes_nothing(folder: Path) -> None:
    configuration = started(folder)

    write(folder, "one", "s1")
    os.utime(folder / "spaces" / "one.yml", (1, 1))

    assert after_two_looks(configuration) is None


def test_space_files_are_followed_while_the_main_file_is_half_way_through_an_edit(folder: Path) -> None:
    configuration = started(folder)
    assert configuration.load_changed_spaces() is None

    (folder / "exporter.yml").write_text("accounts: [{name: ac")
    write(folder, "two", "s2")

    assert ids(after_two_looks(configuration)) == ["s1", "s2"]
    assert configuration.load_changed_spaces() is None


def test_space_files_are_followed_while_a_key_is_wrong(folder: Path) -> None:
    (folder / "key").write_text("secret")
    (folder / "exporter.yml").write_text(CONFIG.replace("access_key_secret: secret", "access_key_secret_file: key"))
    configuration = started(folder)

    (folder / "key").write_text("")
    write(folder, "two", "s2")

    assert ids(after_two_looks(configuration)) == ["s1", "s2"]


def test_of_two_files_that_list_one_space_the_one_that_changed_last_is_broken(folder: Path) -> None:
    write(folder, "two", "s2")
    configuration = started(folder)

    write(folder, "one", "s1", "s2")
    with capture_logs() as logs:
        assert after_two_looks(configuration) is None
        assert configuration.load_changed_spaces() is None
    assert broken(configuration) == ["one.yml"]
    assert [line["problems"] for line in logs] == [
        f"{folder}/spaces/one.yml:2: [1].id: expected a space of its own, found 's2',"
        f" which stands at {folder}/spaces/two.yml:1: [0] too"
    ]

    write(folder, "two", "s2", "s3")
    assert ids(after_two_looks(configuration)) == ["s1", "s2", "s3"]
    assert broken(configuration) == ["one.yml"]

    write(folder, "two", "s3")
    assert ids(after_two_looks(configuration)) == ["s1", "s2", "s3"]
    assert broken(configuration) == []


@pytest.mark.parametrize(("newer", "kept"), [("one", ["s1", "s2", "s9"]), ("two", ["s1", "s9", "s2"])])
def test_of_two_files_that_list_one_new_space_the_newer_is_broken(folder: Path, newer: str, kept: list[str]) -> None:
    write(folder, "two", "s2")
    configuration = started(folder)

    for name, space in (("one", "s1"), ("two", "s2")):
        changed = write(folder, name, space, "s9")
        os.utime(changed, (2, 2) if name == newer else (1, 1))

    assert ids(after_two_looks(configuration)) == kept
    assert broken(configuration) == [f"{newer}.yml"]


def test_a_space_that_moves_from_one_file_to_another_in_one_look_is_kept(folder: Path) -> None:
    write(folder, "one", "s1", "s2")
    write(folder, "two", "s3")
    configuration = started(folder)

    write(folder, "two", "s2", "s3")
    write(folder, "one", "s1")

    assert ids(after_two_looks(configuration)) == ["s1", "s2", "s3"]
    assert broken(configuration) == []


def test_what_falls_back_to_its_last_spaces_breaks_the_file_that_took_one_of_them(folder: Path) -> None:
    write(folder, "one", "s1", "s2")
    write(folder, "two", "s3")
    write(folder, "three", "s4")
    configuration = started(folder)

    write(folder, "one", "s1", "s4")
    write(folder, "two", "s2", "s3")

    assert after_two_looks(configuration) is None
    assert sorted(broken(configuration)) == ["one.yml", "two.yml"]


def test_a_space_of_the_main_file_is_told_without_a_line_for_that_may_be_in_an_edit(folder: Path) -> None:
    (folder / "exporter.yml").write_text(CONFIG.replace("space_files", "spaces: [{id: s0}], space_files"))
    configuration = started(folder)

    write(folder, "one", "s1", "s0")
    with capture_logs() as logs:
        assert after_two_looks(configuration) is None

    assert logs[0]["problems"].endswith(f"which stands at {folder}/exporter.yml: accounts[0].spaces[0] too")


def test_a_new_file_that_repeats_a_whole_other_one_adds_nothing(folder: Path) -> None:
    configuration = started(folder)

    write(folder, "copy", "s1")

    assert after_two_looks(configuration) is None
    assert broken(configuration) == ["copy.yml"]


def test_a_file_that_leads_nowhere_is_broken_until_it_leads_somewhere(folder: Path) -> None:
    write(folder, "two", "s2")
    configuration = started(folder)
    two, target = folder / "spaces" / "two.yml", folder / "target"

    two.unlink()
    two.symlink_to(target)
    with capture_logs() as logs:
        seen = [ids(after_two_looks(configuration)), broken(configuration)]
        configuration.load_changed_spaces()
    assert [line["problems"] for line in logs] == [f"{two}: expected a readable file, found: No such file or directory"]

    target.write_text("- {id: s3}")
    seen += [ids(after_two_looks(configuration)), broken(configuration)]

    assert seen == [[], ["two.yml"], ["s1", "s3"], []]


def reads_everything() -> bool:
    with NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return os.access(file.name, os.R_OK)


@pytest.mark.skipif(reads_everything(), reason="who is asked may read every file, as root may")
def test_a_file_that_may_not_be_read_is_broken_until_it_may(folder: Path) -> None:
    configuration = started(folder)

    write(folder, "one", "s1", "s2").chmod(0o000)
    seen = [ids(after_two_looks(configuration)), broken(configuration)]
    (folder / "spaces" / "one.yml").chmod(0o400)
    seen += [ids(configuration.load_changed_spaces()), broken(configuration)]

    assert seen == [[], ["one.yml"], ["s1", "s2"], []]


def test_a_file_that_is_gone_takes_its_spaces_along_once_it_stays_away(folder: Path) -> None:
    two = write(folder, "two", "s2")
    configuration = started(folder)

    for _ in range(2):  # a program that replaces it may have removed it just now
        configuration.load_changed_spaces()
        two.unlink()
        assert configuration.load_changed_spaces() is None
        write(folder, "two", "s2")
    configuration.load_changed_spaces()
    two.unlink()

    assert ids(after_two_looks(configuration)) == ["s1"]
    assert [Path(file).name for file in configuration.space_files()] == ["one.yml"]


def test_a_pattern_that_finds_nothing_any_more_keeps_the_last_spaces_for_a_mount_may_be_gone(folder: Path) -> None:
    write(folder, "two", "s2")
    configuration = started(folder)

    (folder / "spaces").rename(folder / "elsewhere")
    with capture_logs() as logs:
        assert after_two_looks(configuration) is None
        assert configuration.load_changed_spaces() is None
    assert broken(configuration) == ["one.yml", "two.yml"]
    assert {line["problems"] for line in logs} == {
        f"{folder}/exporter.yml: accounts[0].space_files[0]: expected at least one file, found none for 'spaces/*.yml'"
    }
    assert [line["file"] for line in logs] == [f"{folder}/spaces/one.yml", f"{folder}/spaces/two.yml"]

    (folder / "elsewhere" / "two.yml").unlink()
    (folder / "elsewhere").rename(folder / "spaces")
    assert ids(configuration.load_changed_spaces()) == ["s1"]
    assert configuration.load_changed_spaces() is None
    assert broken(configuration) == []


def test_files_in_json_and_yaml_stand_side_by_side(folder: Path) -> None:
    (folder / "exporter.yml").write_text(CONFIG.replace("*.yml", "*"))
    (folder / "spaces" / "two.json").write_text(json.dumps([{"id": 2, "name": "Contoso"}]))
    configuration = started(folder)

    (folder / "spaces" / "two.json").write_text('[{"id": "s2"},]')
    write(folder, "one", "s1", "s3")
    assert ids(after_two_looks(configuration)) == ["s1", "s3", "2"]
    assert broken(configuration) == ["two.json"]

    (folder / "spaces" / "two.json").write_text('[{"id": "s2"}]')
    assert ids(after_two_looks(configuration)) == ["s1", "s3", "s2"]


def test_two_accounts_may_share_a_file(folder: Path) -> None:
    (folder / "exporter.yml").write_text(CONFIG + CONFIG.split("\n")[2].replace("acme", "globex"))
    configuration = started(folder)

    write(folder, "one", "s1", "s2")
    settings = after_two_looks(configuration)

    assert settings
    assert [[space.id for space in account.polled_spaces] for account in settings.accounts] == [["s1", "s2"]] * 2


def test_every_broken_file_is_an_error_at_the_start(folder: Path) -> None:
    (folder / "spaces" / "one.yml").write_text("- {idd: s1}")
    (folder / "spaces" / "two.yml").write_text("[")
    write(folder, "three", "s3")
    write(folder, "four", "s3")

    with pytest.raises(ConfigError) as refused:
        load(folder / "exporter.yml", {})

    assert str(refused.value).replace(f"{folder}/spaces/", "").splitlines() == [
        "one.yml:1: [0].id: expected text, found nothing",
        "one.yml:1: [0].idd: unknown key; did you mean id?",
        "three.yml:1: [0].id: expected a space of its own, found 's3', which stands at four.yml:1: [0] too",
        "two.yml:2: expected YAML, but did not find expected node content",
    ]


def test_a_pattern_that_no_file_can_match_is_an_error_like_others(folder: Path) -> None:
    (folder / "exporter.yml").write_text(CONFIG.replace("[spaces/*.yml]", r'["\0/*"]'))

    with pytest.raises(ConfigError, match=r"space_files\[0\]: expected text"):
        load(folder / "exporter.yml", {})


@pytest.mark.parametrize("wrong", ["broken", "broken and new", "repeated", "gone"])
def test_a_reload_that_met_a_bad_space_file_is_refused_and_forgotten_once_that_is_mended(
    folder: Path, wrong: str
) -> None:
    async def main() -> list[str]:
        world, reloader, told = followed(folder)
        one, two = folder / "spaces" / "one.yml", folder / "spaces" / "two.yml"
        if wrong == "gone":
            one.unlink()
        elif wrong == "repeated":
            write(folder, "one", "s1", "s1")
        else:
            (two if "new" in wrong else one).write_text("- {idd: s1}")
        with pytest.raises(ConfigError):
            await reloader.reload()
        seen = [told()[0][-3:], told()[-1][-3:]]
        for _ in range(3):
            await reloader.take_over_changes()
            seen += [told()[0][-3:], told()[-1][-3:]]
        write(folder, "one", "s1")
        two.unlink(missing_ok=True)
        await two_looks(reloader)
        await world.exporter.stop()
        assert spaces_shown(world) == ["s1"]
        return [*seen, *told()]

    assert run(main()) == ["0.0"] * 8 + ["config_last_reload_successful 1.0", 'space_file_up{file="one.yml"} 1.0']


def test_a_good_space_file_does_not_hide_that_the_main_file_is_refused(folder: Path) -> None:
    async def main() -> list[str]:
        world, reloader, told = followed(folder)
        (folder / "exporter.yml").write_text("accounts: [{name: ac")
        with pytest.raises(ConfigError):
            await reloader.reload()
        seen = [told()[0]]
        write(folder, "two", "s2")
        await two_looks(reloader)
        seen += [*spaces_shown(world), told()[0]]
        (folder / "exporter.yml").write_text(CONFIG)
        await reloader.reload()
        await world.exporter.stop()
        return [*seen, told()[0]]

    refused, good = "config_last_reload_successful 0.0", "config_last_reload_successful 1.0"
    assert run(main()) == [refused, "s1", "s2", refused, good]


def test_a_space_file_that_is_mended_does_not_make_a_refused_main_file_good(folder: Path) -> None:
    async def main() -> list[str]:
        world, reloader, told = followed(folder)
        (folder / "exporter.yml").write_text(CONFIG + "max_age: 2h")
        (folder / "spaces" / "one.yml").write_text("- {idd: s1}")
        with pytest.raises(ConfigError):
            await reloader.reload()
        write(folder, "one", "s1")
        await two_looks(reloader)
        await world.exporter.stop()
        return told()

    assert run(main()) == ["config_last_reload_successful 0.0", 'space_file_up{file="one.yml"} 1.0']


def test_a_file_whose_name_is_no_utf8_is_shown_as_far_as_it_can_be(folder: Path) -> None:
    async def main() -> list[str]:
        (folder / "spaces" / os.fsdecode(b"caf\xe9.yml")).write_text("- {id: s2}")
        world, _, told = followed(folder)
        await world.exporter.stop()
        return told()[1:]

    assert run(main()) == ['space_file_up{file="caf?.yml"} 1.0', 'space_file_up{file="one.yml"} 1.0']
