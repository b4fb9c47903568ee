# SPDX-License-Identifier: MIT
"""Bit-exact models: selection digit by digit, and the local value selection on top of it."""

import torch

from hw.topk.golden import check_request, top_k

from .config import LocalValueConfig, RadixConfig


def radix_select(elements: torch.Tensor, k: int, config: RadixConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of ``elements`` in their original order; of equal ones the earlier are kept.

    From the top digit down: count the remaining elements by digit, find the bin that holds the k-th largest,
    go on inside it. Where the lower boundary of a bin separates exactly k elements, the rest of the digits
    cannot change the set.

    Parameters
    ----------
    elements : int64[n], 0 <= n <= n_max, each in 0..2**element_bits - 1
    k : int, 0..n

    Returns
    -------
    values, indices : int64[k] each, indices ascending

    Raises
    ------
    TypeError, ValueError
        As :func:`hw.topk.golden.top_k`.
    """
    check_request(elements, k, config)
    if k == 0:
        return elements[:0], torch.arange(0)
    padded = elements << (config.padded_bits - config.element_bits)
    inside = torch.ones_like(padded, dtype=torch.bool)
    threshold, target = 0, k
    for place in range(config.padded_bits - config.digit_bits, -1, -config.digit_bits):
        digits = (padded >> place) & ((1 << config.digit_bits) - 1)
        counts = torch.bincount(digits[inside], minlength=1 << config.digit_bits)
        at_or_above = counts.flip(0).cumsum(0).flip(0)
        chosen = int((at_or_above >= target).nonzero().max())
        threshold |= chosen << place
        target -= int(at_or_above[chosen] - counts[chosen])
        inside &= digits == chosen
        if target == int(counts[chosen]):
            break
    keep = (padded > threshold) & ~inside
    keep |= inside & (inside.cumsum(0) <= target)
    indices = torch.nonzero(keep).flatten()
    return elements[indices], indices


def local_values(
    probabilities: torch.Tensor, k: int, config: LocalValueConfig, scores: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k keys of one row whose values are fetched: their probabilities and indices.

    With semantics ``probability`` the k largest probabilities, of equal ones the earlier. With ``score`` the
    keys of the k largest scores, of equal ones the earlier. Softmax grows with the score, so both sets agree
    but for keys whose probabilities are equal while their scores differ.

    Parameters
    ----------
    probabilities : int64[n], 0..2**payload_bits - 1, 1 <= n <= n_max; with ``score`` any payload
    k : int, 0..n
    scores : int64[n], ``score_bits`` wide, signed or not as ``score_is_signed``; for ``score`` only

    Returns
    -------
    probabilities, indices : int64[k] each, indices ascending

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape, a value out of range, k outside 0..n, scores missing or of another length.
    """
    n = probabilities.numel()
    if n == 0:
        raise ValueError(f"n must be in 1..{config.n_max}, not 0")
    limit = 1 << config.payload_bits
    if int(probabilities.min()) < 0 or int(probabilities.max()) >= limit:
        raise ValueError(
            f"probabilities must be in 0..{limit - 1}, not "
            f"{int(probabilities.min())}..{int(probabilities.max())}"
        )
    deciding = probabilities
    if config.semantics == "score":
        if scores is None or scores.numel() != n:
            raise ValueError(f"scores must have {n} values, not {0 if scores is None else scores.numel()}")
        deciding = unsigned_scores(scores, config)
    engine = config.selector
    select = radix_select if isinstance(engine, RadixConfig) else top_k
    _, indices = select(deciding, k, engine)  # type: ignore[arg-type]
    return probabilities[indices], indices


def unsigned_scores(scores: torch.Tensor, config: LocalValueConfig) -> torch.Tensor:
    """Scores as the engine compares them, int64[n] >= 0, their order kept exactly.

    Signed: score + 2^(score_bits - 1), which is the sign bit inverted. Unsigned: the scores themselves.
    Raises ValueError where a score does not fit.
    """
    lowest = config.lowest_score
    highest = lowest + (1 << config.score_bits) - 1
    if scores.numel() and not (int(scores.min()) >= lowest and int(scores.max()) <= highest):
        raise ValueError(
            f"scores must be in {lowest}..{highest}, not {int(scores.min())}..{int(scores.max())}"
        )
    return scores - lowest
