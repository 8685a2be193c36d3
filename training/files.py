"""Atomic files: written to a temporary name, moved into place when complete.

A killed process leaves `NAME.part`, which the next start removes (`sweep`). File modes follow the umask, whatever the
writing library chose. A disk that is full, read-only or unreachable ends in one sentence (`Unwritable`).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".part"
TEMPORARY = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # safetensors' own files beside the one it writes
ROOM = 1 << 20  # bytes free below which a disk counts as full


class Unwritable(OSError):
    """A file could not be written; the message has the file, the place and the reason in one sentence."""


@contextmanager
def replacing(target: Path | str, durable: bool = True) -> Iterator[Path]:
    """`with replacing(target) as part:` write to `part`; it becomes `target` when the block ends, and is removed when it fails.

    A stream (`is_stream`) is written to as it is.

    Args:
        target: the file, whose directory exists.
        durable: wait until the disk has it. Without, a loss of power may lose a file; a kill does not.

    Raises:
        Unwritable: the file cannot be written.
    """
    target = Path(target)
    if is_stream(target):
        with writing(target):
            yield target
        return
    part = target.with_name(target.name + UNFINISHED)
    try:
        with writing(target):
            part.unlink(missing_ok=True)  # of a process that was killed
            part.touch()
            mode = part.stat().st_mode  # the mode of the umask; safetensors and tempfile choose 0600
            yield part
            _finish(part, mode, durable)
            os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if durable:
        _flush(target.parent)


def is_stream(target: Path) -> bool:
    """Return whether it is a device, a pipe or a name in /dev, which must not be replaced by a file (/dev/null,
    /dev/stdout).
    """
    return target.absolute().parts[1:2] == ("dev",) or (
        target.exists() and not target.is_file() and not target.is_dir()
    )


@contextmanager
def replacing_directory(target: Path | str) -> Iterator[Path]:
    """Return a context like `replacing`, for several files that belong together: `part` is an empty directory.

    A new directory appears as a whole. In an existing directory the files are replaced one by one, weights last. Files that the
    block did not write stay.
    """
    target = Path(target)
    part = target.with_name(target.name + UNFINISHED)
    try:
        with writing(target):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            mode = part.stat().st_mode & 0o666
            yield part
            files = sorted(part.rglob("*"), key=lambda path: (path.suffix == ".safetensors", path))
            for file in files:
                if file.is_file():
                    _finish(file, mode, durable=True)
            if not target.exists():
                os.rename(part, target)
            else:
                for file in files:
                    place = target / file.relative_to(part)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    if file.is_file():
                        os.replace(file, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _flush(target.parent)


def write_text(target: Path | str, text: str, durable: bool = False) -> None:
    """Write a whole text file in UTF-8 with newlines as they are."""
    with replacing(target, durable) as part:
        part.write_bytes(text.encode("utf-8"))


def append_line(file: Path, line: str) -> None:
    """Add a line to a file. If the disk takes only a part of it, that part is removed. Raises Unwritable."""
    append(file, (line + "\n").encode("utf-8"))


def append(file: Path, content: bytes) -> None:
    """Add to a file, all or nothing. Raises Unwritable."""
    with writing(file), file.open("ab", buffering=0) as opened:
        before = opened.seek(0, os.SEEK_END)
        left = memoryview(content)
        try:
            while left:
                left = left[opened.write(left) or 0 :]
        except OSError:
            opened.truncate(before)
            raise


def whole_lines(file: Path) -> list[str]:
    """Return the complete lines of a growing file. An incomplete last line, left by a kill, is also cut off on disk."""
    content = file.read_bytes() if file.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with replacing(file) as part:
            part.write_bytes(whole)
    try:
        return whole.decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason} at byte {error.start}); it is damaged") from error


def sweep(directory: Path) -> None:
    """Remove unfinished files of killed writers in a directory of one owner, at any depth."""
    left = [
        *directory.rglob(f"*{UNFINISHED}"),
        *(path for path in directory.rglob(".tmp*") if TEMPORARY.fullmatch(path.name)),
    ]
    for path in sorted(left, reverse=True):
        if not path.parent.exists():  # in a directory that is gone
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def make_directory(directory: Path | str, named: str) -> Path:
    """Make a directory if it does not exist. named: the setting and its value. ValueError if it cannot be made."""
    directory = Path(directory)
    check_place(directory, named)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{named} cannot be made ({error.strerror}); give another directory") from error
    return directory


def check_place(directory: Path | str, named: str) -> None:
    """Refuse, before any work, a directory that cannot be made or written to. named: the setting and its value.

    Raises:
        ValueError: a name that is too long, a file on the way, no permission, a read-only file system, a full disk.
    """
    directory, named = Path(directory), named if len(named) <= 200 else f"{named[:200]}..."
    try:
        ancestor = next(path for path in (directory, *directory.absolute().parents) if path.exists())
        if not ancestor.is_dir():
            raise ValueError(f"{named} cannot be a directory: {ancestor} is a file; give another directory")
        about = os.statvfs(ancestor) if sys.platform != "win32" else None
    except OSError as error:  # a name too long, a directory that cannot be entered
        raise ValueError(f"{named} cannot be used ({error.strerror}); give another directory") from error
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise ValueError(f"{named} cannot be written to (no permission in {ancestor}); give another directory")
    if about is None:
        return
    if about.f_flag & os.ST_RDONLY:
        raise ValueError(f"{named} is on a read-only file system; give another directory")
    if longest := [name for name in directory.parts if len(name.encode("utf-8", "surrogateescape")) > about.f_namemax]:
        raise ValueError(
            f"{named} has a name of {len(longest[0])} characters, and {about.f_namemax} are allowed; give another"
        )
    if about.f_blocks and about.f_bavail * about.f_frsize < ROOM:
        raise ValueError(f"{named} is on a disk that is full; free some space, or give another directory")
    try:  # /proc, quotas, remapped mounts: only a trial shows whether it works
        trial = tempfile.mkdtemp(suffix=UNFINISHED, dir=ancestor)
        with suppress(FileNotFoundError):  # another process of the run has swept it
            os.rmdir(trial)
    except OSError as error:
        raise ValueError(f"{named} cannot be made ({error.strerror}); give another directory") from error


def check_cache(directory: Path | str | None, named: str) -> None:
    """Apply `check_place`, but accept an existing directory that is not writable: it may hold data to read. None: no
    directory.
    """
    if directory is not None and not Path(directory).is_dir():
        check_place(directory, named)


@contextmanager
def writing(target: Path | str) -> Iterator[None]:
    """Context manager: convert the errors that Python, torch or safetensors raise for a refusing disk to `Unwritable`."""
    try:
        yield
    except Unwritable:
        raise
    except Exception as error:
        if (reason := refusal(error)) is None:
            raise
        raise Unwritable(
            f"{target} cannot be written ({reason}); free some space there, or give another place"
        ) from error


def refusal(error: Exception) -> str | None:
    """Return the disk's reason in an exception; None if it has another cause."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    message = str(error)
    if number := re.search(r"\(os error (\d+)\)", message):  # safetensors
        return os.strerror(int(number[1]))
    return (
        "the disk is full" if "inline_container" in message or "PytorchStreamWriter" in message else None
    )  # torch.save


def _finish(file: Path, mode: int, durable: bool) -> None:
    """Set the mode of a file and flush it to the disk."""
    file.chmod(mode & 0o777)
    if durable:
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())


def _flush(directory: Path) -> None:
    """Flush a rename to the disk. Windows opens no directory."""
    if os.name == "nt":
        return
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
