# SPDX-License-Identifier: MIT
"""Shape of the attention core: its blocks' configurations, made to fit one another."""

from dataclasses import dataclass

from hw.confidence.config import ConfidenceConfig
from hw.config import ChipConfig
from hw.fetch.config import FetchConfig, fetch_config
from hw.importance.config import MAX_HEADS, ImportanceConfig, head_config
from hw.pv.config import PvConfig, pv_config
from hw.qk.config import SCORE_BITS, QkConfig, qk_config
from hw.select.config import LocalValueConfig
from hw.stream.config import RegroupConfig

HEAD_BITS = (MAX_HEADS - 1).bit_length()
"""Width of a head's number."""
RING_CHUNKS = 4
"""Query rows are fetched by chunks of one line of the kept list; so many chunks have a place on the chip."""
HALVES = 2
"""Parts of a buffer of keys or values, each with those of one group of heads, unless they are streamed."""
ROW_QUEUE = 8
"""Finished rows that may wait for the value selection, for the second array, and for their output."""
HEADS_AHEAD = 3
"""Heads that may wait in front of each loader, and of the source of rows."""
JOBS_AHEAD = 4
"""Rows of a streamed layer whose keys, or values, may wait to be asked for."""
TRAFFIC_BITS = 40
"""Width of a layer's byte counters."""
COUNT_BITS = 32
"""Width of a layer's row counter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    """One built core. Make it with :func:`attention_config`, which makes the blocks agree."""

    fetch: FetchConfig
    qk: QkConfig
    confidence: ConfidenceConfig
    values: LocalValueConfig
    pv: PvConfig
    token_importance: ImportanceConfig
    head_importance: ImportanceConfig
    selector: LocalValueConfig
    """Chooses tokens and heads: elements decide, their numbers are the payload."""
    n_value_engines: int = 1
    """Local value selections that take turns over the rows; 1..8."""

    def __post_init__(self) -> None:
        lanes = self.values.lanes
        if not 1 <= self.n_value_engines <= 8:
            raise ValueError(f"n_value_engines must be in 1..8, not {self.n_value_engines}")
        for name, value, expected in (
            ("fetch.lines", self.fetch.lines.line_elements, self.qk.n_multipliers),
            ("pv.n_multipliers", self.pv.n_multipliers, self.qk.n_multipliers),
            ("pv.n_regions", self.pv.n_regions, self.qk.n_regions),
            ("pv.n_lines", self.pv.n_lines, self.qk.n_lines),
            ("pv.max_head_dim", self.pv.max_head_dim, self.qk.max_head_dim),
            ("pv.n_max", self.pv.n_max, self.qk.n_max),
            ("pv.lanes", self.pv.lanes, lanes),
            ("selector.lanes", self.selector.lanes, lanes),
            ("selector.in_lanes", self.selector.in_lanes, lanes),
            ("token_importance.kept_lanes", self.token_importance.kept_lanes, lanes),
            ("head_importance.kept_lanes", self.head_importance.kept_lanes, lanes),
            ("token_importance.lanes", self.token_importance.lanes, self.confidence.lanes),
            ("values.in_lanes", self.values.in_lanes, self.confidence.lanes),
            ("confidence.tag_bits", self.confidence.tag_bits, self.tag_bits),
            ("confidence.score_bits", self.confidence.score_bits, SCORE_BITS),
            ("values.semantics", self.values.semantics, "probability"),
            ("selector.semantics", self.selector.semantics, "score"),
        ):
            if value != expected:
                raise ValueError(f"{name} must be {expected} in this core, not {value}")
        if self.tile_keys(self.qk.max_head_dim) < lanes:
            raise ValueError(f"a region of the buffers must hold at least {lanes} keys")
        if self.ring_rows < self.confidence.window + 2 * lanes:
            raise ValueError(
                f"window must be at most {self.ring_rows - 2 * lanes}, not {self.confidence.window}"
            )

    @property
    def n_max(self) -> int:
        """Most tokens of a sentence."""
        return self.qk.n_max

    @property
    def lanes(self) -> int:
        """P: numbers of kept tokens, or heads, in one line of a list."""
        return self.values.lanes

    @property
    def id_bits(self) -> int:
        """Width of a token's position, bits; a head's number fits too."""
        return (self.n_max - 1).bit_length()

    @property
    def count_bits(self) -> int:
        """Width of a number of tokens, bits."""
        return self.n_max.bit_length()

    @property
    def tag_bits(self) -> int:
        """A row's name inside the core: its query, place in the query ring, head, half of the buffers."""
        return self.id_bits + self.ring_bits + HEAD_BITS + 1

    @property
    def ring_rows(self) -> int:
        """Query rows held on the chip."""
        return ring_rows(self.lanes)

    @property
    def ring_bits(self) -> int:
        """Width of a row's number in the query ring, bits: rows are counted modulo twice the ring."""
        return self.ring_rows.bit_length()

    def tile_keys(self, head_dim: int) -> int:
        """Keys, or values, that are streamed together: those of a region of the buffer. A multiple of P."""
        in_region = self.qk.buffer.region_lines * self.qk.buffer.vectors_per_line(head_dim)
        return min(in_region, self.n_max)

    @property
    def sum_bits(self) -> int:
        """Width of a score summed over all heads, bits, signed: MAX_HEADS is 2^HEAD_BITS."""
        return self.qk.sum_bits + HEAD_BITS

    @property
    def pairs_beats(self) -> int:
        """Beats of kept probabilities that may wait for their values: those of the longest row."""
        return self.n_max // self.lanes + 1

    @property
    def scores_regroup(self) -> RegroupConfig:
        """From the first array's scores to the softmax's lanes."""
        return RegroupConfig(element_bits=SCORE_BITS, lanes_in=self.qk.lanes, lanes_out=self.confidence.lanes)

    @property
    def kept_regroup(self) -> RegroupConfig:
        """From a line of the kept list to the fetcher."""
        return RegroupConfig(element_bits=self.id_bits, lanes_in=self.lanes, lanes_out=self.fetch.kept_lanes)

    @property
    def head_regroup(self) -> RegroupConfig:
        """From a line of the list of heads to one head after another."""
        return RegroupConfig(element_bits=HEAD_BITS, lanes_in=self.lanes, lanes_out=1)

    def fitting_tokens(self, head_dim: int, *, progressive: bool) -> int:
        """Tokens whose keys, both planes of them where ``progressive``, fit in half of the buffer."""
        return self.qk.buffer.vectors_per_line(head_dim) * (self.qk.n_lines // (1 + progressive))

    def check_run(
        self, n_tokens: int, n_heads: int, head_dim: int, *, progressive: bool, streamed: bool = False
    ) -> None:
        """ValueError where a sentence does not fit: its length, its heads, its keys in half a buffer.

        Keys that are streamed need no place.
        """
        if not 1 <= n_tokens <= self.n_max:
            raise ValueError(f"n_tokens must be in 1..{self.n_max}, not {n_tokens}")
        most_heads = self.head_importance.n_max
        if not 1 <= n_heads <= most_heads:
            raise ValueError(f"n_heads must be in 1..{most_heads}, not {n_heads}")
        if head_dim not in self.qk.head_dims:
            raise ValueError(f"head_dim must be one of {self.qk.head_dims}, not {head_dim}")
        fitting = self.fitting_tokens(head_dim, progressive=progressive)
        if n_tokens > fitting and not streamed:
            planes = "both planes of their keys" if progressive else "their keys"
            raise ValueError(
                f"n_tokens must be at most {fitting} at head_dim {head_dim}, so that {planes} fit in half "
                f"of the buffer, not {n_tokens}, unless they are streamed"
            )


def ring_rows(lanes: int) -> int:
    """Query rows held on the chip, for lists of ``lanes`` numbers a line."""
    return max(RING_CHUNKS * lanes, 16)


def attention_config(chip: ChipConfig) -> AttentionConfig:
    """The core of a chip."""
    qk, pv = qk_config(chip), pv_config(chip)
    lanes, n_max, element_bits = chip.topk.lanes, chip.topk.n_max, chip.topk.element_bits
    return AttentionConfig(
        fetch=fetch_config(
            n_multipliers=chip.n_multipliers, n_channels=chip.n_dram_channels, kept_lanes=lanes, n_max=n_max
        ),
        qk=qk,
        confidence=ConfidenceConfig(
            lanes=chip.softmax_lanes,
            n_max=n_max,
            score_bits=SCORE_BITS,
            window=chip.confidence_window,
            tag_bits=(n_max - 1).bit_length() + ring_rows(lanes).bit_length() + HEAD_BITS + 1,
        ),
        values=LocalValueConfig(
            engine=chip.select_engine, lanes=lanes, in_lanes=chip.softmax_lanes, n_max=n_max
        ),
        pv=pv,
        token_importance=ImportanceConfig(
            lanes=chip.softmax_lanes, n_max=n_max, kept_lanes=lanes, element_bits=element_bits
        ),
        head_importance=head_config(
            kept_lanes=lanes, magnitude_bits=pv.magnitude_bits, element_bits=element_bits
        ),
        selector=LocalValueConfig(
            engine=chip.select_engine,
            semantics="score",
            lanes=lanes,
            in_lanes=lanes,
            n_max=n_max,
            score_bits=element_bits,
            score_is_signed=False,
            payload_bits=(n_max - 1).bit_length(),
        ),
        n_value_engines=chip.n_value_engines,
    )
