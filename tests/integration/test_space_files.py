"""Space files of a running exporter: after a change of a space file, the complete configuration is loaded and applied.
If it has errors, the current configuration is kept."""

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
    write_spaces(tmp_path, "one", "s1")
    return tmp_path


def write_spaces(directory: Path, name: str, *space_ids: str) -> Path:
    """Write a space file with these spaces."""
    file = directory / "spaces" / f"{name}.yml"
    file.write_text("".join(f"- {{id: {space}}}\n" for space in space_ids))
    return file


def loaded_configuration(directory: Path) -> Configuration:
    loader = configuration(directory / "exporter.yml")
    loader.load()
    return loader


def space_ids(settings: Settings) -> list[str]:
    return [space.id for space in settings.accounts[0].polled_spaces]


def spaces_after_two_checks(loader: Configuration) -> list[str]:
    """Return the spaces if a change is detected, else an empty list. The first check after a change returns False,
    because the file can be incomplete."""
    assert not loader.changed()
    return space_ids(loader.load()) if loader.changed() else []


def problems_after_two_checks(loader: Configuration) -> list[str]:
    with pytest.raises(ConfigError) as error:
        spaces_after_two_checks(loader)
    assert not loader.changed()
    assert loader.changed(retry=True)
    return str(error.value).splitlines()


def invalid_files(loader: Configuration) -> list[str]:
    return [Path(file).name for file, valid in loader.space_files().items() if not valid]


def world_and_reloader(
    directory: Path, loader: Configuration | None = None
) -> tuple[World, Reloader, Callable[[], list[str]]]:
    """Return a world with the configuration in `directory`, its reloader and a function that returns the metrics of
    reloads and space files."""
    loader = loader or configuration(directory / "exporter.yml")
    world = World(scenario(1), settings=loader.load())
    reloader = world.exporter.reloader(loader)

    def reload_metrics() -> list[str]:
        lines = world.samples("chatapp_exporter_config_last_reload_successful{")
        lines += world.samples("chatapp_exporter_config_last_reload_successful ")
        lines += world.samples("chatapp_exporter_space_file_up")
        return [line.replace(f"{directory}/spaces/", "").removeprefix("chatapp_exporter_") for line in lines]

    return world, reloader, reload_metrics


async def check_twice(reloader: Reloader) -> None:
    for _ in range(2):
        await reloader.follow_once()


async def problems_of_failed_reload(reloader: Reloader) -> list[str]:
    """Check the files until the reload fails, retry three times, and return the problems from the log. They are logged
    only once."""
    with capture_logs() as logs:
        await reloader.follow_once()
        for _ in range(4):
            with pytest.raises(ConfigError):
                await reloader.follow_once()
    assert [line["event"] for line in logs] == ["config reload failed, keeping the current configuration"]
    return str(logs[0]["problems"]).splitlines()


def exported_spaces(world: World) -> list[str]:
    lines = b"".join(world.exporter.exposition(openmetrics=False)).decode().splitlines()
    return [line.split('space="')[1].split('"')[0] for line in lines if line.startswith("chatapp_space_up{")]


def test_a_changed_space_file_is_applied(directory: Path) -> None:
    async def main() -> list[list[str]]:
        write_spaces(directory, "two", "s2")
        world, reloader, reload_metrics = world_and_reloader(directory)
        results = [exported_spaces(world)]
        write_spaces(directory, "one", "s1", "s3")
        await check_twice(reloader)
        await world.exporter.stop()
        return [*results, exported_spaces(world), reload_metrics()]

    assert run(main()) == [
        ["s1", "s2"],
        ["s1", "s2", "s3"],
        ["config_last_reload_successful 1.0", 'space_file_up{file="one.yml"} 1.0', 'space_file_up{file="two.yml"} 1.0'],
    ]


