"""The documents: written from the code where they can be, and of one mind with it where they cannot."""

from docs.__main__ import main


def test_the_pages_about_metrics_and_configuration_are_as_the_code_writes_them() -> None:
    assert main(["--check"]) == 0
