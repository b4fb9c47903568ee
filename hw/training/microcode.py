# SPDX-License-Identifier: MIT
"""Programs of the norms: what is done with one group of channels, instruction by instruction.

An instruction computes dest = limit(c +- rnd(a b, shift)), or takes the inverse root of a, and may pass a
word in or out. Its result can be read LATENCY instructions later, so programs are in an order in which most
work waits for nothing, and what has to wait is padded by :func:`scheduled`. Imports neither Amaranth nor
torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache

from .config import GROUP, NORM_SHIFT, Job, Kernel, Norm, NormBack, reciprocal

LATENCY = 4
"""Instructions from one to the first that can read its result."""


class From(IntEnum):
    """Where operand a comes from."""

    REGISTER = 0
    VALUE = 1
    """48 bits: this word of the sums above the one before."""
    WORD = 2
    """A word of the parameters."""
    WORD_HIGH = 3
    """The word without its lowest 8 bits; these become the exponent j."""
    MANTISSA = 4
    """The word's lowest 15 bits, and a one above."""
    RECIPROCAL = 5
    EPSILON = 6
    """Numbers of the job."""


class Limit(IntEnum):
    """What a result is saturated to."""

    SIGNED_48 = 0
    SIGNED_32 = 1
    SIGNED_24 = 2
    SIGNED_16 = 3
    UNSIGNED_16 = 4
    MAGNITUDE_16 = 5
    """-65,535..65,535."""
    POSITIVE = 6
    """1..2^47 - 1."""


class Give(IntEnum):
    """A word that leaves, of two registers a and b."""

    NOTHING = 0
    LOW = 1
    """Their lowest 16 bits, a's lower."""
    HIGH = 2
    """The 16 bits above."""
    WHOLE = 3
    """32 bits of a."""
    EXPONENT = 4
    """24 bits of a above j."""
    MAGNITUDE = 5
    """As LOW, without signs."""


class Slot(IntEnum):
    """Shifts that a job brings; see :func:`slots`."""

    MEAN = 0
    SQUARE = 1
    GAMMA = 2
    BETA = 3
    MULTIPLIER = 4
    BIAS = 5
    SCALE = 6


N_SLOTS, SLOT_BITS = len(Slot), 8
"""Width of a shift; signed."""

# Registers.
ZERO, ONE, TWO_16, NEGATIVE_TWO_15, GAMMA_ONE = range(5)
CONSTANTS = {ZERO: 0, ONE: 1, TWO_16: 1 << 16, NEGATIVE_TWO_15: -(1 << 15), GAMMA_ONE: 1 << 12}
INVERSE_N, S, P, MEAN, VARIANCE, ROOT, WIDE_ROOT, SHORT_ROOT, U, W, SCALE, MULTIPLIER, BIAS = range(5, 18)
GAMMAS, FIRSTS, SECONDS, THIRDS = (range(24 + 8 * k, 32 + 8 * k) for k in range(4))
"""Eight registers each, one for a channel of the group."""
N_REGISTERS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """One step; the default does nothing."""

    a: int = ZERO
    a_from: From = From.REGISTER
    b: int = ONE
    c: int = ZERO
    subtract: bool = False
    shift: int = 0
    """0..127, or a Slot if ``job_shift``; less ``exponents`` j, but at least 0."""
    job_shift: bool = False
    exponents: int = 0
    limit: Limit = Limit.SIGNED_48
    root: bool = False
    """dest is the mantissa of the inverse root of a, and j its exponent."""
    dest: int | None = None
    takes_sum: bool = False
    """A word of the sums is taken."""
    sees_word: bool = False
    takes_word: bool = False
    """A word of the parameters must be there; it is taken."""
    give: Give = Give.NOTHING
    second: bool = False
    """The word is for reader 1."""
    ends: bool = False
    """The group ends."""

    @property
    def reads(self) -> set[int]:
        """Registers whose values matter, j as -1."""
        made = {self.b, self.c}
        if self.a_from == From.REGISTER:
            made.add(self.a)
        if self.exponents or self.give == Give.EXPONENT:
            made.add(EXPONENT)
        return made - CONSTANTS.keys()

    @property
    def writes(self) -> set[int]:
        """Registers that change, j as -1."""
        made = set() if self.dest is None else {self.dest}
        return made | {EXPONENT} if self.root or self.a_from == From.WORD_HIGH else made


EXPONENT = -1


