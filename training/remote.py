"""A run directory in a bucket (any URL that fsspec opens: s3://, gs://, file://, memory://), copied after each save.

The checkpoint is uploaded beside the current one, then the file `checkpoints-meta/latest`, which names it. A process that
is killed in between leaves the previous checkpoint current. Credentials come from the environment and are in no file of the
run.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import cast

import fsspec
from fsspec import AbstractFileSystem

from training.files import UNFINISHED

RESUME = "checkpoints-meta/checkpoint.pth"  # of a run directory
LATEST = "checkpoints-meta/latest"  # of a URL: which of these two is in force; the other is written next
SLOTS = ("checkpoints-meta/checkpoint_a.pth", "checkpoints-meta/checkpoint_b.pth")
COPIED = (".hydra", "checkpoints", "samples", "policy", "model", "logs", "metrics.jsonl", "curves.png")


def is_url(path: object) -> bool:
    """Return whether a place is a URL instead of a local path."""
    return "://" in str(path)


@contextmanager
def reachable(url: str):
    """Context manager: convert the errors of a storage's client to one sentence that names the URL."""
    try:
        yield
    except Exception as error:  # each storage has its own kinds of errors
        if type(error) is ValueError:  # one of ours, with a better message
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{url} cannot be reached ({reason[:200]}); check the URL, and that the environment holds credentials for it"
        ) from error


class Remote:
    """The run directory at `url`. ValueError if no installed package opens such a URL."""

    def __init__(self, url: str):
        if "@" in url.split("://")[1].split("/")[0]:
            raise ValueError("a URL of a run must hold no user or password; set them in the environment")
        try:
            opened = fsspec.url_to_fs(url)
        except ImportError as error:
            raise ValueError(
                f"{url} needs a package that is not installed ({error}); for s3:// run pip install -e '.[s3]'"
            ) from error
        except ValueError as error:
            raise ValueError(f"{url} is no URL that fsspec opens ({error}); use s3://BUCKET/PREFIX, say") from error
        self.url = url
        self.files, self.root = cast(AbstractFileSystem, opened[0]), str(opened[1]).rstrip("/")
        self.sent: dict[str, int] = {}

    def read(self, name: str) -> bytes:
        """Return a file of the run. ValueError if it is missing."""
        with reachable(self.url):
            if not self.files.exists(f"{self.root}/{name}"):
                raise ValueError(f"{self.url} has no {name}; give the URL of a run")
            return cast(bytes, self.files.cat_file(f"{self.root}/{name}"))

    def holds(self, name: str) -> bool:
        with reachable(self.url):
            self.files.invalidate_cache()
            return bool(self.files.exists(f"{self.root}/{name}"))

    def checkpoint(self) -> bytes | None:
        """Return the current checkpoint, or None if the run was killed before its first."""
        return self.read(self._in_force()) if self.holds(LATEST) else None

    def _in_force(self) -> str:
        """Return the slot of the current checkpoint. ValueError if the file names anything else."""
        if (named := self.read(LATEST).decode("utf-8", "replace")) not in SLOTS:
            raise ValueError(f"{self.url}/{LATEST} names {named[:80]!r}, expected {' or '.join(SLOTS)}; it is damaged")
        return named

    def send(self, directory: Path) -> None:
        """Copy new files of `directory`, the checkpoint last."""
        with reachable(self.url):
            for file in files_of(directory):
                self._send(file, str(file.relative_to(directory)))
            if (directory / RESUME).is_file():
                force = self._in_force() if self.holds(LATEST) else SLOTS[1]
                other = SLOTS[1 - SLOTS.index(force)]
                if self._send(directory / RESUME, other):
                    self.files.pipe_file(f"{self.root}/{LATEST}", other.encode())

    def fetch(self, directory: Path) -> None:
        """Copy the run to `directory`, without its numbered snapshots, which are not needed to resume."""
        with reachable(self.url):
            names = [
                str(path)[str(path).index(self.root) + len(self.root) + 1 :] for path in self.files.find(self.root)
            ]
            names = [name for name in names if not {"", ".", ".."} & set(name.replace("\\", "/").split("/"))]
            wanted = {name: name for name in names if name.split("/")[0] in COPIED and name[:12] != "checkpoints/"}
            if self.holds(LATEST):
                wanted[self._in_force()] = RESUME
            for theirs, ours in wanted.items():
                (directory / ours).parent.mkdir(parents=True, exist_ok=True)
                self.files.get_file(f"{self.root}/{theirs}", str(directory / ours))
        self.sent = {
            str(file): file.stat().st_mtime_ns for file in [*files_of(directory), directory / RESUME] if file.exists()
        }

    def _send(self, file: Path, name: str) -> bool:
        """Copy a file if it differs from the last copy."""
        time = file.stat().st_mtime_ns
        if self.sent.get(str(file)) == time:
            return False
        self.files.makedirs(f"{self.root}/{name}".rsplit("/", 1)[0], exist_ok=True)
        self.files.put_file(str(file), f"{self.root}/{name}")
        self.sent[str(file)] = time
        return True


def files_of(directory: Path) -> list[Path]:
    """Return the files of a run directory that are copied, without its resume checkpoint, which is copied last."""
    paths = [path for name in COPIED for path in (directory / name, *(directory / name).rglob("*"))]
    return sorted(path for path in paths if path.is_file() and path.suffix != UNFINISHED)
