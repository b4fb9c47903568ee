# SPDX-License-Identifier: MIT
"""Checks, hashing and JSON decoding that every frozen record of the simulator shares."""

import hashlib
import json
import math
from dataclasses import MISSING, asdict, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def reject_negative(record: Any) -> None:
    """Raise ValueError naming the first number of a dataclass that is negative, infinite or not a number."""
    for item in fields(record):
        value = getattr(record, item.name)
        values = value.items() if isinstance(value, dict) else [("", value)]
        for key, number in values:
            if isinstance(number, int | float) and not (number >= 0 and math.isfinite(number)):
                name = f"{item.name}.{key}" if key else item.name
                raise ValueError(f"{name} must be a finite number of at least 0, not {number}")


def digest(value: Any) -> str:
    """SHA-256 (first 16 hexadecimal digits) of the canonical JSON of a dataclass or plain data."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def decode(kind: type[Record], data: Any, where: str = "") -> Record:
    """Build a frozen dataclass from parsed JSON, strictly.

    Raises ValueError naming the field: unknown, missing, of the wrong type, or refused by the class itself.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'the file'} must hold an object, not {_shorten(data)}")
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise ValueError(f"{prefix}{name} is not a known field")
    values = {}
    for name, item in known.items():
        if name in data:
            values[name] = _decode_value(hints[name], data[name], prefix + name)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{prefix}{name} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _decode_value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _decode_value(hint, value, where)
    if is_dataclass(hint):
        return decode(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        return tuple(_decode_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _decode_value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    expected = (origin or hint).__name__
    raise ValueError(f"{where} must be {expected}, not {_shorten(value)}")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
