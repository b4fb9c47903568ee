# SPDX-License-Identifier: MIT
"""The last step of a selection, the same for every engine: stored lines against a threshold."""

from amaranth import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.stream.config import PackerConfig, SkidConfig
from hw.stream.rtl import Packer, SkidBuffer
from hw.zero_eliminator.config import ZeroEliminatorConfig
from hw.zero_eliminator.rtl import ZeroEliminator

from .config import TopKConfig


def output_layout(config: TopKConfig) -> data.StructLayout:
    """Payload of a selection's result: packed values and indices."""
    return data.StructLayout(
        {
            "data": data.ArrayLayout(unsigned(config.element_bits), config.lanes),
            "index": data.ArrayLayout(unsigned(config.index_bits), config.lanes),
            "count": config.lanes.bit_length(),
            "last": 1,
        }
    )


def marks_layout(config: TopKConfig) -> data.StructLayout:
    """Payload of a marked line: which of its lanes are kept; ``last`` with the k-th kept element."""
    return data.StructLayout(
        {
            "line": config.lanes * config.element_bits,
            "number": range(config.max_lines),
            "mask": config.lanes,
            "last": 1,
        }
    )


def _controls(config: TopKConfig) -> dict[str, wiring.Member]:
    """``start`` with the threshold begins a run when not ``busy``; ``line_number`` is the next line to read.

    ``line`` must hold the line of that number in the cycle after ``read``, and until the next ``read``.
    """
    return {
        "start": In(1),
        "threshold": In(config.element_bits),
        "n_equal": In(config.count_bits),
        "n": In(config.count_bits),
        "k": In(config.count_bits),
        "line": In(config.lanes * config.element_bits),
        "busy": Out(1),
        "read": Out(1),
        "line_number": Out(range(config.max_lines + 1)),
    }


class Mark(wiring.Component):
    """Reads the stored request and marks its k largest: all above the threshold, the first that equal it.

    Members
    -------
    start, threshold, n_equal, n, k, line, busy, read, line_number : see :func:`_controls`
    o : stream of :func:`marks_layout`, from line 0 to the line that holds the k-th marked element
    """

    def __init__(self, config: TopKConfig) -> None:
        self.config = config
        super().__init__({**_controls(config), "o": Out(stream.Signature(marks_layout(config)))})

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        threshold = Signal(cfg.element_bits)
        n_equal = Signal(cfg.count_bits)
        """Elements equal to the threshold that may still be kept."""
        n_missing = Signal(cfg.count_bits)
        """Elements of the k not yet found."""
        n_unread = Signal(cfg.count_bits)
        n_valid = Signal(cfg.count_bits)
        """Elements from the line in the read register to the end of the request."""
        read_number = Signal(range(cfg.max_lines))
        line_valid = Signal()

        kept_ready = Signal()
        m.d.comb += [kept_ready.eq(~self.o.valid | self.o.ready), self.read.eq(~line_valid | kept_ready)]
        # The last line is never left by counting lines: the run ends when the k-th element is found.
        with m.If(self.read):
            m.d.sync += [
                line_valid.eq(self.busy),
                read_number.eq(self.line_number),
                n_valid.eq(n_unread),
                self.line_number.eq(self.line_number + self.busy),
                n_unread.eq(Mux(n_unread > cfg.lanes, n_unread - cfg.lanes, 0)),
            ]

        elements = [self.line.word_select(lane, cfg.element_bits) for lane in range(cfg.lanes)]
        equal, keep = Signal(cfg.lanes), Signal(cfg.lanes)
        inside = Cat(lane < n_valid for lane in range(cfg.lanes))
        m.d.comb += equal.eq(Cat(e == threshold for e in elements) & inside)
        n_before: Value = Const(0, 1)
        for lane, element in enumerate(elements):
            m.d.comb += keep[lane].eq(
                inside[lane] & ((element > threshold) | (equal[lane] & (n_before < n_equal)))
            )
            total = Signal(range(lane + 2), name=f"equal_upto{lane}")
            m.d.comb += total.eq(n_before + equal[lane])
            n_before = total
        n_kept, found_all = Signal(range(cfg.lanes + 1)), Signal()
        m.d.comb += [n_kept.eq(popcount(keep)), found_all.eq(n_kept == n_missing)]

        with m.If(kept_ready):
            m.d.sync += [
                self.o.valid.eq(line_valid),
                self.o.payload.mask.eq(keep),
                self.o.payload.last.eq(found_all),
                self.o.payload.line.eq(self.line),
                self.o.payload.number.eq(read_number),
            ]
            with m.If(line_valid):
                m.d.sync += [
                    n_missing.eq(n_missing - n_kept),
                    n_equal.eq(Mux(n_before < n_equal, n_equal - n_before, 0)),
                ]
                with m.If(found_all):
                    m.d.sync += [self.busy.eq(0), line_valid.eq(0)]
        with m.If(self.start & ~self.busy):
            m.d.sync += [
                self.busy.eq(1),
                self.line_number.eq(0),
                n_unread.eq(self.n),
                n_missing.eq(self.k),
                threshold.eq(self.threshold),
                n_equal.eq(self.n_equal),
            ]
        return m