def test_an_invalid_space_file_keeps_the_current_configuration_until_it_is_fixed(directory: Path) -> None:
    async def main() -> list[list[str]]:
        write_spaces(directory, "two", "s2")
        world, reloader, reload_metrics = world_and_reloader(directory)
        results = [reload_metrics()]
        two, text = directory / "spaces" / "two.yml", "invalid YAML: did not find expected node content"
        two.write_text("- {id: s2}\n- {id: [")
        write_spaces(directory, "one", "s1", "s4")
        assert await problems_of_failed_reload(reloader) == [f"{two}:3: {text}"]
        results += [reload_metrics(), exported_spaces(world)]
        two.write_text("- {idd: s2}")
        assert await problems_of_failed_reload(reloader) == [
            f"{two}:1: [0].id: required key is missing",
            f"{two}:1: [0].idd: unknown key; did you mean id?",
        ]
        write_spaces(directory, "two", "s3")
        await check_twice(reloader)
        await world.exporter.stop()
        return [*results, reload_metrics(), exported_spaces(world)]

    valid = [
        "config_last_reload_successful 1.0",
        'space_file_up{file="one.yml"} 1.0',
        'space_file_up{file="two.yml"} 1.0',
    ]
    invalid = [
        "config_last_reload_successful 0.0",
        'space_file_up{file="one.yml"} 1.0',
        'space_file_up{file="two.yml"} 0.0',
    ]
    assert run(main()) == [valid, invalid, ["s1", "s2"], valid, ["s1", "s4", "s3"]]


def test_an_incomplete_file_that_is_being_written_removes_no_space(directory: Path) -> None:
    write_spaces(directory, "one", "s1", "s2")
    loader = loaded_configuration(directory)

    write_spaces(directory, "one", "s1")
    assert not loader.changed()
    write_spaces(directory, "one", "s1", "s2", "s3")

    assert spaces_after_two_checks(loader) == ["s1", "s2", "s3"]


def test_a_changed_file_is_loaded_only_after_two_checks_find_the_same_version(directory: Path) -> None:
    loader = loaded_configuration(directory)

    for check in range(3):
        write_spaces(directory, "one", *(f"s{n}" for n in range(check)))
        assert not loader.changed()

    assert loader.changed()
    assert space_ids(loader.load()) == ["s0", "s1"]


def test_no_change_is_detected_after_a_load(directory: Path) -> None:
    loader = loaded_configuration(directory)

    assert [loader.changed() for _ in range(3)] == [False] * 3
    write_spaces(directory, "one", "s1", "s2")
    assert spaces_after_two_checks(loader) == ["s1", "s2"]
    assert [loader.changed() for _ in range(3)] == [False] * 3


def test_a_replaced_file_of_the_same_size_and_modification_time_is_detected(directory: Path) -> None:
    file = directory / "spaces" / "one.yml"
    loader = loaded_configuration(directory)

    replacement = write_spaces(directory, "replacement", "s9").rename(directory / "replacement")
    os.utime(replacement, ns=(0, file.stat().st_mtime_ns))
    replacement.rename(file)

    assert spaces_after_two_checks(loader) == ["s9"]


def test_a_changed_file_with_its_old_modification_time_is_detected(directory: Path) -> None:
    loader = loaded_configuration(directory)
    file = directory / "spaces" / "one.yml"
    before = file.stat()

    write_spaces(directory, "one", "s9")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert spaces_after_two_checks(loader) == ["s9"]


def test_a_space_that_moves_to_another_file_is_kept(directory: Path) -> None:
    write_spaces(directory, "one", "s1", "s2")
    write_spaces(directory, "two", "s3")
    loader = loaded_configuration(directory)

    write_spaces(directory, "two", "s2", "s3")
    write_spaces(directory, "one", "s1")

    assert spaces_after_two_checks(loader) == ["s1", "s2", "s3"]
    assert invalid_files(loader) == []


def test_a_space_in_two_files_is_an_error_in_the_second_file(directory: Path) -> None:
    write_spaces(directory, "two", "s2")
    loader = loaded_configuration(directory)

    write_spaces(directory, "one", "s1", "s2")

    assert problems_after_two_checks(loader) == [
        f"{directory}/spaces/two.yml:1: [0].id: duplicate space id 's2' (first defined at {directory}/spaces/one.yml:2)"
    ]
    assert invalid_files(loader) == ["two.yml"]
    write_spaces(directory, "two", "s3")
    assert spaces_after_two_checks(loader) == ["s1", "s2", "s3"]
    assert invalid_files(loader) == []


