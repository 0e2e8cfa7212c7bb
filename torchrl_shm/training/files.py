"""Files that a crash leaves whole: the old content or the new one, never a part of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name, flush it to the disk, and rename it.

    Args:
        path: the file; its folder must exist.
        content: all of its bytes.

    Raises:
        OSError: the disk is full or the folder cannot be written to; the old file is still there.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> OSError:
    """The same error with a message that names the file and the fix."""
    reason = error.strerror or error
    return OSError(
        error.errno,
        f"cannot write {path.name}: {reason}; free some space, or choose another folder",
        str(path.parent),
    )


def _flush_folder(path: Path) -> None:
    # a rename is on the disk only when its folder is
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
