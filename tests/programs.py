"""Programs and files that tests require."""

import os
import shutil

import pytest


def require_program(*names: str, package: str, mode: int = os.F_OK | os.X_OK) -> str:
    """Return the path of the first name that exists. If no name exists, skip the test, or fail it in CI."""
    for name in names:
        if path := shutil.which(name, mode):
            return path
    message = f"{' or '.join(names)} not found: apt-get install {package}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
