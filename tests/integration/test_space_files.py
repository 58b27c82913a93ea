"""Space files while the exporter runs: a change of one loads the complete configuration, to apply or refuse it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from configured import configuration, load
from structlog.testing import capture_logs
from virtual_time import run, virtual_loop
from world import World, scenario

from exporter.config.loading import Configuration
from exporter.config.problems import ConfigError
from exporter.config.settings import Settings
from exporter.runtime.reload import Reloader

CONFIG = """
accounts:
  - {name: acme, access_key_id: id, access_key_secret: secret, space_files: [spaces/*.yml]}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "exporter.yml").write_text(CONFIG)
    (tmp_path / "spaces").mkdir()
    write(tmp_path, "one", "s1")
    return tmp_path


def write(directory: Path, name: str, *ids: str) -> Path:
    """A space file with these spaces."""
    file = directory / "spaces" / f"{name}.yml"
    file.write_text("".join(f"- {{id: {space}}}\n" for space in ids))
    return file


def started(directory: Path) -> Configuration:
    loader = configuration(directory / "exporter.yml")
    loader.load()
    return loader


def ids(settings: Settings) -> list[str]:
    return [space.id for space in settings.accounts[0].polled_spaces]


def after_two_looks(loader: Configuration) -> list[str]:
    """The spaces after a change, or none without one; at the first look, the file may be half written."""
    assert not loader.changed()
    return ids(loader.load()) if loader.changed() else []


def problems_after_two_looks(loader: Configuration) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        after_two_looks(loader)
    assert not loader.changed()
    assert loader.changed(retry=True)
    return str(refused.value).splitlines()


def broken(loader: Configuration) -> list[str]:
    return [Path(file).name for file, up in loader.space_files().items() if not up]


def followed(directory: Path, loader: Configuration | None = None) -> tuple[World, Reloader, Callable[[], list[str]]]:
    """An exporter with the configuration of the directory, its reloader, and what metrics say of reloads."""
    loader = loader or configuration(directory / "exporter.yml")
    world = World(scenario(1), settings=loader.load())
    reloader = world.exporter.reloader(loader)

    def shown() -> list[str]:
        lines = world.samples("chatapp_exporter_config_last_reload_successful{")
        lines += world.samples("chatapp_exporter_config_last_reload_successful ")
        lines += world.samples("chatapp_exporter_space_file_up")
        return [line.replace(f"{directory}/spaces/", "").removeprefix("chatapp_exporter_") for line in lines]

    return world, reloader, shown


async def two_looks(reloader: Reloader) -> None:
    for _ in range(2):
        await reloader.follow_once()


async def two_looks_and_a_refusal(reloader: Reloader) -> list[str]:
    """What the log says."""
    with capture_logs() as logs:
        await reloader.follow_once()
        for _ in range(4):
            with pytest.raises(ConfigError):
                await reloader.follow_once()
    assert [line["event"] for line in logs] == ["config reload failed, keeping the current configuration"]
    return str(logs[0]["problems"]).splitlines()


def spaces_shown(world: World) -> list[str]:
    lines = b"".join(world.exporter.exposition(openmetrics=False)).decode().splitlines()
    return [line.split('space="')[1].split('"')[0] for line in lines if line.startswith("chatapp_space_up{")]


def test_a_changed_file_is_applied(directory: Path) -> None:
    async def main() -> list[list[str]]:
        write(directory, "two", "s2")
        world, reloader, shown = followed(directory)
        seen = [spaces_shown(world)]
        write(directory, "one", "s1", "s3")
        await two_looks(reloader)
        await world.exporter.stop()
        return [*seen, spaces_shown(world), shown()]

    assert run(main()) == [
        ["s1", "s2"],
        ["s1", "s2", "s3"],
        ["config_last_reload_successful 1.0", 'space_file_up{file="one.yml"} 1.0', 'space_file_up{file="two.yml"} 1.0'],
    ]


def test_a_broken_file_keeps_the_current_configuration_until_it_is_fixed(directory: Path) -> None:
    async def main() -> list[list[str]]:
        write(directory, "two", "s2")
        world, reloader, shown = followed(directory)
        seen = [shown()]
        two, text = directory / "spaces" / "two.yml", "invalid YAML: did not find expected node content"
        two.write_text("- {id: s2}\n- {id: [")
        write(directory, "one", "s1", "s4")
        assert await two_looks_and_a_refusal(reloader) == [f"{two}:3: {text}"]
        seen += [shown(), spaces_shown(world)]
        two.write_text("- {idd: s2}")
        assert await two_looks_and_a_refusal(reloader) == [
            f"{two}:1: [0].id: required key is missing",
            f"{two}:1: [0].idd: unknown key; did you mean id?",
        ]
        write(directory, "two", "s3")
        await two_looks(reloader)
        await world.exporter.stop()
        return [*seen, shown(), spaces_shown(world)]

    good = [
        "config_last_reload_successful 1.0",
        'space_file_up{file="one.yml"} 1.0',
        'space_file_up{file="two.yml"} 1.0',
    ]
    bad = [
        "config_last_reload_successful 0.0",
        'space_file_up{file="one.yml"} 1.0',
        'space_file_up{file="two.yml"} 0.0',
    ]
    assert run(main()) == [good, bad, ["s1", "s2"], good, ["s1", "s4", "s3"]]


def test_a_file_that_is_half_written_for_a_moment_removes_no_space(directory: Path) -> None:
    write(directory, "one", "s1", "s2")
    loader = started(directory)

    write(directory, "one", "s1")
    assert not loader.changed()
    write(directory, "one", "s1", "s2", "s3")

    assert after_two_looks(loader) == ["s1", "s2", "s3"]


def test_a_file_that_changes_at_every_look_waits_until_it_is_written(directory: Path) -> None:
    loader = started(directory)

    for look in range(3):
        write(directory, "one", *(f"s{n}" for n in range(look)))
        assert not loader.changed()

    assert loader.changed()
    assert ids(loader.load()) == ["s0", "s1"]


def test_nothing_is_a_change_after_a_load(directory: Path) -> None:
    loader = started(directory)

    assert [loader.changed() for _ in range(3)] == [False] * 3
    write(directory, "one", "s1", "s2")
    assert after_two_looks(loader) == ["s1", "s2"]
    assert [loader.changed() for _ in range(3)] == [False] * 3


def test_a_file_of_the_same_size_and_time_is_seen_when_it_is_replaced(directory: Path) -> None:
    one = directory / "spaces" / "one.yml"
    loader = started(directory)

    renewed = write(directory, "renewed.tmp", "s9").rename(directory / "renewed")
    os.utime(renewed, ns=(0, one.stat().st_mtime_ns))
    renewed.rename(one)

    assert after_two_looks(loader) == ["s9"]


def test_a_file_whose_time_is_set_back_after_a_change_is_seen(directory: Path) -> None:
    loader = started(directory)
    one = directory / "spaces" / "one.yml"
    before = one.stat()

    write(directory, "one", "s9")
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert after_two_looks(loader) == ["s9"]


def test_a_space_that_moves_from_one_file_to_another_is_kept(directory: Path) -> None:
    write(directory, "one", "s1", "s2")
    write(directory, "two", "s3")
    loader = started(directory)

    write(directory, "two", "s2", "s3")
    write(directory, "one", "s1")

    assert after_two_looks(loader) == ["s1", "s2", "s3"]
    assert broken(loader) == []


def test_two_files_that_list_one_space_are_refused_and_the_second_is_named(directory: Path) -> None:
    write(directory, "two", "s2")
    loader = started(directory)

    write(directory, "one", "s1", "s2")

    assert problems_after_two_looks(loader) == [
        f"{directory}/spaces/two.yml:1: [0].id: duplicate space id 's2' (first defined at {directory}/spaces/one.yml:2)"
    ]
    assert broken(loader) == ["two.yml"]
    write(directory, "two", "s3")
    assert after_two_looks(loader) == ["s1", "s2", "s3"]
    assert broken(loader) == []


def test_a_space_of_the_main_file_that_a_space_file_lists_too_is_refused(directory: Path) -> None:
    (directory / "exporter.yml").write_text(CONFIG.replace("space_files", "spaces: [{id: s0}], space_files"))
    loader = started(directory)

    write(directory, "one", "s1", "s0")

    assert problems_after_two_looks(loader) == [
        f"{directory}/spaces/one.yml:2: [1].id: duplicate space id 's0' (first defined at {directory}/exporter.yml:3)"
    ]
    assert broken(loader) == ["one.yml"]


def test_a_new_file_that_repeats_another_is_refused(directory: Path) -> None:
    loader = started(directory)

    write(directory, "two", "s1")

    assert problems_after_two_looks(loader) == [
        f"{directory}/spaces/two.yml:1: [0].id: duplicate space id 's1' (first defined at {directory}/spaces/one.yml:1)"
    ]
    assert broken(loader) == ["two.yml"]


def test_a_link_to_no_file_is_refused_until_the_file_exists(directory: Path) -> None:
    write(directory, "two", "s2")
    loader = started(directory)
    two, target = directory / "spaces" / "two.yml", directory / "target"

    two.unlink()
    two.symlink_to(target)
    problems = [f"{two}: expected a readable file, found: No such file or directory"]
    assert problems_after_two_looks(loader) == problems
    assert broken(loader) == ["two.yml"]

    target.write_text("- {id: s3}")
    assert after_two_looks(loader) == ["s1", "s3"]
    assert broken(loader) == []


def reads_everything() -> bool:
    with NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return os.access(file.name, os.R_OK)


@pytest.mark.skipif(reads_everything(), reason="this user can read every file, as root can")
def test_a_file_without_permission_to_read_is_refused_until_it_has_it(directory: Path) -> None:
    loader = started(directory)

    write(directory, "one", "s1", "s2").chmod(0o000)
    assert problems_after_two_looks(loader) == [
        f"{directory}/spaces/one.yml: expected a readable file, found: Permission denied"
    ]
    assert broken(loader) == ["one.yml"]

    (directory / "spaces" / "one.yml").chmod(0o400)
    assert after_two_looks(loader) == ["s1", "s2"]
    assert broken(loader) == []


def test_the_spaces_of_a_removed_file_are_removed_once_it_stays_away(directory: Path) -> None:
    two = write(directory, "two", "s2")
    loader = started(directory)

    for _ in range(2):  # a program that replaces it can have removed it just now
        loader.changed()
        two.unlink()
        assert not loader.changed()
        write(directory, "two", "s2")
    loader.changed()
    two.unlink()

    assert after_two_looks(loader) == ["s1"]
    assert [Path(file).name for file in loader.space_files()] == ["one.yml"]


def test_a_pattern_that_finds_no_file_any_more_keeps_the_current_spaces_for_a_mount_can_be_gone(
    directory: Path,
) -> None:
    async def main() -> list[list[str]]:
        write(directory, "two", "s2")
        world, reloader, shown = followed(directory)
        (directory / "spaces").rename(directory / "elsewhere")
        assert await two_looks_and_a_refusal(reloader) == [
            f"{directory}/exporter.yml:3: accounts[0].space_files[0]: expected at least one file,"
            f" found none for '{directory}/spaces/*.yml'"
        ]
        seen = [spaces_shown(world), shown()[:1]]
        (directory / "elsewhere" / "two.yml").unlink()
        (directory / "elsewhere").rename(directory / "spaces")
        await two_looks(reloader)
        await world.exporter.stop()
        return [*seen, spaces_shown(world), shown()]

    assert run(main()) == [
        ["s1", "s2"],
        ["config_last_reload_successful 0.0"],
        ["s1"],
        ["config_last_reload_successful 1.0", 'space_file_up{file="one.yml"} 1.0'],
    ]


def test_files_in_json_and_yaml_are_read_side_by_side(directory: Path) -> None:
    (directory / "exporter.yml").write_text(CONFIG.replace("*.yml", "*"))
    (directory / "spaces" / "two.json").write_text(json.dumps([{"id": 2, "name": "Contoso"}]))
    loader = started(directory)

    (directory / "spaces" / "two.json").write_text('[{"id": "s2"},')
    write(directory, "one", "s1", "s3")
    assert len(problems_after_two_looks(loader)) == 1
    assert broken(loader) == ["two.json"]

    (directory / "spaces" / "two.json").write_text('[{"id": "s2"}]')
    assert after_two_looks(loader) == ["s1", "s3", "s2"]


def test_two_accounts_can_share_a_file(directory: Path) -> None:
    (directory / "exporter.yml").write_text(CONFIG + CONFIG.split("\n")[2].replace("acme", "globex"))
    loader = started(directory)

    write(directory, "one", "s1", "s2")

    assert not loader.changed()
    assert loader.changed()
    assert [[space.id for space in account.polled_spaces] for account in loader.load().accounts] == [["s1", "s2"]] * 2


def test_a_broken_file_of_two_accounts_is_reported_once(directory: Path) -> None:
    (directory / "exporter.yml").write_text(CONFIG + CONFIG.split("\n")[2].replace("acme", "globex"))
    (directory / "spaces" / "one.yml").write_text("- s1")

    with pytest.raises(ConfigError) as refused:
        load(directory / "exporter.yml", {})

    assert str(refused.value) == f"{directory}/spaces/one.yml:1: [0]: expected a mapping, found text (not shown)"


def test_every_broken_file_is_an_error_at_the_start(directory: Path) -> None:
    (directory / "spaces" / "one.yml").write_text("- {idd: s1}")
    (directory / "spaces" / "two.yml").write_text("[")
    write(directory, "three", "s3")
    write(directory, "four", "s3")

    with pytest.raises(ConfigError) as refused:
        load(directory / "exporter.yml", {})

    assert str(refused.value).replace(f"{directory}/spaces/", "").splitlines() == [
        "one.yml:1: [0].id: required key is missing",
        "one.yml:1: [0].idd: unknown key; did you mean id?",
        "three.yml:1: [0].id: duplicate space id 's3' (first defined at four.yml:1)",
        "two.yml:2: invalid YAML: did not find expected node content",
    ]


def test_a_pattern_that_no_file_can_match_is_an_error_like_others(directory: Path) -> None:
    (directory / "exporter.yml").write_text(CONFIG.replace("[spaces/*.yml]", r'["\0/*"]'))

    with pytest.raises(ConfigError, match=r"space_files\[0\]: expected text"):
        load(directory / "exporter.yml", {})


@pytest.mark.parametrize("wrong", ["broken", "broken and new", "repeated"])
def test_a_reload_with_a_bad_space_file_is_refused_until_the_file_is_fixed(directory: Path, wrong: str) -> None:
    async def main() -> list[str]:
        world, reloader, shown = followed(directory)
        one, two = directory / "spaces" / "one.yml", directory / "spaces" / "two.yml"
        if wrong == "repeated":
            write(directory, "one", "s1", "s1")
        else:
            (two if "new" in wrong else one).write_text("- {idd: s1}")
        with pytest.raises(ConfigError):
            await reloader.reload()
        seen = [shown()[0][-3:], shown()[-1][-3:]]
        for _ in range(3):
            await reloader.follow_once()
            seen += [shown()[0][-3:], shown()[-1][-3:]]
        write(directory, "one", "s1")
        two.unlink(missing_ok=True)
        await two_looks(reloader)
        await world.exporter.stop()
        assert spaces_shown(world) == ["s1"]
        return [*seen, *shown()]

    assert run(main()) == ["0.0"] * 8 + ["config_last_reload_successful 1.0", 'space_file_up{file="one.yml"} 1.0']


def test_a_changed_space_file_does_not_hide_that_the_main_file_is_refused(directory: Path) -> None:
    async def main() -> list[str]:
        world, reloader, shown = followed(directory)
        (directory / "exporter.yml").write_text("accounts: [{name: ac")
        with pytest.raises(ConfigError):
            await reloader.reload()
        seen = [shown()[0]]
        write(directory, "two", "s2")
        with capture_logs() as logs:
            await reloader.follow_once()
            with pytest.raises(ConfigError):
                await reloader.follow_once()
        assert logs == []  # it was logged
        seen += [*spaces_shown(world), shown()[0]]
        (directory / "exporter.yml").write_text(CONFIG)
        await reloader.reload()
        await world.exporter.stop()
        return [*seen, *spaces_shown(world), shown()[0]]

    refused, good = "config_last_reload_successful 0.0", "config_last_reload_successful 1.0"
    assert run(main()) == [refused, "s1", refused, "s1", "s2", good]


def test_a_reload_that_fails_keeps_the_series_of_the_files_that_are_polled(directory: Path) -> None:
    async def main() -> list[list[str]]:
        world, reloader, shown = followed(directory)
        seen = [shown()[1:]]
        (directory / "other.yml").write_text("[{id: s9}]")
        changed = CONFIG.replace("spaces/*.yml", "other.yml")
        (directory / "exporter.yml").write_text(changed + "max_age: soon\n")
        with pytest.raises(ConfigError):
            await reloader.reload()
        seen.append(shown()[1:])
        await world.exporter.stop()
        return seen

    before, after = run(main())

    assert before == after != []


def test_a_changed_space_file_applies_a_changed_main_file_too(directory: Path) -> None:
    async def main() -> list[str]:
        world, reloader, _ = followed(directory)
        (directory / "exporter.yml").write_text(CONFIG.replace("acme", "globex"))
        write(directory, "two", "s2")
        await two_looks(reloader)
        await world.exporter.stop()
        assert spaces_shown(world) == ["s1", "s2"]
        return [line.partition("}")[0] for line in world.samples("chatapp_account_spaces")]

    assert run(main()) == ['chatapp_account_spaces{account="globex"']


def test_a_name_that_is_not_utf8_is_shown_with_question_marks(directory: Path) -> None:
    async def main() -> list[str]:
        (directory / "spaces" / os.fsdecode(b"caf\xe9.yml")).write_text("- {id: s2}")
        world, _, shown = followed(directory)
        await world.exporter.stop()
        return shown()[1:]

    assert run(main()) == ['space_file_up{file="caf?.yml"} 1.0', 'space_file_up{file="one.yml"} 1.0']


def test_a_change_while_a_secret_cannot_be_read_is_applied_once_it_can(directory: Path) -> None:
    secret = directory / "secret"
    secret.write_text("secret")
    text = CONFIG.replace("access_key_secret: secret", "access_key_secret_file: secret")
    (directory / "exporter.yml").write_text(text)

    async def main() -> tuple[list[str], list[list[str]]]:
        world, reloader, shown = followed(directory)
        write(directory, "one", "s1", "s2")
        put(secret, "")
        problems = await two_looks_and_a_refusal(reloader)
        seen = [shown()[:1], spaces_shown(world)]
        put(secret, "secret")
        await reloader.follow_once()
        seen += [shown()[:1], spaces_shown(world)]
        await world.exporter.stop()
        return problems, seen

    problems, seen = run(main())

    assert problems == [
        f"{directory}/exporter.yml:3: accounts[0].access_key_secret_file: expected a secret in this file, found nothing"
    ]
    assert seen == [
        ["config_last_reload_successful 0.0"],
        ["s1"],
        ["config_last_reload_successful 1.0"],
        ["s1", "s2"],
    ]


def put(file: Path, text: str) -> None:
    file.write_text(text)


def test_a_reload_to_more_than_10_qps_for_one_key_keeps_the_current_configuration(directory: Path) -> None:
    async def main() -> list[list[str]]:
        world, reloader, shown = followed(directory)
        (directory / "exporter.yml").write_text(
            f"{CONFIG}  - {{name: globex, access_key_id: id, access_key_secret: s, qps: 6}}"
        )
        with pytest.raises(ConfigError) as refused:
            await reloader.reload()
        await world.exporter.stop()
        return [str(refused.value).splitlines(), spaces_shown(world), shown()[:1]]

    assert run(main()) == [
        [
            f"{directory}/exporter.yml:4: accounts[1].qps: expected a total of at most 10 for all accounts with the"
            " same access key, found 11 ('acme' 5, 'globex' 6)"
        ],
        ["s1"],
        ["config_last_reload_successful 0.0"],
    ]


def test_spaces_that_are_polled_twice_are_logged_once_at_a_start_and_when_a_reload_finds_more(directory: Path) -> None:
    second = "  - {name: globex, access_key_id: id, access_key_secret: secret, spaces: [{id: s1}, {id: s2}]}\n"
    (directory / "exporter.yml").write_text(CONFIG + second)

    async def main() -> None:
        world, reloader, _ = followed(directory)
        await world.exporter.start()
        await reloader.reload()
        write(directory, "two", "s2")
        await reloader.reload()
        (directory / "exporter.yml").write_text(CONFIG)
        await reloader.reload()
        await world.exporter.stop()

    with capture_logs() as logs:
        run(main())

    have_one_key = "accounts acme, globex have the same access key and poll the same"
    assert [line["warning"] for line in logs if line["log_level"] == "warning" and "warning" in line] == [
        f"{have_one_key} space s1; configure each space in one account only",
        f"{have_one_key} spaces s1, s2; configure each space in one account only",
    ]
    assert [line["event"] for line in logs if "warning" in line] == ["spaces polled by several accounts"] * 2


def test_a_reload_replaces_placeholders_anew_and_is_refused_where_one_is_not_set(directory: Path) -> None:
    environ = {"SPACE": "s7"}
    (directory / "spaces" / "one.yml").write_text("- id: ${SPACE}\n")

    async def main() -> list[list[str]]:
        world, reloader, _ = followed(directory, configuration(directory / "exporter.yml", environ, expand=True))
        seen = [spaces_shown(world)]
        environ["SPACE"] = "s8"
        await reloader.reload()
        seen.append(spaces_shown(world))
        del environ["SPACE"]
        with pytest.raises(ConfigError) as refused:
            await reloader.reload()
        await world.exporter.stop()
        return [*seen, spaces_shown(world), str(refused.value).splitlines()]

    assert run(main()) == [
        ["s7"],
        ["s8"],
        ["s8"],
        [f"{directory}/spaces/one.yml:1: [0].id: environment variable SPACE is not set"],
    ]


@pytest.mark.parametrize("removed_first", [True, False])
def test_a_space_that_moves_to_another_file_stays_when_the_two_edits_are_seen_apart(
    directory: Path, removed_first: bool
) -> None:
    """Nothing is applied while a followed file changes."""

    async def main() -> list[list[str]]:
        write(directory, "two", "s2")
        world, reloader, _ = followed(directory)
        edits = [("one", ["s3"]), ("two", ["s2", "s1"])]
        seen = []
        for name, spaces in edits if removed_first else reversed(edits):
            write(directory, name, *spaces)
            await reloader.follow_once()
            seen.append(spaces_shown(world))
        await reloader.follow_once()
        await world.exporter.stop()
        return [*seen, sorted(spaces_shown(world))]

    assert run(main()) == [["s1", "s2"], ["s1", "s2"], ["s1", "s2", "s3"]]


def test_a_file_with_the_times_and_size_of_the_one_that_it_replaces_is_noticed(directory: Path) -> None:
    loader = started(directory)
    old = (directory / "spaces" / "one.yml").stat()
    write(directory, "one", "s9")
    os.utime(directory / "spaces" / "one.yml", ns=(old.st_atime_ns, old.st_mtime_ns))

    assert after_two_looks(loader) == ["s9"]


@pytest.mark.parametrize("call", ["load", "changed"])
def test_files_that_do_not_answer_are_a_failed_reload_and_hold_up_no_poll(directory: Path, call: str) -> None:
    async def main() -> list[list[str]]:
        world, reloader, shown = followed(directory)
        await world.exporter.start()
        loop = virtual_loop()
        loop.hangs = lambda hanging: f"Configuration.{call}" in repr(hanging)
        polls = len(world.polls)
        with capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(ConfigError, match="timed out after 60 s; check the disk or network mount"):
                    await (reloader.reload() if call == "load" else reloader.follow_once())
        assert len(world.polls) > polls
        seen = [shown()[:1], spaces_shown(world)]
        loop.release()
        await (reloader.reload() if call == "load" else two_looks(reloader))
        await world.exporter.stop()
        failed = [line for line in logs if line["event"] == "config reload failed, keeping the current configuration"]
        assert len(failed) == (3 if call == "load" else 1)  # each that was requested
        return [*seen, shown()[:1]]

    failed, good = ["config_last_reload_successful 0.0"], ["config_last_reload_successful 1.0"]
    assert run(main()) == [failed, ["s1"], good]


def test_a_reload_after_the_key_in_a_file_was_replaced_polls_the_other_account_from_the_start(directory: Path) -> None:
    (directory / "id").write_text("first")
    (directory / "exporter.yml").write_text(CONFIG.replace("access_key_id: id", "access_key_id_file: id"))

    async def main() -> list[int]:
        world, reloader, _ = followed(directory)
        await reloader.reload()
        opened = [len(world.endpoints)]
        (directory / "id").write_text("second")
        await reloader.reload()
        await world.exporter.stop()
        return [*opened, len(world.endpoints)]

    assert run(main()) == [1, 2]


def test_a_space_file_that_becomes_a_fifo_is_a_failed_reload_and_its_spaces_are_polled_further(directory: Path) -> None:
    async def main() -> list[str]:
        world, reloader, shown = followed(directory)
        (directory / "spaces" / "one.yml").unlink()
        os.mkfifo(directory / "spaces" / "one.yml")
        problems = await two_looks_and_a_refusal(reloader)
        assert [problem.replace(f"{directory}/", "") for problem in problems] == [
            "spaces/one.yml: expected a readable file, found: a FIFO"
        ]
        seen = [*shown(), *spaces_shown(world)]
        await world.exporter.stop()
        return seen

    assert run(main()) == ["config_last_reload_successful 0.0", 'space_file_up{file="one.yml"} 0.0', "s1"]


def test_a_file_that_never_stops_to_change_delays_the_others_for_a_minute_at_most(directory: Path) -> None:
    async def main() -> int:
        world, reloader, _ = followed(directory)
        write(directory, "two", "s2")
        for look in range(1, 20):
            write(directory, "one", "s1", f"never-the-same-{look}")
            await reloader.follow_once()
            if "s2" in spaces_shown(world):
                break
        await world.exporter.stop()
        return look

    assert run(main()) == 6


def test_a_key_with_a_security_token_is_no_part_of_what_the_values_belong_to(directory: Path) -> None:
    """A temporary key has another id every hour."""
    for name in ("id", "token"):
        (directory / name).write_text("first")
    config = CONFIG.replace("access_key_id: id", "access_key_id_file: id")
    (directory / "exporter.yml").write_text(config.replace("secret,", "secret, security_token_file: token,"))
    loader = configuration(directory / "exporter.yml")

    before = loader.load().identities
    (directory / "id").write_text("second")
    assert loader.load().identities == before

    (directory / "exporter.yml").write_text(config)
    lasting = loader.load().identities
    (directory / "id").write_text("third")
    assert loader.load().identities != lasting
