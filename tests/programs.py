"""Programs and files of the distribution that tests use."""

import os
import shutil

import pytest


def require_program(*names: str, package: str, mode: int = os.F_OK | os.X_OK) -> str:
    """The path of the first of these names that is there. Without any the test is skipped; in CI it fails."""
    for name in names:
        if path := shutil.which(name, mode):
            return path
    message = f"{' or '.join(names)} not found: apt-get install {package}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