def scheduled(instructions: Sequence[Instruction]) -> tuple[Instruction, ...]:
    """With as many that do nothing as are needed for each to read what was written before it."""
    made: list[Instruction] = []
    written: dict[int, int] = {}
    for instruction in instructions:
        ready = max((written[r] + LATENCY for r in instruction.reads if r in written), default=0)
        made += [Instruction()] * (ready - len(made))
        written |= dict.fromkeys(instruction.writes, len(made))
        made.append(instruction)
    made[-1] = replace(made[-1], ends=True)
    return tuple(made)


def _of(a: int, b: int = ONE, c: int = ZERO, **rest) -> Instruction:
    return Instruction(a=a, b=b, c=c, **rest)


def _slot(slot: Slot, exponents: int = 0) -> dict:
    return {"shift": slot, "job_shift": True, "exponents": exponents}


LOW_WORD = Instruction(takes_sum=True)


def _value(dest: int, c: int = ZERO) -> list[Instruction]:
    """A sum from two words, added to a register."""
    return [LOW_WORD, Instruction(a_from=From.VALUE, takes_sum=True, c=c, dest=dest)]


def _norm(*, plain: bool) -> Iterator[Instruction]:
    gammas = [GAMMA_ONE] * GROUP if plain else GAMMAS
    betas, multipliers, biases = FIRSTS, SECONDS, THIRDS
    yield Instruction(a_from=From.RECIPROCAL, dest=INVERSE_N)
    for channel in range(GROUP):
        yield from _value(S, S if channel else ZERO)
        yield from _value(P, P if channel else ZERO)
    loads = _norm_masters(plain)
    yield _of(S, INVERSE_N, limit=Limit.SIGNED_24, dest=MEAN, **_slot(Slot.MEAN))
    yield _of(P, INVERSE_N, dest=VARIANCE, **_slot(Slot.SQUARE))
    yield from loads[:4]
    yield _of(MEAN, MEAN, VARIANCE, subtract=True, dest=VARIANCE)
    yield from loads[4:8]
    yield Instruction(a_from=From.EPSILON, b=TWO_16, c=VARIANCE, limit=Limit.POSITIVE, dest=VARIANCE)
    yield from loads[8:12]
    yield _of(VARIANCE, root=True, dest=ROOT)
    yield from loads[12:]
    yield _of(ROOT, TWO_16, dest=WIDE_ROOT)
    yield _of(ROOT, ONE, NEGATIVE_TWO_15, dest=SHORT_ROOT)
    for gamma, multiplier in zip(gammas, multipliers, strict=True):
        yield _of(
            WIDE_ROOT, gamma, limit=Limit.MAGNITUDE_16, dest=multiplier, **_slot(Slot.MULTIPLIER, exponents=1)
        )
    for multiplier, beta, bias in zip(multipliers, betas, biases, strict=True):
        yield _of(multiplier, MEAN, beta, subtract=True, limit=Limit.SIGNED_24, dest=bias, **_slot(Slot.BIAS))
    for gamma in gammas:
        yield _of(MEAN, give=Give.EXPONENT, second=True)
        yield _of(SHORT_ROOT, gamma, give=Give.LOW, second=True)
    for even, odd in zip(range(0, GROUP, 2), range(1, GROUP, 2), strict=True):
        yield _of(multipliers[even], multipliers[odd], give=Give.MAGNITUDE)
        yield _of(biases[even], biases[odd], give=Give.LOW)
        yield _of(biases[even], biases[odd], give=Give.HIGH)


def _norm_masters(plain: bool) -> list[Instruction]:
    made = []
    word = Instruction(a_from=From.WORD, sees_word=True, takes_word=True)
    for gamma, beta in zip(GAMMAS, FIRSTS, strict=True):
        if not plain:
            made.append(replace(word, limit=Limit.SIGNED_16, dest=gamma, **_slot(Slot.GAMMA)))
        made.append(replace(word, limit=Limit.SIGNED_24, dest=beta, **_slot(Slot.BETA)))
    return made


def _state() -> Iterator[Instruction]:
    """Mean and inverse root of the group, gamma of each channel."""
    for channel, gamma in enumerate(GAMMAS):
        yield Instruction(a_from=From.WORD_HIGH, sees_word=True, takes_word=True, dest=MEAN)
        if channel == 0:
            yield Instruction(a_from=From.MANTISSA, sees_word=True, dest=ROOT)
        yield Instruction(a_from=From.WORD, sees_word=True, takes_word=True, shift=16, dest=gamma)


def _centred(channel: int) -> Instruction:
    """X = P - mean S, into the place of P."""
    s, p = FIRSTS[channel], SECONDS[channel]
    return _of(s, MEAN, p, subtract=True, shift=8, dest=p)