class Filter(wiring.Component):
    """Reads the stored request, keeps its k largest, and packs values and indices.

    Members
    -------
    start, threshold, n_equal, n, k, line, busy, read, line_number : see :func:`_controls`
    o : stream of :func:`output_layout`
    """

    def __init__(self, config: TopKConfig) -> None:
        self.config = config
        self.pair_bits = config.element_bits + config.index_bits
        super().__init__({**_controls(config), "o": Out(stream.Signature(output_layout(config)))})

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.mark = mark = Mark(cfg)
        m.submodules.eliminator = eliminator = ZeroEliminator(
            ZeroEliminatorConfig(lanes=cfg.lanes, element_bits=self.pair_bits)
        )
        m.submodules.packer = packer = Packer(PackerConfig(lanes=cfg.lanes, element_bits=self.pair_bits))
        m.submodules.skid = skid = SkidBuffer(SkidConfig(width_bits=output_layout(cfg).size))
        for name, member in _controls(cfg).items():
            inner, outer = getattr(mark, name), getattr(self, name)
            m.d.comb += inner.eq(outer) if member.flow is In else outer.eq(inner)

        marks = mark.o.payload
        m.d.comb += [
            eliminator.i.payload.data[lane].eq(
                Cat(
                    marks.line.word_select(lane, cfg.element_bits),
                    Const(lane, cfg.lane_bits),
                    marks.number,
                )[: self.pair_bits]
            )
            for lane in range(cfg.lanes)
        ]
        m.d.comb += [
            eliminator.i.payload.mask.eq(marks.mask),
            eliminator.i.payload.last.eq(marks.last),
            eliminator.i.valid.eq(mark.o.valid),
            mark.o.ready.eq(eliminator.i.ready),
        ]
        wiring.connect(m, eliminator.o, packer.i)
        o = Signal(output_layout(cfg), name="packed")
        m.d.comb += [
            o[field][lane].eq(packer.o.payload.data[lane][part])
            for lane in range(cfg.lanes)
            for field, part in (
                ("data", slice(0, cfg.element_bits)),
                ("index", slice(cfg.element_bits, None)),
            )
        ]
        m.d.comb += [
            o.count.eq(packer.o.payload.count),
            o.last.eq(packer.o.payload.last),
            skid.i.payload.eq(Value.cast(o)),
            skid.i.valid.eq(packer.o.valid),
            packer.o.ready.eq(skid.i.ready),
            Value.cast(self.o.payload).eq(skid.o.payload),
            self.o.valid.eq(skid.o.valid),
            skid.o.ready.eq(self.o.ready),
        ]
        return m


def popcount(mask: Value) -> Value:
    """Number of ones."""
    return sum((mask[i] for i in range(1, len(mask))), start=mask[0])
