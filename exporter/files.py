"""Reads files that people name. Only regular files are opened, behind links too: a read of a FIFO can block for ever,
and opening a device can have side effects."""

import errno
import os
import stat
import tempfile
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_OF_THE_MACHINE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""These depend on the user or on the moment, so the path can still be valid."""


class NotRegularError(OSError):
    """It is not a regular file; `strerror` says what it is."""


def require_regular(path: Path) -> None:
    """Raises OSError: there is no such file, or it is not a regular one."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise NotRegularError(errno.EINVAL, _KINDS.get(stat.S_IFMT(mode), "a special file"))


def read_bytes(path: Path, longest: int = -1) -> bytes:
    """The first `longest` bytes of a regular file, or all.

    Raises:
        OSError: it cannot be read, or it is not a regular file.
    """
    require_regular(path)
    # do not wait for a writer if it became a FIFO after the check
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return file.read(longest)


def read_text(path: Path) -> str:
    """The text of a regular file, without a byte order mark.

    Raises:
        OSError: it cannot be read, or it is not a regular file.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path).decode("utf-8-sig")


def creation_problem(path: Path) -> str | None:
    """Why no user can create a file here; None if it is a regular file or one can be created. A directory
    that does not exist yet is no problem: it can be a volume that is mounted later."""
    try:
        require_regular(path)
    except FileNotFoundError:
        return _problem_of_directory(Path(os.path.realpath(path)).parent)
    except NotRegularError as error:
        return f"expected a regular file, found {error.strerror}"
    except OSError as error:
        return None if error.errno in _OF_THE_MACHINE else f"expected a file, found: {error.strerror}"
    return None


def _problem_of_directory(directory: Path) -> str | None:
    try:
        if directory.is_dir():
            tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            return f"expected a directory in which a file can be created, found: {error.strerror}"
    return None