def test_a_space_in_the_main_file_and_a_space_file_is_an_error_in_the_space_file(directory: Path) -> None:
    (directory / "exporter.yml").write_text(CONFIG.replace("space_files", "spaces: [{id: s0}], space_files"))
    loader = loaded_configuration(directory)

    write_spaces(directory, "one", "s1", "s0")

    assert problems_after_two_checks(loader) == [
        f"{directory}/spaces/one.yml:2: [1].id: duplicate space id 's0' (first defined at {directory}/exporter.yml:3)"
    ]
    assert invalid_files(loader) == ["one.yml"]


def test_a_space_in_an_old_and_a_new_file_is_an_error_in_the_new_file(directory: Path) -> None:
    loader = loaded_configuration(directory)

    write_spaces(directory, "two", "s1")

    assert problems_after_two_checks(loader) == [
        f"{directory}/spaces/two.yml:1: [0].id: duplicate space id 's1' (first defined at {directory}/spaces/one.yml:1)"
    ]
    assert invalid_files(loader) == ["two.yml"]


def test_a_symbolic_link_without_a_target_is_an_error_until_the_target_exists(directory: Path) -> None:
    write_spaces(directory, "two", "s2")
    loader = loaded_configuration(directory)
    two, target = directory / "spaces" / "two.yml", directory / "target"

    two.unlink()
    two.symlink_to(target)
    problems = [f"{two}: cannot read the file: No such file or directory"]
    assert problems_after_two_checks(loader) == problems
    assert invalid_files(loader) == ["two.yml"]

    target.write_text("- {id: s3}")
    assert spaces_after_two_checks(loader) == ["s1", "s3"]
    assert invalid_files(loader) == []


def ignores_file_permissions() -> bool:
    with NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return os.access(file.name, os.R_OK)


@pytest.mark.skipif(ignores_file_permissions(), reason="this user can read every file (root)")
def test_a_file_without_permission_to_read_is_an_error_until_it_is_readable(directory: Path) -> None:
    loader = loaded_configuration(directory)

    write_spaces(directory, "one", "s1", "s2").chmod(0o000)
    assert problems_after_two_checks(loader) == [f"{directory}/spaces/one.yml: cannot read the file: Permission denied"]
    assert invalid_files(loader) == ["one.yml"]

    (directory / "spaces" / "one.yml").chmod(0o400)
    assert spaces_after_two_checks(loader) == ["s1", "s2"]
    assert invalid_files(loader) == []


def test_the_spaces_of_a_deleted_file_are_removed_after_two_checks(directory: Path) -> None:
    two = write_spaces(directory, "two", "s2")
    loader = loaded_configuration(directory)

    for _ in range(2):  # to replace a file, a program can delete it first
        loader.changed()
        two.unlink()
        assert not loader.changed()
        write_spaces(directory, "two", "s2")
    loader.changed()
    two.unlink()

    assert spaces_after_two_checks(loader) == ["s1"]
    assert [Path(file).name for file in loader.space_files()] == ["one.yml"]


def test_a_pattern_that_no_longer_matches_a_file_keeps_the_current_spaces(directory: Path) -> None:
    """The cause can be a missing mount."""

    async def main() -> list[list[str]]:
        write_spaces(directory, "two", "s2")
        world, reloader, reload_metrics = world_and_reloader(directory)
        (directory / "spaces").rename(directory / "renamed")
        assert await problems_of_failed_reload(reloader) == [
            f"{directory}/exporter.yml:3: accounts[0].space_files[0]: expected at least one file,"
            f" found none for '{directory}/spaces/*.yml'"
        ]
        results = [exported_spaces(world), reload_metrics()[:1]]
        (directory / "renamed" / "two.yml").unlink()
        (directory / "renamed").rename(directory / "spaces")
        await check_twice(reloader)
        await world.exporter.stop()
        return [*results, exported_spaces(world), reload_metrics()]

    assert run(main()) == [
        ["s1", "s2"],
        ["config_last_reload_successful 0.0"],
        ["s1"],
        ["config_last_reload_successful 1.0", 'space_file_up{file="one.yml"} 1.0'],
    ]


