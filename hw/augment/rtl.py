# SPDX-License-Identifier: MIT
"""Amaranth implementation of the augmentation unit."""

from amaranth import Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import delayed

from .config import (
    CHANNELS,
    GAIN_BITS,
    MEAN_BITS,
    ONE,
    RECIPROCAL_BITS,
    THIRD,
    THIRD_SHIFT,
    AugmentConfig,
)
from .prepare import Prepare, draws_layout, job_layout, prepared_layout


def pixel_layout(config: AugmentConfig) -> data.ArrayLayout:
    """Payload of ``i``: the channels of a pixel."""
    return data.ArrayLayout(signed(config.element_bits), CHANNELS)


def out_layout(config: AugmentConfig) -> data.StructLayout:
    """Payload of ``o``: the channels of a pixel; ``last`` of its image."""
    return data.StructLayout({"data": pixel_layout(config), "last": 1})


class Augment(wiring.Component):
    """DiffAugment of one image after another: colour, translation and cutout in any order, or their adjoint.

    An image is stored while its mean is summed, of what the colours will see of it; then its output pixels
    are made in raster order, each from one pixel at a shifted address, while the next image comes in. One
    pixel a cycle each way.

    Members
    -------
    i_job : stream of :func:`hw.augment.prepare.job_layout`, one an image
    i : stream of :func:`pixel_layout`, raster order
    o_draws : stream of :func:`hw.augment.prepare.draws_layout`, one an image
    o : stream of :func:`out_layout`, raster order
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_job": In(stream.Signature(job_layout(config))),
                "i": In(stream.Signature(pixel_layout(config))),
                "o_draws": Out(stream.Signature(draws_layout(config))),
                "o": Out(stream.Signature(out_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.prepare = prepare = Prepare(cfg)
        m.submodules.store = store = Store(cfg)
        m.submodules.emit = emit = Emit(cfg)
        pixels = memory.Memory(
            shape=data.ArrayLayout(signed(cfg.element_bits), CHANNELS), depth=2 * cfg.max_pixels, init=[]
        )
        m.submodules.pixels = pixels
        write, read = pixels.write_port(), pixels.read_port()
        wiring.connect(m, wiring.flipped(self.i_job), prepare.i)
        wiring.connect(m, prepare.o_draws, wiring.flipped(self.o_draws))
        wiring.connect(m, prepare.o, store.i_job)
        wiring.connect(m, wiring.flipped(self.i), store.i)
        wiring.connect(m, store.o, emit.i)
        wiring.connect(m, emit.o, wiring.flipped(self.o))
        half = Signal()
        """The half that is filled; the other one is shown."""
        with m.If(store.o.valid & store.o.ready):
            m.d.sync += half.eq(~half)
        m.d.comb += [
            write.en.eq(store.i.valid & store.i.ready),
            write.addr.eq(store.address | (half << cfg.address_bits)),
            Value.cast(write.data).eq(Value.cast(self.i.payload)),
            read.en.eq(emit.enable),
            read.addr.eq(emit.address | (~half << cfg.address_bits)),
            Value.cast(emit.pixel).eq(Value.cast(read.data)),
        ]
        return m


class Raster:
    """Row, column and number of one pixel after another.

    Attributes
    ----------
    y, x, address : of this pixel
    last : of its image
    """

    def __init__(self, m: Module, config: AugmentConfig, job, starts: Value, steps: Value) -> None:
        self.y, self.x = (Signal(signed(config.place_bits), name=name) for name in ("y", "x"))
        self.address = Signal(config.address_bits)
        self.last = Signal()
        row_ends = Signal()
        m.d.comb += [
            row_ends.eq(self.x == job.width - 1),
            self.last.eq(row_ends & (self.y == job.height - 1)),
        ]
        with m.If(starts):
            m.d.sync += [self.y.eq(0), self.x.eq(0), self.address.eq(0)]
        with m.Elif(steps):
            m.d.sync += [self.x.eq(Mux(row_ends, 0, self.x + 1)), self.address.eq(self.address + 1)]
            with m.If(row_ends):
                m.d.sync += self.y.eq(self.y + 1)


def _within(y: Value, x: Value, job) -> Value:
    """Whether (y, x) lies in the image."""
    return (y >= 0) & (y < job.height) & (x >= 0) & (x < job.width)


def _cut(y: Value, x: Value, job) -> Value:
    """Whether (y, x) lies in the rectangle."""
    down, right = y - job.start_y, x - job.start_x
    return (down >= 0) & (down < job.cut_y) & (right >= 0) & (right < job.cut_x)


def offered_layout(config: AugmentConfig) -> data.StructLayout:
    """A stored image: its job, and the sum of all that does not depend on the pixel.

    ``offset`` has GAIN_BITS + MEAN_BITS fraction bits.
    """
    bits = config.element_bits + GAIN_BITS + MEAN_BITS + 3
    return data.StructLayout({"job": prepared_layout(config), "offset": signed(bits)})


class Store(wiring.Component):
    """Numbers the pixels of an image and sums those that the colours will see; then offers the image.

    What comes before the colours moves a pixel to p - shift, drops it if that lies outside, or cuts it out.
    The next job is taken when the image before has been taken over, so its half is free.

    Members
    -------
    i_job : stream of :func:`hw.augment.prepare.prepared_layout`
    i : stream of :func:`pixel_layout`
    address : number of the pixel that is taken
    o : stream of :func:`offered_layout`
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_job": In(stream.Signature(prepared_layout(config))),
                "i": In(stream.Signature(pixel_layout(config))),
                "address": Out(config.address_bits),
                "o": Out(stream.Signature(offered_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg, job = self.config, self.o.payload.job
        loading, starts, taken, ends = Signal(), Signal(), Signal(), Signal()
        raster = Raster(m, cfg, job, starts, taken)
        finishing = [delayed(m, ends, n, "ends", is_valid=True) for n in (1, 2, 3)]
        m.d.comb += [
            self.i_job.ready.eq(~loading & ~self.o.valid & ~finishing[0] & ~finishing[1] & ~finishing[2]),
            starts.eq(self.i_job.valid & self.i_job.ready),
            self.i.ready.eq(loading),
            taken.eq(self.i.valid & loading),
            ends.eq(taken & raster.last),
            self.address.eq(raster.address),
        ]
        with m.If(starts):
            m.d.sync += [job.eq(self.i_job.payload), loading.eq(1)]
        with m.If(ends):
            m.d.sync += loading.eq(0)
        m.d.sync += self.o.valid.eq(finishing[2] | (self.o.valid & ~self.o.ready))

        y, x = (Signal(signed(cfg.place_bits + 1), name=name) for name in ("moved_y", "moved_x"))
        seen = Signal()
        cut_y, cut_x = Mux(job.cutout_last, y, raster.y), Mux(job.cutout_last, x, raster.x)
        m.d.comb += [
            y.eq(raster.y - Mux(job.translation_late, 0, job.shift_y)),
            x.eq(raster.x - Mux(job.translation_late, 0, job.shift_x)),
            seen.eq(_within(y, x, job) & (job.cutout_late | ~_cut(cut_y, cut_x, job))),
        ]
        self._mean(m, job, Mux(seen, sum(self.i.payload[c] for c in range(CHANNELS)), 0), starts, taken)
        return m

    def _mean(self, m: Module, job, pixel: Value, starts: Signal, taken: Signal) -> None:
        """Sum, times the reciprocal, rounded, times 1 - contrast: a cycle each behind the last pixel."""
        cfg = self.config
        total = Signal(signed(cfg.element_bits + 2 + cfg.address_bits), reset_less=True)
        product = Signal(signed(len(total) + RECIPROCAL_BITS + 1), reset_less=True)
        mean = Signal(signed(cfg.element_bits + MEAN_BITS), reset_less=True)
        rounded = Signal(signed(len(product)))
        # The exponent is at least 2, of a single pixel.
        shift_less_one = RECIPROCAL_BITS - 2 - MEAN_BITS + job.exponent
        m.d.comb += rounded.eq((product >> shift_less_one) + 1)
        with m.If(starts):
            m.d.sync += total.eq(0)
        with m.Elif(taken):
            m.d.sync += total.eq(total + pixel)
        offset = (ONE - job.contrast) * mean + (job.brightness << (GAIN_BITS + MEAN_BITS))
        m.d.sync += [
            product.eq(total * job.reciprocal),
            mean.eq(rounded >> 1),
            self.o.payload.offset.eq(offset),
        ]


class Emit(wiring.Component):
    """The output pixels of a stored image in raster order.

    Zero where an operation behind the colours says so; colours of zero where one before them does. The next
    image is taken when the last pixel of this one has left the pipeline for ``o``.

    Members
    -------
    i : stream of :func:`offered_layout`
    enable, address : read this pixel, which is there in the next cycle
    pixel : what was read
    o : stream of :func:`out_layout`
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(offered_layout(config))),
                "enable": Out(1),
                "address": Out(config.address_bits),
                "pixel": In(pixel_layout(config)),
                "o": Out(stream.Signature(out_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        image = Signal(offered_layout(cfg), reset_less=True)
        job = image.job
        active, starts, flow, steps = Signal(), Signal(), Signal(), Signal()
        under_way = Signal(4)
        """Pixels behind each of the four steps before the output's."""
        raster = Raster(m, cfg, job, starts, steps)
        m.d.comb += [
            flow.eq(~self.o.valid | self.o.ready),
            steps.eq(active & flow),
            starts.eq(self.i.valid & self.i.ready),
            self.i.ready.eq(~active & (under_way == 0)),
            self.enable.eq(flow),
            self.address.eq(raster.address + job.offset),
        ]
        with m.If(starts):
            m.d.sync += [image.eq(self.i.payload), active.eq(1)]
        with m.Elif(steps & raster.last):
            m.d.sync += active.eq(0)

        y, x = (Signal(signed(cfg.place_bits + 1), name=name) for name in ("source_y", "source_x"))
        outside, cut, before, after = (Signal(name=n) for n in ("outside", "cut", "before", "after"))
        m.d.comb += [
            y.eq(raster.y + job.shift_y),
            x.eq(raster.x + job.shift_x),
            outside.eq(~_within(y, x, job)),
            cut.eq(_cut(Mux(job.cutout_last, raster.y, y), Mux(job.cutout_last, raster.x, x), job)),
            after.eq((outside & job.translation_late) | (cut & job.cutout_late)),
            before.eq(outside | cut),
        ]
        with m.If(flow):
            m.d.sync += [under_way.eq((under_way << 1) | active), self.o.valid.eq(under_way[-1])]
            self._pixels(m, image, before, after, raster.last)
        return m

    def _pixels(self, m: Module, image, before: Signal, after: Signal, last: Signal) -> None:
        """Operands, mean over channels, products, sum: a register each, all of them held with the output."""
        cfg, job = self.config, image.job

        def held(value: Value, name: str, cycles: int = 1) -> Value:
            for cycle in range(cycles):
                register = Signal(value.shape(), name=f"{name}{cycle}", reset_less=True)
                m.d.sync += register.eq(value)
                value = register
            return value

        is_zero = held(before, "before")
        x = [held(Mux(is_zero, 0, self.pixel[c]).as_signed(), f"x{c}") for c in range(CHANNELS)]
        mean = Signal(signed(cfg.element_bits + MEAN_BITS), reset_less=True)
        m.d.sync += mean.eq((sum(x) * THIRD + (1 << (THIRD_SHIFT - 1))) >> THIRD_SHIFT)
        from_mean = Signal(signed(18 + len(mean)), reset_less=True)
        m.d.sync += from_mean.eq((job.contrast - job.gain) * mean)
        m.d.sync += self.o.payload.last.eq(held(last, "last", 4))
        drops = held(after, "after", 4)
        high = 1 << (cfg.element_bits - 1)
        for c in range(CHANNELS):
            from_pixel = Signal(signed(17 + 1 + cfg.element_bits), name=f"from_pixel{c}", reset_less=True)
            m.d.sync += from_pixel.eq(job.gain * held(x[c], f"late_x{c}"))
            total = Signal(signed(cfg.element_bits + GAIN_BITS + MEAN_BITS + 5), name=f"total{c}")
            rounded = Signal(signed(cfg.element_bits + 5), name=f"rounded{c}")
            m.d.comb += [
                total.eq((from_pixel << MEAN_BITS) + from_mean + image.offset),
                rounded.eq((total + (1 << (GAIN_BITS + MEAN_BITS - 1))) >> (GAIN_BITS + MEAN_BITS)),
            ]
            clamped = Mux(rounded < -high, -high, Mux(rounded >= high, high - 1, rounded))
            m.d.sync += self.o.payload.data[c].eq(Mux(drops, 0, clamped))
