# SPDX-License-Identifier: MIT
"""Breaks a block on purpose, to see that its tests notice."""

import importlib.util
import sys
from types import ModuleType


def mutated(module: str, old: str, new: str) -> ModuleType:
    """A private copy of ``module`` in whose source ``old``, which must stand there once, reads ``new``."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    with open(spec.origin) as file:
        source = file.read()
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module}"
    copy = ModuleType(f"{module}_mutant")
    copy.__package__ = module.rpartition(".")[0]
    sys.modules[copy.__name__] = copy  # dataclasses and pickles look their module up
    try:
        exec(compile(source.replace(old, new), spec.origin, "exec"), copy.__dict__)
    finally:
        del sys.modules[copy.__name__]
    return copy
