# SPDX-License-Identifier: MIT
"""Bit-exact model of the kernels over lists and of their operations: int64 tensors in and out.

rnd(x, s) is x 2^-s to the nearest integer, half up; sat_w the nearest number of w signed bits. Norms compute
in Python's integers, as products exceed 64 bits; of a group there are few.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hw.epilogue.golden import rounded, saturated

from .config import (
    BIAS_BITS,
    GAMMA_BITS,
    GAMMA_FRACTION_BITS,
    GROUP,
    INVERSE_BITS,
    MEAN_FRACTION_BITS,
    MULTIPLIER_BITS,
    NORM_SHIFT,
    ROOT_POINT_BITS,
    ROOT_REST_BITS,
    ROOT_TABLE_BITS,
    SCALE_BITS,
    SQUARE_FRACTION_BITS,
    SUM_BITS,
    WORD_BITS,
    Image,
    Norm,
    NormBack,
    Update,
    reciprocal,
    root_table,
)
from .operations import Gradient, KernelOperation, Normalise, NormaliseBackward, NormaliseGamma
from .operations import Update as UpdateOperation

LARGEST_MULTIPLIER = (1 << MULTIPLIER_BITS) - 1
TABLE_MULTIPLIER, TABLE_BIAS, TABLE_SCALE = 0, 1, 3
"""Rows of a table, int64[5, n_channels]; a bias has two, low 16 bits and high ones."""


@dataclass(frozen=True, eq=False)
class Fields:
    """What the epilogue's table gets for each channel: int64[n_channels] each."""

    multiplier: torch.Tensor
    bias: torch.Tensor


# ---- operations


