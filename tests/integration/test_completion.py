"""Shell completion: the printed script, run by bash with the real program."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import require_program

Complete = Callable[..., list[str]]
SERVE_OPTIONS = [
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
    """The program with the name that the completion scripts use."""
    program = "from exporter.cli import main; main(prog_name='chatapp-exporter')"
    path = tmp_path / "chatapp-exporter"
    path.write_text(f"""#!/bin/sh\nexec '{sys.executable}' -c "{program}" "$@"\n""")
    path.chmod(0o755)
    return path


@pytest.fixture
def complete(command: Path) -> Complete:
    """A function that returns the completions of bash for the last word, or FILE if bash completes file names."""
    bash = require_program("bash", package="bash")

    def completions(*words: str) -> list[str]:
        script = f"""
            PATH={command.parent}:$PATH
            compopt() {{ test "$1 $2" = "-o default" && echo FILE; }}  # the real compopt works only interactively
            eval "$(chatapp-exporter completion bash)"
            COMP_WORDS=(chatapp-exporter "$@") COMP_CWORD=$#
            _chatapp_exporter_completion chatapp-exporter
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run([bash, "--norc", "-c", script, "bash", *words], capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout.split()

    return completions


def test_commands_are_completed(complete: Complete) -> None:
    assert complete("") == ["serve", "demo", "check", "poll", "simulate", "schema", "completion"]
    assert complete("s") == ["serve", "simulate", "schema"]
    assert complete("completion", "") == ["bash", "zsh", "fish"]


def test_without_a_command_the_options_of_serve_are_completed(complete: Complete) -> None:
    assert sorted(complete("--")) == sorted(["--help", "--version", *SERVE_OPTIONS])
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
def test_file_names_are_completed_for_options_with_a_file(complete: Complete, words: str) -> None:
    assert complete(*words.split(), "exp") == ["FILE"]


@pytest.mark.parametrize(
    ("shell", "expected"),
    [("bash", "complete -o nosort -F"), ("zsh", "#compdef chatapp-exporter"), ("fish", "complete --no-files")],
)
def test_the_script_of_each_shell_is_printed(command: Path, shell: str, expected: str) -> None:
    done = subprocess.run([command, "completion", shell], capture_output=True, text=True)

    assert expected in done.stdout
    assert (done.stderr, done.returncode) == ("", 0)


def test_the_error_for_an_unknown_shell_lists_the_supported_shells(command: Path) -> None:
    done = subprocess.run([command, "completion", "tcsh"], capture_output=True, text=True)

    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in done.stderr
    assert done.returncode == 2