def test_json_and_yaml_space_files_can_be_used_together(directory: Path) -> None:
    (directory / "exporter.yml").write_text(CONFIG.replace("*.yml", "*"))
    (directory / "spaces" / "two.json").write_text(json.dumps([{"id": 2, "name": "Contoso"}]))
    loader = loaded_configuration(directory)

    (directory / "spaces" / "two.json").write_text('[{"id": "s2"},')
    write_spaces(directory, "one", "s1", "s3")
    assert len(problems_after_two_checks(loader)) == 1
    assert invalid_files(loader) == ["two.json"]

    (directory / "spaces" / "two.json").write_text('[{"id": "s2"}]')
    assert spaces_after_two_checks(loader) == ["s1", "s3", "s2"]


def test_two_accounts_can_use_the_same_space_file(directory: Path) -> None:
    (directory / "exporter.yml").write_text(CONFIG + CONFIG.split("\n")[2].replace("acme", "globex"))
    loader = loaded_configuration(directory)

    write_spaces(directory, "one", "s1", "s2")

    assert not loader.changed()
    assert loader.changed()
    assert [[space.id for space in account.polled_spaces] for account in loader.load().accounts] == [["s1", "s2"]] * 2


def test_an_invalid_file_of_two_accounts_is_reported_once(directory: Path) -> None:
    (directory / "exporter.yml").write_text(CONFIG + CONFIG.split("\n")[2].replace("acme", "globex"))
    (directory / "spaces" / "one.yml").write_text("- s1")

    with pytest.raises(ConfigError) as error:
        load(directory / "exporter.yml", {})

    assert str(error.value) == f"{directory}/spaces/one.yml:1: [0]: expected a mapping, found text (not shown)"


def test_the_problems_of_all_space_files_are_reported_at_the_start(directory: Path) -> None:
    (directory / "spaces" / "one.yml").write_text("- {idd: s1}")
    (directory / "spaces" / "two.yml").write_text("[")
    write_spaces(directory, "three", "s3")
    write_spaces(directory, "four", "s3")

    with pytest.raises(ConfigError) as error:
        load(directory / "exporter.yml", {})

    assert str(error.value).replace(f"{directory}/spaces/", "").splitlines() == [
        "one.yml:1: [0].id: required key is missing",
        "one.yml:1: [0].idd: unknown key; did you mean id?",
        "three.yml:1: [0].id: duplicate space id 's3' (first defined at four.yml:1)",
        "two.yml:2: invalid YAML: did not find expected node content",
    ]


def test_a_file_pattern_with_a_null_character_is_an_error(directory: Path) -> None:
    (directory / "exporter.yml").write_text(CONFIG.replace("[spaces/*.yml]", r'["\0/*"]'))

    with pytest.raises(ConfigError, match=r"space_files\[0\]: expected text"):
        load(directory / "exporter.yml", {})


@pytest.mark.parametrize("defect", ["invalid", "invalid and new", "duplicate"])
def test_a_reload_with_an_invalid_space_file_fails_until_the_file_is_fixed(directory: Path, defect: str) -> None:
    async def main() -> list[str]:
        world, reloader, reload_metrics = world_and_reloader(directory)
        first_file, second_file = directory / "spaces" / "one.yml", directory / "spaces" / "two.yml"
        if defect == "duplicate":
            write_spaces(directory, "one", "s1", "s1")
        else:
            (second_file if "new" in defect else first_file).write_text("- {idd: s1}")
        with pytest.raises(ConfigError):
            await reloader.reload()
        results = [reload_metrics()[0][-3:], reload_metrics()[-1][-3:]]
        for _ in range(3):
            await reloader.follow_once()
            results += [reload_metrics()[0][-3:], reload_metrics()[-1][-3:]]
        write_spaces(directory, "one", "s1")
        second_file.unlink(missing_ok=True)
        await check_twice(reloader)
        await world.exporter.stop()
        assert exported_spaces(world) == ["s1"]
        return [*results, *reload_metrics()]

    assert run(main()) == ["0.0"] * 8 + ["config_last_reload_successful 1.0", 'space_file_up{file="one.yml"} 1.0']


