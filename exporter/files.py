"""Reads files, and checks whether a file can be created. Opens only regular files and links to them: reading a FIFO can
block forever, and opening a device can have side effects."""

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
_IGNORED_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Errors that depend on the current user or the free space. The path can be valid for the exporter's user."""


class NotRegularError(OSError):
    """The path is not a regular file. `strerror` is the type that was found."""


def require_regular(path: Path) -> None:
    """Check that the path is a regular file or a link to a regular file.

    Raises:
        NotRegularError: the path is not a regular file.
        OSError: the file does not exist or cannot be accessed.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise NotRegularError(errno.EINVAL, _KINDS.get(stat.S_IFMT(mode), "a special file"))


def read_error_text(error: OSError) -> str:
    """Return the text of an error of `read_bytes`, without the path."""
    if isinstance(error, NotRegularError):
        return f"expected a regular file, found {error.strerror}"
    return f"cannot read the file: {error.strerror or 'no such path'}"


def read_bytes(path: Path, max_bytes: int = -1) -> bytes:
    """Return at most `max_bytes` from the start of a regular file. The default is all bytes.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    require_regular(path)
    # non-blocking: after the check, the file can be replaced with a FIFO that has no writer
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return file.read(max_bytes)


def read_text(path: Path) -> str:
    """Return the text of a regular file, without a byte order mark.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        UnicodeDecodeError: the file is not UTF-8.
    """
    return read_bytes(path).decode("utf-8-sig")


def creation_problem(path: Path) -> str | None:
    """Return an error text if this file cannot be created, or is not a regular file. Otherwise return None.

    Missing permissions and a full disk are not errors here, because they depend on the user and the time. A missing
    directory is not an error, because it can be a volume that is mounted later.
    """
    try:
        require_regular(path)
    except FileNotFoundError:
        return _directory_problem(Path(os.path.realpath(path)).parent)
    except NotRegularError as error:
        return read_error_text(error)
    except OSError as error:
        return None if error.errno in _IGNORED_ERRORS else f"cannot create the file: {error.strerror}"
    return None


def _directory_problem(directory: Path) -> str | None:
    try:
        if directory.is_dir():
            tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        if error.errno not in _IGNORED_ERRORS:
            return f"cannot create a file in the directory: {error.strerror}"
    return None
