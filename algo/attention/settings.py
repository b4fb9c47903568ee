# SPDX-License-Identifier: MIT
"""What SpAtten switches on, and how many tokens, heads and values each layer keeps. Needs no torch."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

BIT_WIDTHS = (4, 6, 8, 10, 12)
TOKEN_FREE_FRACTION = 0.15
"""Leading share of layers that keep every token (paper, cascade token pruning)."""
HEAD_FREE_FRACTION = 0.30
"""Leading share of layers that keep every head (paper, cascade head pruning)."""


def n_free_layers(n_layers: int, fraction: float) -> int:
    """Leading layers left unpruned: ``ceil(fraction * n_layers)``, so at least the stated share."""
    return math.ceil(fraction * n_layers - 1e-9)


def keep_schedule(
    n_layers: int, mean: float, free_fraction: float, start: float | None = None
) -> list[float]:
    """Keep ratio of each layer: 1 in the leading layers, then linear from r_start to r_end.

    ``mean`` is r_avg, the mean keep ratio of the *pruned* layers: r_start + r_end = 2 r_avg (paper, cascade
    token pruning). The paper leaves r_start open; the default is min(1, 1.5 r_avg), the steepest slope that
    never goes below r_avg / 2. With one pruned layer it keeps r_avg.

    Raises ValueError where r_start is not in mean..min(1, 2 mean): a cascade cannot regain tokens.
    """
    n_free = n_free_layers(n_layers, free_fraction)
    n_pruned = n_layers - n_free
    r_start = min(1.0, 1.5 * mean) if start is None else start
    if not mean <= r_start <= min(1.0, 2 * mean):
        raise ValueError(f"start of the keep schedule must be in {mean}..{min(1.0, 2 * mean)}, not {r_start}")
    r_end = 2 * mean - r_start
    if n_pruned == 1:
        return [1.0] * n_free + [mean]
    step = (r_end - r_start) / max(n_pruned - 1, 1)
    return [1.0] * n_free + [r_start + i * step for i in range(n_pruned)]


def mean_keep(ratio: float, n_layers: int, free_fraction: float) -> float:
    """r_avg of the pruned layers with which the mean keep over *all* layers is ``1 / ratio``.

    A pruning "of 1.9x" is n_layers / sum(keep) = 1.9, unpruned layers included. Raises ValueError where the
    unpruned layers alone exceed the budget.
    """
    n_free = n_free_layers(n_layers, free_fraction)
    budget = n_layers / ratio - n_free if ratio > 0 else math.inf
    if not 0 < budget <= n_layers - n_free:
        limit = n_layers / n_free if n_free else math.inf
        raise ValueError(f"ratio must be in 1..{limit:g} (exclusive) for {n_layers} layers, not {ratio}")
    return budget / (n_layers - n_free)


def floor_count(ratio: float, n: int) -> int:
    """``floor(ratio * n)``, at least 1: the rounding of the released GPT-2 traces (0.9 of 1,024 is 921).

    The small addend keeps products that are whole in decimal, such as 0.29 * 100, from falling short.
    """
    return max(1, math.floor(ratio * n + 1e-9))


def nearest_count(ratio: float, n: int) -> int:
    """``ratio * n`` to the nearest, halves up, at least 1: what head counts use."""
    return max(1, math.floor(ratio * n + 0.5))


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadeSettings:
    """Every switch of SpAtten, each usable alone. The defaults switch everything off."""

    token_keep: float = 1.0
    """r_avg of cascade token pruning: mean keep ratio of the pruned layers, in (0, 1]; 1 is off."""
    token_keep_start: float | None = None
    """r_start of the linear schedule; None: see :func:`keep_schedule`."""
    token_free_fraction: float = TOKEN_FREE_FRACTION
    """Leading share of layers that keep every token, in 0..1 (exclusive)."""
    token_schedule: tuple[float, ...] | None = None
    """Keep ratio of every layer, non-increasing; overrides the three above."""
    head_keep: float = 1.0
    """r_avg of cascade head pruning, in (0, 1]; 1 is off."""
    head_counts: tuple[int, ...] | None = None
    """Heads of every layer, non-increasing; overrides ``head_keep``."""
    value_keep: float = 1.0
    """Local value pruning: share of a layer's keys whose V is fetched, per head and query, in (0, 1]."""
    value_semantics: Literal["probability", "score"] = "probability"
    """What ranks the values: softmax outputs (the paper) or scores before it (same up to ties)."""
    q_bits: int | None = None
    k_bits: int | None = None
    """Width of K; with ``lsb_bits`` that of its MSB plane. None: float."""
    v_bits: int | None = None
    lsb_bits: int = 0
    """Width of K's unsigned LSB plane, 0 (static quantisation) or 4 (progressive)."""
    lsb_threshold: float = 0.1
    """Progressive: a row whose largest probability is below this fetches the LSBs and is redone once."""
    prune_prompt: bool = True
    """Decoders. False, as in the released traces: the prompt pass neither prunes tokens nor scores them, and
    so (unless ``score_prompt``) the first generated token still sees every key."""
    score_prompt: bool = False
    """Decoders whose prompt is not pruned: its pass accumulates token importance all the same, so the first
    generated token can already prune, by what the whole prompt attended to."""
    importance_rescale: float = 1.0
    """Decoders: factor on accumulated token importance after each pass, in (0, 1]. The released traces flag
    such a step without its factor; 0.5 is an exact shift in hardware. 1 is off."""
    reference_tokens: int | None = None
    """Length that the token ratios refer to; None: the current length. The released traces use 1,024."""

    def __post_init__(self) -> None:
        for name in ("token_keep", "head_keep", "value_keep", "importance_rescale"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, not {value}")
        if self.score_prompt and self.prune_prompt:
            raise ValueError("score_prompt must be False where prune_prompt is True: such a prompt is scored")
        if not 0 <= self.token_free_fraction < 1:
            raise ValueError(
                f"token_free_fraction must be at least 0 and below 1, not {self.token_free_fraction}"
            )
        if not 0 <= self.lsb_threshold <= 1:
            raise ValueError(f"lsb_threshold must be in 0..1, not {self.lsb_threshold}")
        for name in ("q_bits", "k_bits", "v_bits"):
            bits = getattr(self, name)
            if bits is not None and bits not in BIT_WIDTHS:
                raise ValueError(f"{name} must be one of {', '.join(map(str, BIT_WIDTHS))}, not {bits}")
        if self.lsb_bits not in (0, 4):
            raise ValueError(f"lsb_bits must be 0 or 4, not {self.lsb_bits}")
        if self.lsb_bits and self.k_bits is None:
            raise ValueError(f"lsb_bits {self.lsb_bits} needs k_bits, the width of the MSB plane")
        if self.k_bits is not None and self.q_bits is None:
            object.__setattr__(self, "q_bits", 12)  # the on-chip width (paper, Table I)
        if self.value_semantics not in ("probability", "score"):
            raise ValueError(f"value_semantics must be probability or score, not {self.value_semantics!r}")
        if self.reference_tokens is not None and self.reference_tokens < 1:
            raise ValueError(f"reference_tokens must be at least 1, not {self.reference_tokens}")
        for name in ("token_schedule", "head_counts"):
            self._check_schedule(name)
        if self.token_schedule is None:
            keep_schedule(2, self.token_keep, 0.0, self.token_keep_start)

    def _check_schedule(self, name: str) -> None:
        schedule = getattr(self, name)
        if schedule is None:
            return
        object.__setattr__(self, name, tuple(schedule))
        for layer, keep in enumerate(schedule):
            if keep <= 0 or (name == "token_schedule" and keep > 1):
                allowed = "above 0 and at most 1" if name == "token_schedule" else "at least 1"
                raise ValueError(f"{name}[{layer}] must be {allowed}, not {keep}")
            if layer and keep > schedule[layer - 1]:
                raise ValueError(f"{name}[{layer}] must not exceed {schedule[layer - 1]}, not {keep}")

    @property
    def progressive(self) -> bool:
        """Whether LSBs may be fetched at all."""
        return self.lsb_bits > 0

    def token_ratios(self, n_layers: int) -> list[float]:
        """Keep ratio of every layer; ValueError where an explicit schedule has another length."""
        if self.token_schedule is None:
            return keep_schedule(n_layers, self.token_keep, self.token_free_fraction, self.token_keep_start)
        return list(_of_length("token_schedule", self.token_schedule, n_layers))

    def relaxed(self, share: float, n_layers: int) -> "CascadeSettings":
        """The same with token ratios on the way from 1 (``share`` 0) to these (1)."""
        ratios = tuple(1 - share * (1 - ratio) for ratio in self.token_ratios(n_layers))
        return replace(self, token_schedule=ratios)

    def token_counts(self, n_layers: int, n_tokens: int) -> list[int]:
        """Nominal keys of every layer, a share of the reference length; may exceed ``n_tokens``."""
        reference = self.reference_tokens or n_tokens
        return [floor_count(ratio, reference) for ratio in self.token_ratios(n_layers)]

    def value_counts(self, n_layers: int, n_tokens: int, pruned: bool = True) -> list[int]:
        """Values of every layer, per head and query: a share of the nominal keys (if ``pruned``)."""
        keys = self.token_counts(n_layers, n_tokens)
        if not pruned:
            keys = [self.reference_tokens or n_tokens] * n_layers
        return [floor_count(self.value_keep, n) for n in keys]

    def heads_per_layer(self, n_layers: int, n_heads: int) -> list[int]:
        """Heads of every layer; the linear schedule rounds to the nearest head, halves up.

        ValueError where an explicit schedule has another length or more heads than the model.
        """
        if self.head_counts is None:
            ratios = keep_schedule(n_layers, self.head_keep, HEAD_FREE_FRACTION)
            return [nearest_count(ratio, n_heads) for ratio in ratios]
        for layer, count in enumerate(_of_length("head_counts", self.head_counts, n_layers)):
            if count > n_heads:
                raise ValueError(
                    f"head_counts[{layer}] must be in 1..{n_heads}, the model's heads, not {count}"
                )
        return list(self.head_counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "CascadeSettings":
        """Inverse of :meth:`to_dict`; ValueError on a field that does not exist."""
        known = {field.name for field in fields(cls)}
        for name in data:
            if name not in known:
                raise ValueError(f"unknown setting {name!r}; known: {', '.join(sorted(known))}")
        return cls(**data)


def _of_length(name: str, schedule: Sequence[Any], n_layers: int) -> Sequence[Any]:
    if len(schedule) != n_layers:
        raise ValueError(
            f"{name} must have {n_layers} entries, one for each layer of the model, not {len(schedule)}"
        )
    return schedule


def parse_bits(text: str) -> dict[str, int]:
    """Bit settings from ``"8"`` (static) or ``"6+4"`` (progressive): k_bits, v_bits, lsb_bits.

    ValueError where a part is not a number; the widths themselves are checked by the settings.
    """
    msb, plus, lsb = text.partition("+")
    try:
        return {"k_bits": int(msb), "v_bits": int(msb), "lsb_bits": int(lsb) if plus else 0}
    except ValueError:
        raise ValueError(f"bits must look like 8 or 6+4, not {text!r}") from None


_SMALL = (0.9, 0.7, *[0.2] * 4, *[0.1] * 6)
_MEDIUM = (1.0, 1.0, 0.9, 0.8, 0.8, *[0.6] * 6, *[0.3] * 13)

RELEASED = {
    "gpt2-small-wikitext2": CascadeSettings(
        token_schedule=_SMALL,
        value_keep=0.2,
        k_bits=6,
        v_bits=6,
        lsb_bits=4,
        lsb_threshold=0.05,
        prune_prompt=False,
        importance_rescale=0.5,
        reference_tokens=1024,
    ),
    "gpt2-medium-wikitext2": CascadeSettings(
        token_schedule=_MEDIUM,
        head_counts=(*[16] * 16, *[13] * 6, *[10] * 2),
        value_keep=0.3,
        k_bits=12,
        v_bits=8,
        prune_prompt=False,
        reference_tokens=1024,
    ),
}
"""Settings recovered from the two pruned workload traces of the repository mit-han-lab/spatten (commit
a0f1388, ``gpt2-small/wikitext2`` and ``gpt2-medium/wikitext2``). Differences: Q has the on-chip 12 bits
where the traces say 16, and the factor of the importance rescale is ours."""
