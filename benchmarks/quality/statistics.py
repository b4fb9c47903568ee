# SPDX-License-Identifier: MIT
"""Means with their 95 % interval."""

import math

import numpy as np
from numpy.typing import NDArray

_T_95 = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
    11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 20: 2.086, 30: 2.042,
}  # fmt: skip
"""Two-sided 95 % quantiles of Student's t by degrees of freedom (any table of the distribution)."""


def mean_and_half_interval(x: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of independent values and half its 95 % interval (Student t); the latter is nan for one value.

    Degrees of freedom between two tabled ones take the lower, wider one.
    """
    n = len(x)
    if n < 2:
        return float(x.mean()), math.nan
    freedom = max(tabled for tabled in _T_95 if tabled <= n - 1)
    return float(x.mean()), _T_95[freedom] * float(x.std(ddof=1)) / math.sqrt(n)


def bootstrap_interval(x: NDArray[np.float64], n_resamples: int = 10_000, seed: int = 0) -> list[float]:
    """Percentile bootstrap 95 % interval of the mean of independent values."""
    rng = np.random.default_rng(seed)
    means = [x[rng.integers(len(x), size=len(x))].mean() for _ in range(n_resamples)]
    return [float(q) for q in np.percentile(means, [2.5, 97.5])]
