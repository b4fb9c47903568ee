# SPDX-License-Identifier: MIT
"""Shapes and pipelines of the radix engine and of the local value selection."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from hw.stream.config import RegroupConfig
from hw.topk.config import TopKConfig

COUNT_LATENCY_CYCLES = 3
"""Line compared to the counters that include it: digits, counts of the line, counters."""

PICK_CYCLES = 3
"""Counters complete to the decision: group, its bins, bin. The decision is the last of them."""

DECIDE_CYCLES = COUNT_LATENCY_CYCLES + PICK_CYCLES - 1
"""Last line of a pass compared to its decision."""

PROBABILITY_BITS = 12

Engine = Literal["quickselect", "radix"]
Semantics = Literal["probability", "score"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RadixConfig(TopKConfig):
    """One built radix engine; ``n`` and ``k`` are run-time values up to the built maximum."""

    MAX_ELEMENT_BITS: ClassVar[int] = 40

    digit_bits: int = 6
    """Bits decided by one pass; 2, 4 or 6."""

    def __post_init__(self) -> None:
        TopKConfig.__post_init__(self)
        if self.digit_bits not in (2, 4, 6):
            raise ValueError(f"digit_bits must be 2, 4 or 6, not {self.digit_bits}")

    @property
    def n_digits(self) -> int:
        """Passes at most, the one during the load included."""
        return -(-self.element_bits // self.digit_bits)

    @property
    def padded_bits(self) -> int:
        """Width of an element whose last digit is filled up with zeros, bits."""
        return self.n_digits * self.digit_bits

    @property
    def half_size(self) -> int:
        """Groups of bins, and bins of a group: 2^(digit_bits / 2)."""
        return 1 << (self.digit_bits // 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalValueConfig:
    """One built local value selection: from a row of keys, or any list with payloads and scores."""

    engine: Engine = "radix"
    semantics: Semantics = "probability"
    """What decides: the payloads themselves (probabilities, the paper's), or the scores beside them."""
    lanes: int = 16
    """P: elements compared per cycle, and pairs of one output beat; a power of two in 1..32."""
    in_lanes: int = 8
    """L: payloads, or scores, of one input beat; a power of two, at most ``lanes``."""
    n_max: int = 1024
    """Longest row; a power of two in 2 lanes..65,536."""
    payload_bits: int = PROBABILITY_BITS
    """Width of what ``o`` carries beside the index, unsigned, bits: the probability, or an identifier; 1..40.
    Where it decides (``probability``) 8..40, 8..32 with quick-select."""
    score_bits: int = 36
    """Width of one score, bits; 8..40, 8..32 with quick-select. Unused by ``probability``."""
    score_is_signed: bool = True
    """Scores are two's complement (Q.K), or unsigned (importance)."""
    digit_bits: int = 6
    """Bits decided by one pass of the radix engine; 2, 4 or 6."""

    def __post_init__(self) -> None:
        if self.engine not in ("quickselect", "radix"):
            raise ValueError(f"engine must be quickselect or radix, not {self.engine!r}")
        if self.semantics not in ("probability", "score"):
            raise ValueError(f"semantics must be probability or score, not {self.semantics!r}")
        widest = (TopKConfig if self.engine == "quickselect" else RadixConfig).MAX_ELEMENT_BITS
        deciding = "score_bits" if self.semantics == "score" else "payload_bits"
        if not 8 <= getattr(self, deciding) <= widest:
            raise ValueError(
                f"{deciding} must be in 8..{widest} with engine {self.engine}, not {getattr(self, deciding)}"
            )
        if not 1 <= self.payload_bits <= 40:
            raise ValueError(f"payload_bits must be in 1..40, not {self.payload_bits}")
        _ = self.selector  # checks lanes, n_max and digit_bits
        if self.in_lanes < 1 or self.in_lanes & (self.in_lanes - 1) or self.in_lanes > self.lanes:
            raise ValueError(
                f"in_lanes must be a power of two in 1..{self.lanes} (lanes), not {self.in_lanes}"
            )

    @property
    def selector(self) -> TopKConfig:
        """The engine, as wide as what decides."""
        bits = self.payload_bits if self.semantics == "probability" else self.score_bits
        if self.engine == "quickselect":
            return TopKConfig(lanes=self.lanes, n_max=self.n_max, element_bits=bits)
        return RadixConfig(lanes=self.lanes, n_max=self.n_max, element_bits=bits, digit_bits=self.digit_bits)

    @property
    def lowest_score(self) -> int:
        """The smallest score: -2^(score_bits - 1), or 0 where scores are unsigned."""
        return -(1 << (self.score_bits - 1)) if self.score_is_signed else 0

    def regroup(self, element_bits: int) -> RegroupConfig:
        """From the source's lanes to the engine's."""
        return RegroupConfig(element_bits=element_bits, lanes_in=self.in_lanes, lanes_out=self.lanes)
