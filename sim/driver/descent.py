# SPDX-License-Identifier: MIT
"""Gradient descent with momentum: its rates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent:
    """Gradient descent with momentum; ValueError where a number is out of range."""

    rate: float
    """Of biases."""
    momentum: float = 0.9
    """0..1 without 1."""
    weight_rate: float = 0.01
    """Of a lite module's weights and scales."""
    classifier_rate: float = 0.001
    """Of the classifier's weights and biases."""

    def __post_init__(self) -> None:
        for name in ("rate", "weight_rate", "classifier_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in 0..1 without 1, not {self.momentum}")

    def groups(self, parameters: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """What is trained by name, for an optimiser of PyTorch: each with its rate."""
        return [{"params": [of], "lr": self._rate_of(name)} for name, of in parameters.items()]

    def _rate_of(self, name: str) -> float:
        if name.startswith("classifier."):
            return self.classifier_rate
        return self.weight_rate if name.endswith(".weight") else self.rate

    @property
    def factor(self) -> int:
        """The momentum in units of 2^-16."""
        return min(round(self.momentum * (1 << 16)), (1 << 16) - 1)
