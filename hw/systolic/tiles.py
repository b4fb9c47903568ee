# SPDX-License-Identifier: MIT
"""Descriptors, and their split into tiles of weights while the weights come."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .buffer import plus, quad_layout
from .config import OPERAND_BITS, QUAD_BYTES, SystolicConfig


def descriptor_layout(config: SystolicConfig) -> data.StructLayout:
    """Payload of ``i_descriptor``; see :class:`hw.systolic.descriptor.Descriptor` for the fields.

    ``stride`` and ``step`` are 0 for 1 and 1 for 2.
    """
    words, quads, size = config.word_bits, quad_layout(config), config.size_bits
    return data.StructLayout(
        {
            "half": 1,
            "release": config.count_bits,
            "address": quads,
            "row_quads": quads,
            "pixel_quads": quads,
            "plane_words": words,
            "wide": 1,
            "in_height": size,
            "in_width": size,
            "origin_y": signed(size + 1),
            "origin_x": signed(size + 1),
            "stride": 1,
            "kernel_height": 3,
            "kernel_width": 3,
            "n_in": config.channel_bits,
            "n_out": config.channel_bits,
            "out_height": size,
            "out_width": size,
            "y": size,
            "x": size,
            "step": 1,
            "channel": config.channel_bits + 1,
        }
    )


def weight_layout(config: SystolicConfig) -> data.ArrayLayout:
    """Payload of ``i_weight``: C weights of one input channel at one tap."""
    return data.ArrayLayout(signed(OPERAND_BITS), config.columns)


def lane_layout(config: SystolicConfig) -> data.StructLayout:
    """What a quad of rows meets: ``count`` channels (0: nothing) at tap (y, x).

    They lie ``word`` words beyond the pixel's address, in the bank as many beyond the pixel's as the lane's
    number says.
    """
    return data.StructLayout({"count": range(QUAD_BYTES + 1), "y": 3, "x": 3, "word": config.word_bits})


def tile_layout(config: SystolicConfig) -> data.StructLayout:
    """Payload of one tile of weights: up to R products of each output pixel and of ``n_out`` channels.

    ``first`` and ``last`` of the tiles whose sums are added; ``ends``: the descriptor's last tile.
    """
    return data.StructLayout(
        {
            "lanes": data.ArrayLayout(lane_layout(config), config.n_banks),
            "n_out": range(config.columns + 1),
            "channel": config.channel_bits + 1,
            "first": 1,
            "last": 1,
            "ends": 1,
        }
    )


class TileLoader(wiring.Component):
    """Sends rows of weights to the cells that they belong to, and says what those cells meet.

    Rows come by C output channels, kernel row, kernel column, input channel. Four channels of a tap, or what
    is left of them, are a quad; its lane, four rows of cells, is the bank where it lies, counted from that of
    the output pixel. A tile takes quads until one meets a lane in use: so all are read in one cycle, whatever
    the pixel. Addresses are only added to: no multiplier.

    One row a cycle, tiles and descriptors back to back: the rows of a tile may come from the ``switch`` of
    the tile before on, and it shows on ``o`` with its last row.

    Members
    -------
    i_descriptor : stream of :func:`descriptor_layout`; taken once the last tile of the one before has gone
    i_weight : stream of :func:`weight_layout`
    switch : the array moves to the weights loaded last; its next ones may come from this cycle on
    taken, row : the row of weights enters, and belongs to this row of cells
    o : stream of :func:`tile_layout`
    descriptor : of the tile on ``o``
    """

    def __init__(self, config: SystolicConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_descriptor": In(stream.Signature(descriptor_layout(config))),
                "i_weight": In(stream.Signature(weight_layout(config))),
                "switch": In(1),
                "taken": Out(1),
                "row": Out(range(config.rows)),
                "o": Out(stream.Signature(tile_layout(config))),
                "descriptor": Out(descriptor_layout(config)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg, tile = self.config, self.o.payload
        held = Signal(descriptor_layout(cfg), reset_less=True)
        busy, rows_came = Signal(), Signal()
        """A descriptor is held; all its rows came."""
        occupied, offered = Signal(), Signal()
        """A whole tile waits in the array; on ``o``."""
        begins = Signal(init=1)
        """The next row begins a tile."""
        at = _Position(cfg, m, held, self.taken)
        before = Signal(tile_layout(cfg), reset_less=True)
        completes = Signal()
        m.d.comb += [
            self.i_weight.ready.eq(busy & ~rows_came & (~occupied | self.switch)),
            self.taken.eq(self.i_weight.valid & self.i_weight.ready),
            self.row.eq(Cat(at.part, at.quad.bank)),
            self.descriptor.eq(held),
            self.o.valid.eq(offered | completes),
            self.i_descriptor.ready.eq(~busy | (self.o.valid & self.o.ready & tile.ends)),
            tile.eq(before),
        ]
        with m.If(self.taken):
            m.d.comb += [
                tile.n_out.eq(Mux(at.last_out, at.out_left, cfg.columns)),
                tile.channel.eq(at.channel),
                tile.first.eq(Mux(begins, at.first, before.first)),
                tile.last.eq(at.ends_sums),
                tile.ends.eq(at.ends_sums & at.last_out),
            ]
            for number, lane in enumerate(tile.lanes):
                with m.If(at.quad.bank == number):
                    m.d.comb += [
                        lane.count.eq(at.part + 1),
                        lane.y.eq(at.kernel_y),
                        lane.x.eq(at.kernel_x),
                        lane.word.eq(at.quad.word),
                    ]
                with m.Elif(begins):
                    m.d.comb += lane.count.eq(0)
        in_use = Cat(lane.count != 0 for lane in tile.lanes)
        m.d.comb += completes.eq(
            self.taken & at.ends_quad & (at.ends_sums | in_use.bit_select(at.following.bank, 1))
        )
        m.d.sync += [
            before.eq(tile),
            offered.eq(self.o.valid & ~self.o.ready),
            occupied.eq(completes | (occupied & ~self.switch)),
            begins.eq(Mux(self.taken, completes, begins)),
            rows_came.eq(rows_came | (completes & tile.ends)),
            busy.eq(busy & ~self.i_descriptor.ready),
        ]
        with m.If(self.i_descriptor.valid & self.i_descriptor.ready):
            m.d.sync += [busy.eq(1), rows_came.eq(0), held.eq(self.i_descriptor.payload)]
            at.start(self.i_descriptor.payload)
        return m


class _Position:
    """Where the next row of weights stands in the kernel and in the buffer.

    Attributes
    ----------
    kernel_y, kernel_x, part : tap, and channel within the quad
    quad : the quad's number, counted from the output pixel's first one
    following : number of the quad after it
    first, ends_quad, ends_sums : the row is the first one of its sums, the last of its quad, of its sums
    out_left, channel, last_out : output channels not yet done, the first of them, and whether C hold them
    """

    def __init__(self, config: SystolicConfig, m: Module, held: data.View, taken: Value) -> None:
        quads = quad_layout(config)
        self._m = m
        self.part = Signal(range(QUAD_BYTES), name="part")
        self.kernel_y, self.kernel_x = Signal(3, name="kernel_y"), Signal(3, name="kernel_x")
        self.out_left = Signal(config.channel_bits, name="out_left")
        self.channel = Signal(config.channel_bits + 1, name="channel")
        self.quad, self.following = Signal(quads, name="quad"), Signal(quads, name="following")
        self.first, self.ends_quad, self.ends_sums, self.last_out = (
            Signal(name=n) for n in ("first", "ends_quad", "ends_sums", "last_out")
        )
        self._in_left = in_left = Signal(config.channel_bits, name="in_left")
        self._of_row, self._of_tap = (Signal(quads, name=n) for n in ("of_row", "of_tap"))
        """First quad of the kernel row, of the tap."""
        last_in, last_x, last_y = (Signal(name=n) for n in ("last_in", "last_x", "last_y"))
        next_quad = plus(m, self.quad, quads.const({"bank": 1}), config, "next_quad")
        next_tap = plus(m, self._of_tap, held.pixel_quads, config, "next_tap")
        next_row = plus(m, self._of_row, held.row_quads, config, "next_row")
        m.d.comb += [
            last_in.eq(in_left == 1),
            last_x.eq(self.kernel_x == held.kernel_width - 1),
            last_y.eq(self.kernel_y == held.kernel_height - 1),
            self.last_out.eq(self.out_left <= config.columns),
            self.first.eq((in_left == held.n_in) & (self.kernel_x == 0) & (self.kernel_y == 0)),
            self.ends_quad.eq(last_in | (self.part == QUAD_BYTES - 1)),
            self.ends_sums.eq(last_in & last_x & last_y),
            self.following.eq(next_quad),
        ]
        with m.If(self.ends_sums):
            m.d.comb += self.following.eq(0)
        with m.Elif(last_in):
            m.d.comb += self.following.eq(Mux(last_x, next_row, next_tap))
        with m.If(taken):
            m.d.sync += [in_left.eq(Mux(last_in, held.n_in, in_left - 1)), self.part.eq(self.part + 1)]
            with m.If(self.ends_quad):
                m.d.sync += [self.part.eq(0), self.quad.eq(self.following)]
            with m.If(last_in):
                m.d.sync += [
                    self.kernel_x.eq(Mux(last_x, 0, self.kernel_x + 1)),
                    self._of_tap.eq(self.following),
                ]
                with m.If(last_x):
                    m.d.sync += [
                        self.kernel_y.eq(Mux(last_y, 0, self.kernel_y + 1)),
                        self._of_row.eq(self.following),
                    ]
            with m.If(self.ends_sums):
                m.d.sync += [
                    self.out_left.eq(self.out_left - config.columns),
                    self.channel.eq(self.channel + config.columns),
                ]

    def start(self, descriptor: data.View) -> None:
        """Statements that go to the first row of a descriptor."""
        zero = (self.part, self.kernel_y, self.kernel_x, self.quad, self._of_row, self._of_tap)
        self._m.d.sync += [
            *(Value.cast(value).eq(0) for value in zero),
            self._in_left.eq(descriptor.n_in),
            self.out_left.eq(descriptor.n_out),
            self.channel.eq(descriptor.channel),
        ]
