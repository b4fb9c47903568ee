# SPDX-License-Identifier: MIT
"""Sourced constants live in CSV files; this reads them and says where a bad cell is."""

import csv
from collections.abc import Sequence
from pathlib import Path


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file whose header is exactly ``columns``.

    Raises ValueError naming the file and the columns that are missing or unknown, or the row that is short
    or long; FileNotFoundError where there is no such file.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        if list(header) != list(columns):
            raise ValueError(f"{path.name}: columns must be {','.join(columns)}, not {','.join(header)}")
        rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"{path.name}, line {number}: expected {len(columns)} cells")
    return rows


def number(row: dict[str, str], column: str, path: Path) -> float:
    """The non-negative number in a cell; ValueError naming file, column and value otherwise."""
    try:
        value = float(row[column])
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{path.name}: {column} must be a number of at least 0, not {row[column]!r}")
    return value


def count(row: dict[str, str], column: str, path: Path) -> int:
    """The non-negative integer in a cell; ValueError naming file, column and value otherwise."""
    value = number(row, column, path)
    if value != int(value):
        raise ValueError(f"{path.name}: {column} must be a whole number, not {row[column]!r}")
    return int(value)