def test_a_changed_space_file_does_not_hide_an_error_in_the_main_file(directory: Path) -> None:
    async def main() -> list[str]:
        world, reloader, reload_metrics = world_and_reloader(directory)
        (directory / "exporter.yml").write_text("accounts: [{name: ac")
        with pytest.raises(ConfigError):
            await reloader.reload()
        results = [reload_metrics()[0]]
        write_spaces(directory, "two", "s2")
        with capture_logs() as logs:
            await reloader.follow_once()
            with pytest.raises(ConfigError):
                await reloader.follow_once()
        assert logs == []  # the problems were logged before
        results += [*exported_spaces(world), reload_metrics()[0]]
        (directory / "exporter.yml").write_text(CONFIG)
        await reloader.reload()
        await world.exporter.stop()
        return [*results, *exported_spaces(world), reload_metrics()[0]]

    failed, successful = "config_last_reload_successful 0.0", "config_last_reload_successful 1.0"
    assert run(main()) == [failed, "s1", failed, "s1", "s2", successful]


def test_a_failed_reload_keeps_the_series_of_the_current_space_files(directory: Path) -> None:
    async def main() -> list[list[str]]:
        world, reloader, reload_metrics = world_and_reloader(directory)
        results = [reload_metrics()[1:]]
        (directory / "other.yml").write_text("[{id: s9}]")
        changed = CONFIG.replace("spaces/*.yml", "other.yml")
        (directory / "exporter.yml").write_text(changed + "max_age: soon\n")
        with pytest.raises(ConfigError):
            await reloader.reload()
        results.append(reload_metrics()[1:])
        await world.exporter.stop()
        return results

    before, after = run(main())

    assert before == after != []


def test_a_changed_space_file_also_applies_a_changed_main_file(directory: Path) -> None:
    async def main() -> list[str]:
        world, reloader, _ = world_and_reloader(directory)
        (directory / "exporter.yml").write_text(CONFIG.replace("acme", "globex"))
        write_spaces(directory, "two", "s2")
        await check_twice(reloader)
        await world.exporter.stop()
        assert exported_spaces(world) == ["s1", "s2"]
        return [line.partition("}")[0] for line in world.samples("chatapp_account_spaces")]

    assert run(main()) == ['chatapp_account_spaces{account="globex"']


def test_a_file_name_that_is_not_utf8_is_exported_with_question_marks(directory: Path) -> None:
    async def main() -> list[str]:
        (directory / "spaces" / os.fsdecode(b"caf\xe9.yml")).write_text("- {id: s2}")
        world, _, reload_metrics = world_and_reloader(directory)
        await world.exporter.stop()
        return reload_metrics()[1:]

    assert run(main()) == ['space_file_up{file="caf?.yml"} 1.0', 'space_file_up{file="one.yml"} 1.0']


def test_a_change_with_an_empty_secret_file_is_applied_after_the_secret_is_restored(directory: Path) -> None:
    secret = directory / "secret"
    secret.write_text("secret")
    text = CONFIG.replace("access_key_secret: secret", "access_key_secret_file: secret")
    (directory / "exporter.yml").write_text(text)

    async def main() -> tuple[list[str], list[list[str]]]:
        world, reloader, reload_metrics = world_and_reloader(directory)
        write_spaces(directory, "one", "s1", "s2")
        write_text(secret, "")
        problems = await problems_of_failed_reload(reloader)
        results = [reload_metrics()[:1], exported_spaces(world)]
        write_text(secret, "secret")
        await reloader.follow_once()
        results += [reload_metrics()[:1], exported_spaces(world)]
        await world.exporter.stop()
        return problems, results

    problems, results = run(main())

    assert problems == [
        f"{directory}/exporter.yml:3: accounts[0].access_key_secret_file: expected a secret in this file, found nothing"
    ]
    assert results == [
        ["config_last_reload_successful 0.0"],
        ["s1"],
        ["config_last_reload_successful 1.0"],
        ["s1", "s2"],
    ]


