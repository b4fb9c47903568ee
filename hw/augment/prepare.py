# SPDX-License-Identifier: MIT
"""From a job as software writes it to what the pixels need: drawn, reversed if adjoint, multiplied out."""

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import leap, select

from .config import (
    DRAW_BITS,
    GAIN_BITS,
    LFSR_BITS,
    LFSR_TAPS,
    N_DRAWS,
    ONE,
    RECIPROCAL_BITS,
    AugmentConfig,
)


def draws_layout(config: AugmentConfig) -> data.StructLayout:
    """Payload of ``o_draws``, see :class:`hw.augment.config.Draws`."""
    shift, centre = signed(config.size_bits + 1), config.size_bits
    return data.StructLayout(
        {
            "brightness": signed(config.element_bits),
            "saturation": 16,
            "contrast": 16,
            "shift_y": shift,
            "shift_x": shift,
            "centre_y": centre,
            "centre_x": centre,
        }
    )


def job_layout(config: AugmentConfig) -> data.StructLayout:
    """Payload of ``i_job``, see :class:`hw.augment.config.Job`.

    ``color``, ``translation``, ``cutout``: which are applied. ``translation_late``, ``cutout_late``: after
    the colours; ``cutout_last``: after the translation. ``reciprocal``: 24 bits and the exponent.
    """
    return data.StructLayout(
        {
            "height": config.size_bits,
            "width": config.size_bits,
            "color": 1,
            "translation": 1,
            "cutout": 1,
            "translation_late": 1,
            "cutout_late": 1,
            "cutout_last": 1,
            "adjoint": 1,
            "draw": 1,
            "one_bits": 4,
            "seed": LFSR_BITS,
            "reciprocal": RECIPROCAL_BITS,
            "exponent": 5,
            "draws": draws_layout(config),
        }
    )


def prepared_layout(config: AugmentConfig) -> data.StructLayout:
    """A job for the image side.

    Output pixel p shows pixel p + shift of the input, number of p + ``offset``. ``gain`` = contrast times
    saturation, GAIN_BITS fraction bits. The rectangle begins at ``start`` and has ``cut`` pixels a side, 0
    without cutout.
    """
    place = signed(config.place_bits)
    return data.StructLayout(
        {
            "height": config.size_bits,
            "width": config.size_bits,
            "shift_y": place,
            "shift_x": place,
            "offset": config.address_bits,
            "start_y": place,
            "start_x": place,
            "cut_y": config.size_bits,
            "cut_x": config.size_bits,
            "translation_late": 1,
            "cutout_late": 1,
            "cutout_last": 1,
            "brightness": signed(config.element_bits),
            "contrast": 16,
            "gain": 17,
            "reciprocal": RECIPROCAL_BITS,
            "exponent": 5,
        }
    )


ORDER_FIELDS = ("translation_late", "cutout_late", "cutout_last")


class Prepare(wiring.Component):
    """Draws for N_DRAWS cycles, whether they are wanted or not, and one cycle for products.

    A job shows PREPARE_CYCLES after it was taken, its draws with it; the next is taken when both are gone.

    Members
    -------
    i : stream of :func:`job_layout`
    o : stream of :func:`prepared_layout`
    o_draws : stream of :func:`draws_layout`, what was drawn or given, before it is reversed
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(job_layout(config))),
                "o": Out(stream.Signature(prepared_layout(config))),
                "o_draws": Out(stream.Signature(draws_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        job = Signal(job_layout(self.config), reset_less=True)
        step, busy, lfsr = Signal(range(N_DRAWS + 1)), Signal(), Signal(LFSR_BITS, init=1)
        ends = Signal()
        m.d.comb += [
            self.i.ready.eq(~busy & ~self.o.valid & ~self.o_draws.valid),
            ends.eq(busy & (step == N_DRAWS)),
            self.o_draws.payload.eq(job.draws),
        ]
        m.d.sync += [
            self.o.valid.eq(ends | (self.o.valid & ~self.o.ready)),
            self.o_draws.valid.eq(ends | (self.o_draws.valid & ~self.o_draws.ready)),
        ]
        with m.If(busy):
            m.d.sync += [step.eq(step + 1), busy.eq(~ends)]
            with m.If(job.draw & ~ends):
                m.d.sync += lfsr.eq(leap(lfsr, LFSR_TAPS, DRAW_BITS))
                self._draw(m, job, step, leap(lfsr, LFSR_TAPS, DRAW_BITS)[:DRAW_BITS])
        with m.Elif(self.i.valid & self.i.ready):
            m.d.sync += [job.eq(self.i.payload), busy.eq(1), step.eq(0)]
            with m.If(self.i.payload.draw & (self.i.payload.seed != 0)):
                m.d.sync += lfsr.eq(self.i.payload.seed)
        with m.If(ends):
            self._multiply_out(m, job)
        return m

    def _draw(self, m: Module, job, step: Signal, number) -> None:
        """The number of this step into its parameter: colours as they are, places by one multiplier."""
        draws = job.draws
        shift_y, shift_x = ((size + 4) >> 3 for size in (job.height, job.width))
        tops = [size - ((size + 1) >> 1)[0] for size in (job.height, job.width)]
        choices = Signal(self.config.size_bits + 1)
        place = Signal(self.config.size_bits + 1)
        m.d.comb += [
            choices.eq(1 + select(step - 3, [shift_y << 1, shift_x << 1, *tops])),
            place.eq((number * choices) >> DRAW_BITS),
        ]
        brightness = Cat(number[:-1], ~number[-1]).as_signed()  # number - 2^15
        with m.Switch(step):
            for value, to in enumerate(
                (
                    draws.brightness.eq((brightness << job.one_bits) >> 16),
                    draws.saturation.eq(number),
                    draws.contrast.eq((ONE >> 1) + (number >> 1)),
                    draws.shift_y.eq(place - shift_y),
                    draws.shift_x.eq(place - shift_x),
                    draws.centre_y.eq(place),
                    draws.centre_x.eq(place),
                )
            ):
                with m.Case(value):
                    m.d.sync += to

    def _multiply_out(self, m: Module, job) -> None:
        """The registers of ``o``: what the policy does not list does nothing."""
        to, draws = self.o.payload, job.draws
        contrast, saturation = (Mux(job.color, v, ONE) for v in (draws.contrast, draws.saturation))
        signs = [Mux(job.adjoint, -v, v) for v in (draws.shift_y, draws.shift_x)]
        shift_y, shift_x = (Mux(job.translation, v, 0) for v in signs)
        m.d.sync += [
            to.height.eq(job.height),
            to.width.eq(job.width),
            to.shift_y.eq(shift_y),
            to.shift_x.eq(shift_x),
            to.offset.eq(shift_y * job.width + shift_x),
            to.brightness.eq(Mux(job.color & ~job.adjoint, draws.brightness, 0)),
            to.contrast.eq(contrast),
            to.gain.eq((contrast * saturation + (ONE >> 1)) >> GAIN_BITS),
            to.reciprocal.eq(job.reciprocal),
            to.exponent.eq(job.exponent),
            *(to[name].eq(job[name] ^ job.adjoint) for name in ORDER_FIELDS),
        ]
        for axis, size in (("y", job.height), ("x", job.width)):
            cut = (size + 1) >> 1
            m.d.sync += [
                to[f"start_{axis}"].eq(draws[f"centre_{axis}"] - (cut >> 1)),
                to[f"cut_{axis}"].eq(Mux(job.cutout, cut, 0)),
            ]
