"""Completion as a shell asks for it: the printed script, run by the real shell on the real program."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import require_program

Complete = Callable[..., list[str]]
OPTIONS_OF_SERVE = [
    "--config.file",
    "--config.expand-environment-variables",
    "--shard",
    "--web.listen-address",
    "--log.level",
    "--log.format",
    "--web.config.file",
    "--web.enable-lifecycle",
]


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """The program under the name for which the scripts complete."""
    program = "from exporter.cli import main; main(prog_name='chatapp-exporter')"
    path = tmp_path / "chatapp-exporter"
    path.write_text(f"""#!/bin/sh\nexec '{sys.executable}' -c "{program}" "$@"\n""")
    path.chmod(0o755)
    return path


@pytest.fixture
def complete(command: Path) -> Complete:
    """What bash offers for the last of these words; file names, which bash itself completes, as FILE."""
    bash = require_program("bash", package="bash")

    def offered(*words: str) -> list[str]:
        script = f"""
            PATH={command.parent}:$PATH
            compopt() {{ test "$1 $2" = "-o default" && echo FILE; }}  # bash allows it while a person presses TAB only
            eval "$(chatapp-exporter completion bash)"
            COMP_WORDS=(chatapp-exporter "$@") COMP_CWORD=$#
            _chatapp_exporter_completion chatapp-exporter
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run([bash, "--norc", "-c", script, "bash", *words], capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout.split()

    return offered


def test_commands_are_completed(complete: Complete) -> None:
    assert complete("") == ["serve", "demo", "check", "poll", "simulate", "schema", "completion"]
    assert complete("s") == ["serve", "simulate", "schema"]
    assert complete("completion", "") == ["bash", "zsh", "fish"]


def test_without_a_command_the_options_of_serve_are_completed(complete: Complete) -> None:
    assert sorted(complete("--")) == sorted(["--help", "--version", *OPTIONS_OF_SERVE])
    assert sorted(complete("--log.level", "info", "--web")) == [
        "--web.config.file",
        "--web.enable-lifecycle",
        "--web.listen-address",
    ]


def test_options_and_choices_of_a_command_are_completed(complete: Complete) -> None:
    assert complete("poll", "--") == [
        "--config.file",
        "--config.expand-environment-variables",
        "--output",
        "--fail-on",
        "--help",
    ]
    assert complete("poll", "--fail-on", "re") == ["red", "restricted"]
    assert complete("check", "--shard", "7", "--c") == ["--config.file", "--config.expand-environment-variables"]


@pytest.mark.parametrize("words", ["--config.file", "check --config.file", "demo --scenario", "--web.config.file"])
def test_file_names_are_completed_where_a_file_belongs(complete: Complete, words: str) -> None:
    assert complete(*words.split(), "exp") == ["FILE"]


@pytest.mark.parametrize(
    ("shell", "told"),
    [("bash", "complete -o nosort -F"), ("zsh", "#compdef chatapp-exporter"), ("fish", "complete --no-files")],
)
def test_each_shell_has_its_script(command: Path, shell: str, told: str) -> None:
    done = subprocess.run([command, "completion", shell], capture_output=True, text=True)

    assert told in done.stdout
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_shell_that_it_does_not_know_is_named_with_those_that_it_does(command: Path) -> None:
    done = subprocess.run([command, "completion", "tcsh"], capture_output=True, text=True)

    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in done.stderr
    assert done.returncode == 2
