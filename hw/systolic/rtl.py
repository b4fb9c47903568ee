# SPDX-License-Identifier: MIT
"""Amaranth implementation of the systolic array with its buffers and addresses."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import delayed
from hw.stream.config import FifoConfig
from hw.stream.rtl import Fifo

from .array import Array
from .buffer import ActivationBuffer, load_layout, plus, quad_layout, rotated, word_layout
from .config import (
    ACCUMULATOR_BITS,
    MIN_PASS_CYCLES,
    OPERAND_BITS,
    OPERAND_CYCLES,
    QUAD_BYTES,
    SystolicConfig,
)
from .layer import KERNELS
from .tiles import TileLoader, descriptor_layout, tile_layout, weight_layout


def place_layout(config: SystolicConfig) -> data.StructLayout:
    """Output pixel (y, x) of sums, ``count`` channels from ``channel`` on, ``last`` of a descriptor."""
    return data.StructLayout(
        {
            "y": config.size_bits,
            "x": config.size_bits,
            "channel": config.channel_bits + 1,
            "count": range(config.columns + 1),
            "last": 1,
        }
    )


def sum_layout(config: SystolicConfig) -> data.StructLayout:
    """Payload of ``o``: sums of C channels of one output pixel, those at and above ``count`` 0."""
    sums = data.ArrayLayout(signed(ACCUMULATOR_BITS), config.columns)
    return data.StructLayout({"data": sums, "place": place_layout(config)})


class Systolic(wiring.Component):
    """Convolutions on R x C multipliers: weights stay, output pixels pass by, one a cycle.

    A descriptor says what is computed (:class:`hw.systolic.descriptor.Descriptor`): a rectangle of output
    pixels, all its output channels. Tiles of R x C weights stay for one pass over the pixels (two, where
    activations have 16 bits) while the next tile loads behind them. The R products of a sum may belong to
    several taps of the kernel, in quads of four channels that lie in banks of their own. Sums stay in the
    accumulators until a last pass sends them out. Words are read where the descriptor's geometry says, as
    soon as they are there; outside of the input nothing is read and zeros enter.

    One vector of R activations a cycle, passes and descriptors back to back; a pass takes at least
    MIN_PASS_CYCLES. Latency ``config.latency_cycles`` from a last vector to its sums. The pipeline runs
    freely: a vector whose sums leave is issued only while the output queue has room for them.

    Members
    -------
    i_load, i_word : load and words of the activations, see :class:`hw.systolic.buffer.ActivationBuffer`
    i_descriptor : stream of :func:`hw.systolic.tiles.descriptor_layout`
    i_weight : stream of :func:`hw.systolic.tiles.weight_layout`, in the order of the passes
    o : stream of :func:`sum_layout`
    """

    def __init__(self, config: SystolicConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_load": In(stream.Signature(load_layout(config))),
                "i_word": In(stream.Signature(word_layout(config))),
                "i_descriptor": In(stream.Signature(descriptor_layout(config))),
                "i_weight": In(stream.Signature(weight_layout(config))),
                "o": Out(stream.Signature(sum_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.tiles = tiles = TileLoader(self.config)
        m.submodules.activations = activations = ActivationBuffer(self.config)
        m.submodules.array = array = Array(self.config)
        wiring.connect(m, wiring.flipped(self.i_descriptor), tiles.i_descriptor)
        wiring.connect(m, wiring.flipped(self.i_weight), tiles.i_weight)
        wiring.connect(m, wiring.flipped(self.i_load), activations.i_load)
        wiring.connect(m, wiring.flipped(self.i_word), activations.i_word)

        vector = _Issue(self.config, m, tiles, activations, self.o)
        self._load_weights(m, tiles, array)
        self._operands(m, vector, activations, array)
        self._accumulate(m, vector, array)
        return m

    def _load_weights(self, m: Module, tiles: TileLoader, array: Array) -> None:
        """Rows and switch to the array, as late as the operands that they meet."""
        m.d.comb += [
            array.load.eq(delayed(m, tiles.taken, OPERAND_CYCLES, "weights_come", is_valid=True)),
            array.row.eq(delayed(m, tiles.row, OPERAND_CYCLES, "weight_row")),
            array.switch.eq(delayed(m, tiles.switch, OPERAND_CYCLES, "switch", is_valid=True)),
        ]
        for c in range(self.config.columns):
            weight = Signal(signed(OPERAND_BITS), name=f"taken{c}")
            m.d.comb += weight.eq(self.i_weight.payload[c])
            m.d.comb += array.weights[c].eq(delayed(m, weight, OPERAND_CYCLES, f"weight{c}"))

    def _operands(self, m: Module, vector: "_Issue", activations: ActivationBuffer, array: Array) -> None:
        """Banks to lanes to signed operands: zeros outside of the input and in rows that are not used."""
        until_quads = OPERAND_CYCLES - 1
        low = delayed(m, vector.low, until_quads, "low")
        bank = delayed(m, vector.bank, until_quads, "bank")
        quads = rotated(m, list(activations.quads), bank, "lane")
        for lane, (quad, count) in enumerate(zip(quads, vector.counts, strict=True)):
            used = delayed(m, count, until_quads, f"count{lane}")
            for channel in range(QUAD_BYTES):
                row = lane * QUAD_BYTES + channel
                byte = quad.word_select(channel, OPERAND_BITS)
                operand = Signal(signed(OPERAND_BITS + 1), name=f"operand{row}", reset_less=True)
                extended = Cat(byte, byte[-1] & ~low).as_signed()
                m.d.sync += operand.eq(Mux(channel < used, extended, 0))
                m.d.comb += array.vector[row].eq(operand)

    def _accumulate(self, m: Module, vector: "_Issue", array: Array) -> None:
        """Adds the array's sums to those of earlier passes; the last pass's go to the queue."""
        cfg = self.config
        until_sums = OPERAND_CYCLES + cfg.rows + cfg.columns - 1
        sums = memory.Memory(
            shape=data.ArrayLayout(ACCUMULATOR_BITS, cfg.columns), depth=cfg.n_accumulators, init=[]
        )
        m.submodules.accumulators = sums
        write, read = sums.write_port(), sums.read_port()
        issued = delayed(m, vector.issue, until_sums, "issued", is_valid=True)
        first, last, high, n_out = (
            delayed(m, value, until_sums, name)
            for value, name in (
                (vector.first, "first"),
                (vector.last, "last"),
                (vector.high, "high"),
                (vector.of.n_out, "columns_used"),
            )
        )
        address = delayed(m, vector.pixel, until_sums - 1, "pixel")
        m.d.comb += [
            read.addr.eq(address),
            write.addr.eq(delayed(m, address, 2, "summed_pixel")),
            write.en.eq(delayed(m, issued, 1, "summed", is_valid=True)),
        ]
        m.submodules.queue = queue = Fifo(
            FifoConfig(width_bits=cfg.columns * ACCUMULATOR_BITS, depth=cfg.output_fifo_beats)
        )
        m.submodules.places = places = Fifo(
            FifoConfig(width_bits=vector.place.shape().size, depth=cfg.output_fifo_beats)
        )
        for c in range(cfg.columns):
            total = Signal(ACCUMULATOR_BITS, name=f"sum{c}", reset_less=True)
            added = Mux(high, array.sums[c] << OPERAND_BITS, array.sums[c])
            m.d.sync += total.eq(Mux(c < n_out, Mux(first, 0, read.data[c].as_signed()) + added, 0))
            m.d.comb += [
                write.data[c].eq(total),
                queue.i.payload.word_select(c, ACCUMULATOR_BITS).eq(total),
            ]
        m.d.comb += [
            queue.i.valid.eq(delayed(m, issued & last, 1, "leaves", is_valid=True)),
            places.i.valid.eq(vector.issue & vector.last),
            places.i.payload.eq(vector.place),
            Value.cast(self.o.payload.data).eq(queue.o.payload),
            Value.cast(self.o.payload.place).eq(places.o.payload),
            self.o.valid.eq(queue.o.valid),  # the place came long before
            queue.o.ready.eq(self.o.ready),
            places.o.ready.eq(self.o.ready & queue.o.valid),
        ]


class _Issue:
    """The output pixels of one pass after another: what to read and when to go on.

    Attributes
    ----------
    of : the tile under way, of :func:`hw.systolic.tiles.tile_layout`
    issue : a vector goes to the array
    counts : of each lane, channels that are read and lie inside of the input
    bank : of the pixel's first quad, lane 0
    first, last : the pass begins the sums, sends them out
    high, low : sums count 256 fold; activations are unsigned
    pixel : number of the output pixel in the pass
    place : where its sums belong, of :func:`place_layout`
    """

    def __init__(
        self,
        config: SystolicConfig,
        m: Module,
        tiles: TileLoader,
        activations: ActivationBuffer,
        o: stream.Interface,
    ) -> None:
        self._m, self._config = m, config
        self.of = of = Signal(tile_layout(config), reset_less=True)
        self._geometry = geometry = Signal(descriptor_layout(config), name="geometry", reset_less=True)
        self._address = Signal(quad_layout(config), name="address")
        self._of_row = Signal(quad_layout(config), name="of_row")
        """At the kernel's first tap: of the output pixel, of the first one of its row."""
        self._y, self._x = (Signal(signed(config.size_bits + 2), name=n) for n in "yx")
        """Input pixel there, which may lie outside."""
        self._row, self._column = (Signal(config.size_bits, name=n) for n in ("row", "column"))
        self.issue = Signal()
        self.bank = self._address.bank
        self.pixel = Signal((config.n_accumulators - 1).bit_length())
        self.place = Signal(place_layout(config))
        self.first, self.last, self.high, self.low = (
            Signal(name=n) for n in ("first", "last", "high", "low")
        )
        self._active, self._plane, self._row_ends, self._ends = (
            Signal(name=n) for n in ("active", "plane", "row_ends", "ends")
        )
        self._resting = Signal(range(MIN_PASS_CYCLES))
        """Cycles to wait after a short pass."""
        last_plane, frees = Signal(), Signal()
        half, release = geometry.half, geometry.release
        n_written = Signal(config.count_bits)
        self.counts, words_came = self._read(activations, n_written)
        m.d.comb += [
            n_written.eq(Mux(half, activations.n_written[1], activations.n_written[0])),
            last_plane.eq(~geometry.wide | self._plane),
            self.first.eq(of.first & ~self._plane),
            self.last.eq(of.last & last_plane),
            self.high.eq(geometry.wide & ~self._plane),
            self.low.eq(self._plane),
            self._row_ends.eq(self._column == geometry.out_width - 1),
            self._ends.eq(self._row_ends & (self._row == geometry.out_height - 1)),
            frees.eq(self.place.last & (release != 0)),
            self.issue.eq(
                self._active
                & (self._resting == 0)
                & words_came
                & (~frees | (n_written >= release))
                & (~self.last | self._has_room(o))
            ),
            tiles.switch.eq(self.issue & (self.pixel == 0) & ~self._plane),
            activations.free.bit_select(half, 1).eq(self.issue & frees),
            tiles.o.ready.eq(~self._active | (self.issue & self._ends & last_plane)),
            self.place.y.eq(geometry.y + Mux(geometry.step, self._row << 1, self._row)),
            self.place.x.eq(geometry.x + Mux(geometry.step, self._column << 1, self._column)),
            self.place.channel.eq(of.channel),
            self.place.count.eq(of.n_out),
            self.place.last.eq(of.ends & last_plane & self._ends),
        ]
        m.d.sync += self._resting.eq(Mux(self._resting == 0, 0, self._resting - 1))
        with m.If(self.issue):
            self._next_pixel()
            with m.If(self._ends):
                self._next_plane(last_plane)
        with m.If(tiles.o.valid & tiles.o.ready):
            m.d.sync += [of.eq(tiles.o.payload), geometry.eq(tiles.descriptor)]
            m.d.sync += [self._active.eq(1), self._plane.eq(0)]
            self._start(tiles.descriptor, tiles.descriptor.address)

    def _next_pixel(self) -> None:
        """Statements that go right, at the end of a row down."""
        m, geometry = self._m, self._geometry
        right = self._steps(self._address, geometry.pixel_quads, "right")
        down = self._steps(self._of_row, geometry.row_quads, "down")
        m.d.sync += [
            self.pixel.eq(self.pixel + 1),
            self._column.eq(self._column + 1),
            self._x.eq(self._x + geometry.stride + 1),
            self._address.eq(right),
        ]
        with m.If(self._row_ends):
            m.d.sync += [
                self._column.eq(0),
                self._row.eq(self._row + 1),
                self._x.eq(geometry.origin_x),
                self._y.eq(self._y + geometry.stride + 1),
                self._of_row.eq(down),
                self._address.eq(down),
            ]

    def _next_plane(self, last_plane: Value) -> None:
        """Statements that end a pass; the other plane may follow, with the same weights."""
        m, first = self._m, self._geometry.address
        short = MIN_PASS_CYCLES - 1
        low = Signal(quad_layout(self._config), name="first_of_low_plane")
        m.d.comb += [low.bank.eq(first.bank), low.word.eq(first.word + self._geometry.plane_words)]
        m.d.sync += [
            self._active.eq(~last_plane),
            self._plane.eq(1),
            self._resting.eq(Mux(self.pixel < short, short - self.pixel, 0)),
        ]
        self._start(self._geometry, low)

    def _start(self, descriptor: data.View, first: data.View) -> None:
        """Statements that go to the first output pixel, whose first quad is ``first``."""
        self._m.d.sync += [
            self.pixel.eq(0),
            self._row.eq(0),
            self._column.eq(0),
            self._y.eq(descriptor.origin_y),
            self._x.eq(descriptor.origin_x),
            self._of_row.eq(first),
            self._address.eq(first),
        ]

    def _read(self, activations: ActivationBuffer, n_written: Value) -> tuple[list[Value], Value]:
        """Asks the banks for the quads of the lanes; returns channels of each lane, and whether they came."""
        m, config, geometry = self._m, self._config, self._geometry
        taps = max(KERNELS)
        inside_y, inside_x = Signal(taps), Signal(taps)
        """Whether the input has the kernel's rows and columns, at this output pixel."""
        for inside, at, size in (
            (inside_y, self._y, geometry.in_height),
            (inside_x, self._x, geometry.in_width),
        ):
            m.d.comb += inside.eq(Cat((at + tap >= 0) & (at + tap < size) for tap in range(taps)))
        counts, came, words = [], [], []
        for number, lane in enumerate(self.of.lanes):
            word = Signal(config.word_bits, name=f"word{number}")
            count = Signal.like(lane.count, name=f"count{number}")
            is_inside = inside_y.bit_select(lane.y, 1) & inside_x.bit_select(lane.x, 1)
            m.d.comb += [
                word.eq(self._address.word + lane.word + (self._address.bank + number >= config.n_banks)),
                count.eq(Mux(is_inside, lane.count, 0)),
            ]
            words.append(word)
            counts.append(count)
            came.append((count == 0) | (word < n_written))
        m.d.comb += activations.half.eq(geometry.half)
        for address, word in zip(
            activations.address, rotated(m, words, self.bank, "bank", down=True), strict=True
        ):
            m.d.comb += address.eq(word)
        return counts, Cat(came).all()

    def _steps(self, at: data.View, step: data.View, name: str) -> data.View:
        """``at`` and as many steps as the stride."""
        once = plus(self._m, at, step, self._config, f"{name}_once")
        twice = plus(self._m, once, step, self._config, f"{name}_twice")
        moved = Signal(quad_layout(self._config), name=name)
        self._m.d.comb += moved.eq(Mux(self._geometry.stride, twice, once))
        return moved

    def _has_room(self, o: stream.Interface) -> Value:
        """Whether the output queue has room for one beat more."""
        n_beats = self._config.output_fifo_beats
        left = Signal(range(n_beats + 1), init=n_beats, name="room")
        self._m.d.sync += left.eq(left - (self.issue & self.last) + (o.valid & o.ready))
        return left != 0