def outputs(operation: KernelOperation, maps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The lists that an operation writes, as they then are.

    Parameters
    ----------
    maps : maps and lists by name, int64, in the shapes of :mod:`.operations`

    Raises
    ------
    TypeError, ValueError
        See the kernels; a list of another shape than the operation needs.
    """
    match operation:
        case Normalise():
            gamma = None if operation.gamma is None else maps[operation.gamma][:, 0]
            fields, state = norm(maps[operation.sums], gamma, maps[operation.beta][:, 0], operation.job)
            return {operation.table: _with(maps[operation.table], fields), operation.state: state}
        case NormaliseBackward():
            scale, fields = norm_back(maps[operation.sums], maps[operation.state], operation.job)
            side = maps[operation.side_table].clone()
            side[TABLE_SCALE] = scale & 0xFFFF
            return {operation.side_table: side, operation.table: _with(maps[operation.table], fields)}
        case NormaliseGamma():
            return {operation.gradient: norm_gamma(maps[operation.sums], maps[operation.state])}
    return _updated(operation, maps)


def _updated(operation: UpdateOperation, maps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    gradient = maps[operation.gradients[0]]
    if not isinstance(operation.gradient, str):
        gradient = torch.stack([maps[name][:, 0] for name in operation.gradient])
    if operation.gradient_from == Gradient.SUMS:
        gradient = gradient[:, 0]
    master, image = update(maps[operation.master], gradient, operation.job)
    written = {operation.master: master}
    if image is not None and operation.image is not None:
        of = maps[operation.image].clone()
        match operation.job.image:
            case Image.BIAS:
                of[TABLE_BIAS], of[TABLE_BIAS + 1] = image & 0xFFFF, image >> 16 & 0xFFFF
            case Image.HALVES:
                of[TABLE_SCALE] = image & 0xFFFF
            case _:
                of = _as_weights(image, of)
        written[operation.image] = of
    return written


def _as_weights(image: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """int64[k k, n_in, n_out] to int64[n_out, n_in, k, k]."""
    n_out, n_in, k, _ = like.shape
    if tuple(image.shape) != (k * k, n_in, n_out):
        raise ValueError(f"master must be {[k * k, n_in, n_out]} for these weights, not {list(image.shape)}")
    return image.permute(2, 1, 0).reshape(like.shape)


def _with(table: torch.Tensor, fields: "Fields") -> torch.Tensor:
    """The table with another multiplier and bias."""
    made = table.clone()
    made[TABLE_MULTIPLIER] = fields.multiplier
    made[TABLE_BIAS], made[TABLE_BIAS + 1] = fields.bias & 0xFFFF, fields.bias >> 16 & 0xFFFF
    return made


# ---- update


def update(
    master: torch.Tensor, gradient: torch.Tensor, job: Update
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Descent with momentum: the masters, and the image of the weights where there is one.

    ::

        m' = sat32(rnd(m momentum, 16) + sat32(rnd(g rate, rate_shift)))
        w' = sat32(w - m')
        image = sat(rnd(w', image_shift))

    Parameters
    ----------
    master : int64[..., 2], weight w and momentum m of each element, 32 bits
    gradient : int64[...], 32 bits

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; an element out of range.
    """
    _check("master", master, (*gradient.shape, 2), WORD_BITS)
    _check("gradient", gradient, tuple(gradient.shape), WORD_BITS)
    step = saturated(rounded(gradient * job.rate, job.rate_shift), WORD_BITS)
    momentum = saturated(rounded(master[..., 1] * job.momentum, 16) + step, WORD_BITS)
    weight = saturated(master[..., 0] - momentum, WORD_BITS)
    image = None
    if job.image != Image.NONE:
        image = saturated(rounded(weight, job.image_shift), job.image.bits)
    return torch.stack([weight, momentum], -1), image


# ---- group norm


def inverse_root(value: int) -> tuple[int, int]:
    """Mantissa r (16 bits, 2^15 at least) and j: 2^8 / sqrt(value) = r 2^(j - 31) (1 + d), abs(d) < 2^-15.

    value 4^j, in 2^46..2^48, is cut to x of 7 + 10 bits behind the point; then a line between two points, cut
    to 18 bits and rounded to 16, where 2^16 becomes 2^16 - 1. ``value`` is in 1..2^47 - 1.
    """
    exponent = (SUM_BITS - value.bit_length()) // 2
    cut = SUM_BITS - 2 - ROOT_TABLE_BITS - ROOT_REST_BITS
    x = (value << (2 * exponent)) >> cut
    place, rest = divmod(x - (1 << (ROOT_TABLE_BITS + ROOT_REST_BITS)), 1 << ROOT_REST_BITS)
    point, after = (int(p) for p in root_table()[place : place + 2])
    line = point - ((point - after) * rest >> ROOT_REST_BITS)
    return min(_rnd(line, ROOT_POINT_BITS - INVERSE_BITS), (1 << INVERSE_BITS) - 1), exponent


def norm(
    sums: torch.Tensor, gamma: torch.Tensor | None, beta: torch.Tensor, job: Norm
) -> tuple[Fields, torch.Tensor]:
    """Fields with which an epilogue turns a map z into gamma (z - mean) / sqrt(variance + epsilon) + beta, in
    units of 2^-16, and the state for the gradient. A multiplier has no sign: where gamma is negative, z's
    must be changed before.

    ::

        1/n = R 2^-rs               n = 8 pixels
        M = sat24(rnd(S R, rs - 8)) S, P: sums of the group, sat48
        V = clamp(sat48(rnd(P R, rs - 16)) - M^2 + (epsilon << 16), 1, 2^47 - 1)
        r, j = inverse_root(V)      1 / sqrt(V 2^-16) = r 2^(j - 31)
        gamma_q = sat16(rnd(gamma, gamma_shift)), beta_q = sat24(rnd(beta, beta_shift))
        k = clamp(rnd(gamma_q r 2^16, max(0, 43 - shift - j)), -65535, 65535), multiplier = abs(k)
        bias = sat24(beta_q - rnd(M k, 8 + shift))

    Parameters
    ----------
    sums : int64[n_channels, 2], of z and of z^2 over all pixels, 48 bits; channels are whole groups of 8
    gamma, beta : int64[n_channels], masters of 32 bits; gamma None: 1

    Returns
    -------
    fields, state : int64[n_channels, 2], words of 32 bits: 2^8 M + j, 2^16 gamma_q + r - 2^15
    """
    _check_sums(sums)
    n = len(sums)
    for name, values in (("gamma", gamma), ("beta", beta)):
        if values is not None:
            _check(name, values, (n,), WORD_BITS)
    inverse, rs = reciprocal(GROUP * job.pixels)
    multipliers, biases, states = [], [], []
    for first in range(0, n, GROUP):
        s, p = (_sat(sum(column), SUM_BITS) for column in zip(*_group(sums, first), strict=True))
        mean = _sat(_rnd(s * inverse, rs - MEAN_FRACTION_BITS), BIAS_BITS)
        square = _sat(_rnd(p * inverse, rs - SQUARE_FRACTION_BITS), SUM_BITS)
        variance = square - mean * mean + (job.epsilon << SQUARE_FRACTION_BITS)
        r, j = inverse_root(max(1, min(variance, (1 << (SUM_BITS - 1)) - 1)))
        for c in range(first, first + GROUP):
            gamma_q = 1 << GAMMA_FRACTION_BITS
            if gamma is not None:
                gamma_q = _sat(_rnd(int(gamma[c]), job.gamma_shift), GAMMA_BITS)
            beta_q = _sat(_rnd(int(beta[c]), job.beta_shift), BIAS_BITS)
            scaled = _rnd((gamma_q * r) << 16, max(0, NORM_SHIFT - job.shift - j))
            multiplier = max(-LARGEST_MULTIPLIER, min(scaled, LARGEST_MULTIPLIER))
            multipliers.append(abs(multiplier))
            biases.append(_sat(beta_q - _rnd(mean * multiplier, MEAN_FRACTION_BITS + job.shift), BIAS_BITS))
            states.append((mean * 256 + j, (gamma_q << 16) + r - (1 << (INVERSE_BITS - 1))))
    return Fields(torch.tensor(multipliers), torch.tensor(biases)), torch.tensor(states)


def norm_back(sums: torch.Tensor, state: torch.Tensor, job: NormBack) -> tuple[torch.Tensor, Fields]:
    """Scale of the pass over z, fields of the pass over gamma g, which together give the gradient of z:

    dz = inv (gamma g - A - B inv (z - mean)), with A and B the means of gamma g and gamma g inv (z - mean).

    ::

        X = sat48(P - rnd(M S, 8))                              of each channel
        A1 = sat48(sum of gamma_q S), T = sat48(sum of rnd(gamma_q X, 12))
        U = sat48(rnd(T R, rs - 16)), twice U = sat48(rnd(U r, 16))
        scale = sat16(-rnd(U r, max(0, 77 - e1 - 3 j)))         -B inv^2 2^e1
        multiplier = clamp(rnd(r 2^16, max(0, 47 - e2 - j)), 0, 65535)      inv 2^e2
        W = sat48(rnd(A1 R, rs - 4))
        bias = sat24(sat48(-rnd(W r, max(0, 47 - e3 - j))) - rnd(M scale, 8 + e1 - e3))

    Parameters
    ----------
    sums : int64[n_channels, 2], of g and of g z, 48 bits
    state : as :func:`norm` gives it

    Returns
    -------
    scale : int64[n_channels], fields
        The same for all channels of a group. Sums over a group are saturated after each channel.
    """
    _check_sums(sums)
    _check("state", state, (len(sums), 2), WORD_BITS)
    inverse, rs = reciprocal(GROUP * job.pixels)
    e1, e2, e3 = job.scale_exponent, job.multiplier_exponent, job.bias_exponent
    scales, multipliers, biases = [], [], []
    for first in range(0, len(sums), GROUP):
        means = totals = 0
        for c in range(first, first + GROUP):
            (s, _), (mean, j, gamma_q, r) = sums[c].tolist(), _unpacked(state[c])
            centred = _centred(sums[c], mean)
            means = _sat(means + gamma_q * s, SUM_BITS)
            totals = _sat(totals + _rnd(gamma_q * centred, GAMMA_FRACTION_BITS), SUM_BITS)
        u = _sat(_rnd(totals * inverse, rs - 16), SUM_BITS)
        for _ in range(2):
            u = _sat(_rnd(u * r, 16), SUM_BITS)
        scale = _sat(-_rnd(u * r, max(0, 77 - e1 - 3 * j)), SCALE_BITS)
        multiplier = min(_rnd(r << 16, max(0, 47 - e2 - j)), LARGEST_MULTIPLIER)
        w = _sat(_rnd(means * inverse, rs - 4), SUM_BITS)
        bias = _sat(-_rnd(w * r, max(0, 47 - e3 - j)), SUM_BITS) - _rnd(mean * scale, 8 + e1 - e3)
        scales += GROUP * [scale]
        multipliers += GROUP * [multiplier]
        biases += GROUP * [_sat(bias, BIAS_BITS)]
    return torch.tensor(scales), Fields(torch.tensor(multipliers), torch.tensor(biases))


def norm_gamma(sums: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Gradient of gamma, the sum of g (z - mean) / sqrt(variance + epsilon): sat32(rnd(X r, 31 - j)).

    Parameters as of :func:`norm_back`; int64[n_channels].
    """
    _check_sums(sums)
    _check("state", state, (len(sums), 2), WORD_BITS)
    made = []
    for of, words in zip(sums, state, strict=True):
        mean, j, _, r = _unpacked(words)
        made.append(_sat(_rnd(_centred(of, mean) * r, 31 - j), WORD_BITS))
    return torch.tensor(made)


def _unpacked(words: torch.Tensor) -> tuple[int, int, int, int]:
    """M, j, gamma_q, r."""
    of_mean, of_inverse = words.tolist()
    return (
        of_mean >> 8,
        of_mean & 31,
        of_inverse >> 16,
        (of_inverse & 0x7FFF) + (1 << (INVERSE_BITS - 1)),
    )


def _centred(sums: torch.Tensor, mean: int) -> int:
    """X, the sum of g (z - mean)."""
    s, p = sums.tolist()
    return _sat(p - _rnd(mean * s, MEAN_FRACTION_BITS), SUM_BITS)


def _group(sums: torch.Tensor, first: int) -> list[list[int]]:
    return sums[first : first + GROUP].tolist()


# ---- rounding


def _rnd(x: int, shift: int) -> int:
    return (x + ((1 << shift) >> 1)) >> shift


def _sat(x: int, bits: int) -> int:
    bound = 1 << (bits - 1)
    return max(-bound, min(x, bound - 1))


def _check_sums(sums: torch.Tensor) -> None:
    _check("sums", sums, (len(sums), 2), SUM_BITS)
    if len(sums) % GROUP:
        raise ValueError(f"channels must be a multiple of {GROUP}, not {len(sums)}")


def _check(name: str, x: torch.Tensor, shape: tuple[int, ...], bits: int) -> None:
    bound = 1 << (bits - 1)
    if x.dtype != torch.int64 or tuple(x.shape) != shape:
        raise TypeError(f"{name} must be int64{list(shape)}, not {x.dtype}{list(x.shape)}")
    if x.numel() and not (-bound <= int(x.min()) and int(x.max()) < bound):
        raise ValueError(f"{name} must be in {-bound}..{bound - 1}")