def _norm_back() -> Iterator[Instruction]:
    yield from _state()
    yield Instruction(a_from=From.RECIPROCAL, dest=INVERSE_N)
    # Of three channels at once: one is loaded, of the one before X is made, which the one before that sums.
    for channel in range(GROUP + 2):
        loaded, made, summed = channel < GROUP, channel - 1, channel - 2
        if loaded:
            yield from _value(FIRSTS[channel])
            yield from _value(SECONDS[channel])
        if 0 <= made < GROUP:
            yield _centred(made)
            yield _of(FIRSTS[made], GAMMAS[made], S if made else ZERO, dest=S)
        if summed >= 0:
            yield _of(SECONDS[summed], GAMMAS[summed], P if summed else ZERO, shift=12, dest=P)
    yield _of(ROOT, TWO_16, dest=WIDE_ROOT)
    yield _of(S, INVERSE_N, dest=W, **_slot(Slot.MEAN))
    yield _of(P, INVERSE_N, dest=U, **_slot(Slot.SQUARE))
    yield _of(WIDE_ROOT, ONE, limit=Limit.UNSIGNED_16, dest=MULTIPLIER, **_slot(Slot.MULTIPLIER, exponents=1))
    yield _of(W, ROOT, subtract=True, dest=W, **_slot(Slot.BETA, exponents=1))
    yield _of(U, ROOT, shift=16, dest=U)
    yield _of(U, ROOT, shift=16, dest=U)
    yield _of(U, ROOT, subtract=True, limit=Limit.SIGNED_16, dest=SCALE, **_slot(Slot.SCALE, exponents=3))
    yield _of(SCALE, MEAN, W, subtract=True, limit=Limit.SIGNED_24, dest=BIAS, **_slot(Slot.BIAS))
    for _ in range(GROUP // 2):
        yield _of(SCALE, SCALE, give=Give.LOW, second=True)
        yield _of(MULTIPLIER, MULTIPLIER, give=Give.LOW)
        yield _of(BIAS, BIAS, give=Give.LOW)
        yield _of(BIAS, BIAS, give=Give.HIGH)


def _norm_gamma() -> Iterator[Instruction]:
    yield from _state()
    for channel in range(GROUP):
        yield from _value(FIRSTS[channel])
        yield from _value(SECONDS[channel])
    yield from (_centred(channel) for channel in range(GROUP))
    for x, q in zip(SECONDS, THIRDS, strict=True):
        yield _of(x, ROOT, limit=Limit.SIGNED_32, shift=31, exponents=1, dest=q)
    for q in THIRDS:
        yield _of(q, give=Give.WHOLE)


@cache
def program(kernel: Kernel) -> tuple[Instruction, ...]:
    """What is done with each group."""
    match kernel:
        case Kernel.NORM:
            return scheduled(list(_norm(plain=False)))
        case Kernel.NORM_PLAIN:
            return scheduled(list(_norm(plain=True)))
        case Kernel.NORM_BACK:
            return scheduled(list(_norm_back()))
        case Kernel.NORM_GAMMA:
            return scheduled(list(_norm_gamma()))
    raise ValueError(f"kernel must be a norm's, not {kernel.name}")


def slots(job: Job) -> dict[Slot, int]:
    """The shifts of a job, -128..127; those that its program does not use are left out."""
    match job:
        case Norm():
            _, rs = reciprocal(GROUP * job.pixels)
            return {
                Slot.MEAN: rs - 8,
                Slot.SQUARE: rs - 16,
                Slot.GAMMA: job.gamma_shift,
                Slot.BETA: job.beta_shift,
                Slot.MULTIPLIER: NORM_SHIFT - job.shift,
                Slot.BIAS: 8 + job.shift,
            }
        case NormBack():
            _, rs = reciprocal(GROUP * job.pixels)
            return {
                Slot.MEAN: rs - 4,
                Slot.SQUARE: rs - 16,
                Slot.BETA: 47 - job.bias_exponent,
                Slot.MULTIPLIER: 47 - job.multiplier_exponent,
                Slot.BIAS: 8 + job.scale_exponent - job.bias_exponent,
                Slot.SCALE: 77 - job.scale_exponent,
            }
    return {}


PROGRAMS = (Kernel.NORM, Kernel.NORM_BACK, Kernel.NORM_GAMMA, Kernel.NORM_PLAIN)
"""As they stand in the store, one behind the other."""


def starts() -> dict[Kernel, int]:
    """Where each begins."""
    made, at = {}, 0
    for kernel in PROGRAMS:
        made[kernel] = at
        at += len(program(kernel))
    return made
