# SPDX-License-Identifier: MIT
"""Results of an experiment: one JSON file per case, written whole, reused while its inputs are the same."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from algo.files import write_atomically


def fingerprint(inputs: dict[str, Any]) -> str:
    """Twelve hex digits that change with any input."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


def cached(
    folder: Path, name: str, inputs: dict[str, Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The result of a case: read if saved with the same inputs, else computed and saved.

    The file holds ``inputs``, their fingerprint and ``result``. A file that is not ours raises ValueError.
    """
    path = folder / f"{name}.json"
    mark = fingerprint(inputs)
    if path.is_file():
        try:
            saved = json.loads(path.read_text())
            if saved["fingerprint"] == mark:
                return saved["result"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path} is not a result file: remove it to recompute") from None
    result = compute()
    content = {"name": name, "fingerprint": mark, "inputs": inputs, "result": result}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    return result


def load_results(folder: Path, names: Sequence[str], command: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Saved files by folder in ``names`` and case.

    FileNotFoundError where there is none (``command`` makes them), ValueError if damaged.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(path for name in names for path in folder.glob(f"{name}/*.json")):
        try:
            saved = json.loads(path.read_text())
            found.setdefault(path.parent.name, {})[saved["name"]] = saved
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path} is not a result file: remove it to recompute") from None
    if not found:
        raise FileNotFoundError(f"{folder} holds no results: run {command} first")
    return found
