"""Writing files so that a reader, or an interrupted run, never sees half of one; what to do where it cannot be done."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

ELSEWHERE = (
    "write elsewhere: hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER after -m), and folder=FOLDER if the verb has it"
)
FULL = f"free some space, or {ELSEWHERE}"
NOT_ALLOWED = f"change its permissions, or {ELSEWHERE}"
NO_FOLDER = f"a file is where a folder was expected, or the other way round; move it, or {ELSEWHERE}"
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), NOT_ALLOWED),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), NO_FOLDER),
    errno.ENOENT: "expected a file or folder that exists; check the path",
    errno.EMFILE: "too many files are open; raise `ulimit -n`, or run fewer things at once",
}
"""What to do about what the operating system refused, by its error number."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write(temporary_path)` beside `path`, then move the result into place; a failure leaves the old file.

    Raises:
        OSError: of `path`, if the operating system refuses, whatever the writer of the format makes of that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    except Exception as error:
        refused = _refusal(error)
        if refused is None or refused.errno is None:
            raise
        raise OSError(refused.errno, refused.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _refusal(error: BaseException | None) -> OSError | None:
    """Return the error of the operating system that led to `error`; some writers stumble over their own files then."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def os_complaint(error: OSError) -> str:
    """Return one line on what the operating system refused: where, what it says, what to do."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    said = " ".join((error.strerror or str(error) or type(error).__name__).split())
    advice = "" if error.errno not in ADVICE else f"; {ADVICE[error.errno]}"
    return f"{': '.join([' -> '.join(names), said]) if names else said}{advice}"
