# SPDX-License-Identifier: MIT
"""Amaranth implementation of the systolic array with its buffers and addresses."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import delayed
from hw.stream.config import FifoConfig
from hw.stream.rtl import Fifo

from .array import Array
from .buffer import ActivationBuffer, load_layout, word_layout
from .config import ACCUMULATOR_BITS, MIN_PASS_CYCLES, OPERAND_BITS, OPERAND_CYCLES, SystolicConfig
from .passes import PassGenerator, descriptor_layout, pass_layout


def weight_layout(config: SystolicConfig) -> data.StructLayout:
    """Payload of ``i_weight``: C weights of one input channel at one tap; ``last`` of its tile."""
    return data.StructLayout({"data": data.ArrayLayout(signed(OPERAND_BITS), config.columns), "last": 1})


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
    activations have 16 bits) while the next tile loads behind them. Sums stay in the accumulators until a
    last pass sends them out. Words are read where the descriptor's geometry says, as soon as they are there;
    outside of the input nothing is read and zeros enter.

    One vector of R activations a cycle, passes and descriptors back to back; a pass takes at least
    MIN_PASS_CYCLES. Latency ``config.latency_cycles`` from a last vector to its sums. The pipeline runs
    freely: a vector whose sums leave is issued only while the output queue has room for them.

    Members
    -------
    i_load, i_word : load and words of the activations, see :class:`hw.systolic.buffer.ActivationBuffer`
    i_descriptor : stream of :func:`hw.systolic.passes.descriptor_layout`
    i_weight : stream of :func:`weight_layout`, in the order of the passes; only rows that are used
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
        m.submodules.passes = passes = PassGenerator(self.config)
        m.submodules.activations = activations = ActivationBuffer(self.config)
        m.submodules.array = array = Array(self.config)
        wiring.connect(m, wiring.flipped(self.i_descriptor), passes.i)
        wiring.connect(m, wiring.flipped(self.i_load), activations.i_load)
        wiring.connect(m, wiring.flipped(self.i_word), activations.i_word)

        switch = Signal()
        loaded = self._load_weights(m, array, switch)
        vector = _Issue(self.config, m, passes.o, activations, self.o, loaded, switch)
        self._operands(m, vector, activations, array, switch)
        self._accumulate(m, vector, array)
        return m

    def _load_weights(self, m: Module, array: Array, switch: Signal) -> Signal:
        """Rows of the next tile into the array; returns whether the tile is complete."""
        beat = self.i_weight.payload
        loaded, taken = Signal(), Signal()
        row = Signal(range(self.config.rows))
        m.d.comb += [
            self.i_weight.ready.eq(~loaded | switch),
            taken.eq(self.i_weight.valid & self.i_weight.ready),
            array.load.eq(delayed(m, taken, OPERAND_CYCLES, "weights_come", is_valid=True)),
            array.row.eq(delayed(m, row, OPERAND_CYCLES, "weight_row")),
        ]
        for c in range(self.config.columns):
            weight = Signal(signed(OPERAND_BITS), name=f"taken{c}")
            m.d.comb += weight.eq(beat.data[c])
            m.d.comb += array.weights[c].eq(delayed(m, weight, OPERAND_CYCLES, f"weight{c}"))
        with m.If(switch):
            m.d.sync += loaded.eq(0)
        with m.If(taken):
            m.d.sync += [loaded.eq(beat.last), row.eq(Mux(beat.last, 0, row + 1))]
        return loaded

    def _operands(
        self, m: Module, vector: "_Issue", activations: ActivationBuffer, array: Array, switch: Signal
    ) -> None:
        """From words to signed operands: zeros outside of the input and in rows that are not used."""
        inside, low, n_in = (
            delayed(m, value, 1, name)
            for value, name in (
                (vector.inside, "inside"),
                (vector.of.low, "low"),
                (vector.of.n_in, "rows_used"),
            )
        )
        for r in range(self.config.rows):
            byte = Value.cast(activations.word[r])
            operand = Signal(signed(OPERAND_BITS + 1), name=f"operand{r}", reset_less=True)
            extended = Cat(byte, byte[-1] & ~low).as_signed()
            m.d.sync += operand.eq(Mux(inside & (r < n_in), extended, 0))
            m.d.comb += array.vector[r].eq(operand)
        m.d.comb += array.switch.eq(delayed(m, switch, OPERAND_CYCLES, "switch", is_valid=True))

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
                (vector.of.first, "first"),
                (vector.of.last, "last"),
                (vector.of.high, "high"),
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
            places.i.valid.eq(vector.issue & vector.of.last),
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
    of : the pass under way, of :func:`pass_layout`
    issue : a vector goes to the array
    inside : its pixel lies inside of the input
    pixel : number of the output pixel in the pass
    place : where its sums belong, of :func:`place_layout`
    """

    def __init__(
        self,
        config: SystolicConfig,
        m: Module,
        passes: stream.Interface,
        activations: ActivationBuffer,
        o: stream.Interface,
        loaded: Signal,
        switch: Signal,
    ) -> None:
        self.of = of = Signal(pass_layout(config), reset_less=True)
        self.issue, self.inside = Signal(name="issue"), Signal(name="inside")
        self.pixel = Signal((config.n_accumulators - 1).bit_length(), name="pixel")
        self.place = Signal(place_layout(config))
        self._m, self._config = m, config
        geometry = of.descriptor
        active, row_ends, ends, frees = (Signal(name=n) for n in ("active", "row_ends", "ends", "frees"))
        resting = Signal(range(MIN_PASS_CYCLES))
        """Cycles to wait after a short pass."""
        row, column = Signal(config.size_bits), Signal(config.size_bits)
        y, x = Signal(signed(config.size_bits + 2)), Signal(signed(config.size_bits + 2))
        of_row, address = Signal(config.word_bits), Signal(config.word_bits)
        n_written = Signal(config.count_bits)
        half, release = geometry.half, geometry.release
        m.d.comb += [
            n_written.eq(Mux(half, activations.n_written[1], activations.n_written[0])),
            activations.address.eq(Cat(address, half)),
            self.inside.eq((y >= 0) & (y < geometry.in_height) & (x >= 0) & (x < geometry.in_width)),
            row_ends.eq(column == geometry.out_width - 1),
            ends.eq(row_ends & (row == geometry.out_height - 1)),
            frees.eq(of.ends & ends & (release != 0)),
            self.issue.eq(
                active
                & (resting == 0)
                & (~self.inside | (address < n_written))
                & (~frees | (n_written >= release))
                & ((self.pixel != 0) | ~of.weights | loaded)
                & (~of.last | self._has_room(o))
            ),
            switch.eq(self.issue & (self.pixel == 0) & of.weights),
            activations.free.bit_select(half, 1).eq(self.issue & frees),
            passes.ready.eq(~active | (self.issue & ends)),
            self.place.y.eq(geometry.y + Mux(geometry.step, row << 1, row)),
            self.place.x.eq(geometry.x + Mux(geometry.step, column << 1, column)),
            self.place.channel.eq(of.channel),
            self.place.count.eq(of.n_out),
            self.place.last.eq(of.ends & ends),
        ]
        down = Signal(config.word_bits)
        m.d.comb += down.eq(of_row + Mux(geometry.stride, geometry.row_words << 1, geometry.row_words))
        m.d.sync += resting.eq(Mux(resting == 0, 0, resting - 1))
        with m.If(self.issue):
            m.d.sync += [
                self.pixel.eq(self.pixel + 1),
                column.eq(column + 1),
                x.eq(x + geometry.stride + 1),
                address.eq(address + Mux(geometry.stride, geometry.pixel_words << 1, geometry.pixel_words)),
            ]
            with m.If(row_ends):
                m.d.sync += [
                    column.eq(0),
                    row.eq(row + 1),
                    x.eq(of.x),
                    y.eq(y + geometry.stride + 1),
                    of_row.eq(down),
                    address.eq(down),
                ]
            with m.If(ends):
                short = MIN_PASS_CYCLES - 1
                m.d.sync += [
                    active.eq(0),
                    resting.eq(Mux(self.pixel < short, short - self.pixel, 0)),
                ]
        with m.If(passes.valid & passes.ready):
            start = passes.payload
            m.d.sync += [
                of.eq(start),
                active.eq(1),
                self.pixel.eq(0),
                row.eq(0),
                column.eq(0),
                y.eq(start.y),
                x.eq(start.x),
                of_row.eq(start.address),
                address.eq(start.address),
            ]

    def _has_room(self, o: stream.Interface) -> Value:
        """Whether the output queue has room for one beat more."""
        n_beats = self._config.output_fifo_beats
        left = Signal(range(n_beats + 1), init=n_beats, name="room")
        self._m.d.sync += left.eq(left - (self.issue & self.of.last) + (o.valid & o.ready))
        return left != 0