def write_text(file: Path, text: str) -> None:
    file.write_text(text)


def test_a_reload_with_more_than_10_qps_for_one_key_keeps_the_current_configuration(directory: Path) -> None:
    async def main() -> list[list[str]]:
        world, reloader, reload_metrics = world_and_reloader(directory)
        (directory / "exporter.yml").write_text(
            f"{CONFIG}  - {{name: globex, access_key_id: id, access_key_secret: s, qps: 6}}"
        )
        with pytest.raises(ConfigError) as error:
            await reloader.reload()
        await world.exporter.stop()
        return [str(error.value).splitlines(), exported_spaces(world), reload_metrics()[:1]]

    assert run(main()) == [
        [
            f"{directory}/exporter.yml:4: accounts[1].qps: expected a total of at most 10 for all accounts with the"
            " same access key, found 11 ('acme' 5, 'globex' 6)"
        ],
        ["s1"],
        ["config_last_reload_successful 0.0"],
    ]


def test_spaces_polled_by_several_accounts_are_logged_at_the_start_and_after_a_change(directory: Path) -> None:
    second = "  - {name: globex, access_key_id: id, access_key_secret: secret, spaces: [{id: s1}, {id: s2}]}\n"
    (directory / "exporter.yml").write_text(CONFIG + second)

    async def main() -> None:
        world, reloader, _ = world_and_reloader(directory)
        await world.exporter.start()
        await reloader.reload()
        write_spaces(directory, "two", "s2")
        await reloader.reload()
        (directory / "exporter.yml").write_text(CONFIG)
        await reloader.reload()
        await world.exporter.stop()

    with capture_logs() as logs:
        run(main())

    prefix = "accounts acme, globex have the same access key and poll the same"
    assert [line["warning"] for line in logs if line["log_level"] == "warning" and "warning" in line] == [
        f"{prefix} space s1; configure each space in one account only",
        f"{prefix} spaces s1, s2; configure each space in one account only",
    ]
    assert [line["event"] for line in logs if "warning" in line] == ["spaces polled by several accounts"] * 2


def test_a_reload_replaces_placeholders_and_fails_if_a_variable_is_not_set(directory: Path) -> None:
    environ = {"SPACE": "s7"}
    (directory / "spaces" / "one.yml").write_text("- id: ${SPACE}\n")

    async def main() -> list[list[str]]:
        world, reloader, _ = world_and_reloader(
            directory, configuration(directory / "exporter.yml", environ, expand=True)
        )
        results = [exported_spaces(world)]
        environ["SPACE"] = "s8"
        await reloader.reload()
        results.append(exported_spaces(world))
        del environ["SPACE"]
        with pytest.raises(ConfigError) as error:
            await reloader.reload()
        await world.exporter.stop()
        return [*results, exported_spaces(world), str(error.value).splitlines()]

    assert run(main()) == [
        ["s7"],
        ["s8"],
        ["s8"],
        [f"{directory}/spaces/one.yml:1: [0].id: environment variable SPACE is not set"],
    ]


@pytest.mark.parametrize("removed_first", [True, False])
def test_a_space_that_moves_to_another_file_is_kept_if_the_edits_are_detected_separately(
    directory: Path, removed_first: bool
) -> None:
    """No change is applied while a space file is still changing."""

    async def main() -> list[list[str]]:
        write_spaces(directory, "two", "s2")
        world, reloader, _ = world_and_reloader(directory)
        edits = [("one", ["s3"]), ("two", ["s2", "s1"])]
        results = []
        for name, spaces in edits if removed_first else reversed(edits):
            write_spaces(directory, name, *spaces)
            await reloader.follow_once()
            results.append(exported_spaces(world))
        await reloader.follow_once()
        await world.exporter.stop()
        return [*results, sorted(exported_spaces(world))]

    assert run(main()) == [["s1", "s2"], ["s1", "s2"], ["s1", "s2", "s3"]]


