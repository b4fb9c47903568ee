# SPDX-License-Identifier: MIT
"""Where files go, and how they get there whole."""

import os
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