def test_a_changed_file_with_its_old_access_and_modification_times_is_detected(directory: Path) -> None:
    loader = loaded_configuration(directory)
    old = (directory / "spaces" / "one.yml").stat()
    write_spaces(directory, "one", "s9")
    os.utime(directory / "spaces" / "one.yml", ns=(old.st_atime_ns, old.st_mtime_ns))

    assert spaces_after_two_checks(loader) == ["s9"]


@pytest.mark.parametrize("call", ["load", "changed"])
def test_files_on_a_hung_disk_fail_the_reload_and_do_not_delay_polls(directory: Path, call: str) -> None:
    async def main() -> list[list[str]]:
        world, reloader, reload_metrics = world_and_reloader(directory)
        await world.exporter.start()
        loop = virtual_loop()
        loop.hangs = lambda hanging: f"Configuration.{call}" in repr(hanging)
        polls = len(world.polls)
        with capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(ConfigError, match="timed out after 60 s; check the disk or network mount"):
                    await (reloader.reload() if call == "load" else reloader.follow_once())
        assert len(world.polls) > polls
        results = [reload_metrics()[:1], exported_spaces(world)]
        loop.release()
        await (reloader.reload() if call == "load" else check_twice(reloader))
        await world.exporter.stop()
        failed = [line for line in logs if line["event"] == "config reload failed, keeping the current configuration"]
        assert len(failed) == (3 if call == "load" else 1)  # a periodic check logs the same failure only once
        return [*results, reload_metrics()[:1]]

    failed, successful = ["config_last_reload_successful 0.0"], ["config_last_reload_successful 1.0"]
    assert run(main()) == [failed, ["s1"], successful]


def test_a_reload_after_a_change_of_the_access_key_file_opens_a_new_client(directory: Path) -> None:
    (directory / "id").write_text("first")
    (directory / "exporter.yml").write_text(CONFIG.replace("access_key_id: id", "access_key_id_file: id"))

    async def main() -> list[int]:
        world, reloader, _ = world_and_reloader(directory)
        await reloader.reload()
        opened = [len(world.endpoints)]
        (directory / "id").write_text("second")
        await reloader.reload()
        await world.exporter.stop()
        return [*opened, len(world.endpoints)]

    assert run(main()) == [1, 2]


def test_a_space_file_that_becomes_a_fifo_fails_the_reload_and_keeps_its_spaces(directory: Path) -> None:
    async def main() -> list[str]:
        world, reloader, reload_metrics = world_and_reloader(directory)
        (directory / "spaces" / "one.yml").unlink()
        os.mkfifo(directory / "spaces" / "one.yml")
        problems = await problems_of_failed_reload(reloader)
        assert [problem.replace(f"{directory}/", "") for problem in problems] == [
            "spaces/one.yml: expected a regular file, found a FIFO"
        ]
        results = [*reload_metrics(), *exported_spaces(world)]
        await world.exporter.stop()
        return results

    assert run(main()) == ["config_last_reload_successful 0.0", 'space_file_up{file="one.yml"} 0.0', "s1"]


def test_a_file_that_changes_at_each_check_delays_other_changes_for_at_most_six_checks(directory: Path) -> None:
    async def main() -> int:
        world, reloader, _ = world_and_reloader(directory)
        write_spaces(directory, "two", "s2")
        for check in range(1, 20):
            write_spaces(directory, "one", "s1", f"new-{check}")
            await reloader.follow_once()
            if "s2" in exported_spaces(world):
                break
        await world.exporter.stop()
        return check

    assert run(main()) == 6


def test_the_account_identity_does_not_include_a_temporary_access_key(directory: Path) -> None:
    """The id of a temporary access key changes, for example every hour."""
    for name in ("id", "token"):
        (directory / name).write_text("first")
    config = CONFIG.replace("access_key_id: id", "access_key_id_file: id")
    (directory / "exporter.yml").write_text(config.replace("secret,", "secret, security_token_file: token,"))
    loader = configuration(directory / "exporter.yml")

    before = loader.load().identities
    (directory / "id").write_text("second")
    assert loader.load().identities == before

    (directory / "exporter.yml").write_text(config)
    permanent = loader.load().identities
    (directory / "id").write_text("third")
    assert loader.load().identities != permanent
