# SPDX-License-Identifier: MIT
"""The convolution core: a list of commands, maps in memory in and maps out."""

from amaranth import Module, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.depthwise.rtl import Depthwise
from hw.epilogue.rtl import Epilogue
from hw.fir.rtl import Fir
from hw.loss.maps import MapLoss
from hw.stream.config import FifoConfig
from hw.stream.fork import connect
from hw.stream.rtl import Fifo
from hw.systolic.rtl import Systolic
from hw.training.rtl import Training
from hw.transpose.rtl import Transpose

from .commands import command_layouts
from .config import ADDRESS_BITS, COMMAND_COUNT_BITS, RECORD_BYTES, ConvolutionConfig
from .dispatch import Dispatch, Kind
from .feed import Feed
from .reader import Reader
from .writer import Writer, write_layout

READ_PORTS = ("commands", "weights", "input", "side")


def start_layout() -> data.StructLayout:
    """Payload of ``i_start``: a list of so many commands from this byte address on, at least one."""
    return data.StructLayout({"base": ADDRESS_BITS, "n_commands": COMMAND_COUNT_BITS})


class Convolution(wiring.Component):
    """Array, filter, depthwise unit, transposer, loss unit, epilogue and the kernels of training between four
    read ports and one write port.

    A command is a beat of one unit's stream (:class:`hw.convolution.dispatch.Kind`), so units run as far
    ahead of each other as their queues allow; a FENCE waits for all that was to be written before it.

    Members
    -------
    i_start : stream of :func:`start_layout`
    o_done : a beat once a list's last command was taken: 1 if there was one of an unknown kind
    o_request_{port}, i_response_{port} : numbers of bus words, and the words, of each of READ_PORTS
    o_write, i_written : see :class:`hw.convolution.writer.Writer`
    """

    def __init__(self, config: ConvolutionConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_start": In(stream.Signature(start_layout())),
                "o_done": Out(stream.Signature(1)),
                **{
                    f"o_request_{port}": Out(stream.Signature(config.bus_address_bits)) for port in READ_PORTS
                },
                **{f"i_response_{port}": In(stream.Signature(8 * config.bus_bytes)) for port in READ_PORTS},
                "o_write": Out(stream.Signature(write_layout(config.bus_bytes))),
                "i_written": In(stream.Signature(1)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.array = array = Systolic(cfg.array)
        m.submodules.filter = fir = Fir(cfg.fir)
        m.submodules.depthwise = depthwise = Depthwise(cfg.depthwise)
        m.submodules.epilogue = epilogue = Epilogue(cfg.epilogue)
        m.submodules.transpose = transpose = Transpose(cfg.transpose)
        m.submodules.loss = loss = MapLoss(cfg.loss, columns=cfg.array.columns)
        m.submodules.training = training = Training(cfg.training)
        m.submodules.feed = feed = Feed(cfg)
        m.submodules.dispatch = dispatch = Dispatch(command_layouts(cfg))
        m.submodules.writer = writer = Writer(
            columns=cfg.array.columns, bus_bytes=cfg.bus_bytes, max_writes=cfg.max_writes
        )
        readers = {port: self._reader(m, port) for port in READ_PORTS}

        self._start(m, readers["commands"], dispatch)
        connect(m, dispatch.o_fence, writer.i_fence)
        for kind, sink in (
            (Kind.INPUT, readers["input"].i),
            (Kind.LOAD, array.i_load),
            (Kind.WEIGHTS, readers["weights"].i),
            (Kind.CONV, array.i_descriptor),
            (Kind.MAP, fir.i_map),
            (Kind.SIDE, readers["side"].i),
            (Kind.EPILOGUE, feed.i),
            (Kind.OUTPUT, writer.i_output),
            (Kind.PASS, depthwise.i_pass),
            (Kind.TRANSPOSE, transpose.i_map),
            (Kind.KERNEL, training.i_job),
            (Kind.LOSS, loss.i_map),
        ):
            self._queue(m, dispatch, kind, sink)

        self._by_tag(m, readers["input"].o, (array.i_word, fir.i, depthwise.i, transpose.i, loss.i))
        rows = (array.i_weight, depthwise.i_weight, training.i_sums, loss.i_label)
        self._by_tag(m, readers["weights"].o, rows)
        self._by_tag(m, readers["side"].o, (epilogue.i_table, epilogue.i_side, training.i_master))
        for source, sink in (
            (array.o, feed.i_array),
            (fir.o, feed.i_filter),
            (depthwise.o, feed.i_depthwise),
        ):
            m.d.comb += [
                Value.cast(sink.payload).eq(Value.cast(source.payload.data)),
                sink.valid.eq(source.valid),
                source.ready.eq(sink.ready),
            ]
        connect(m, transpose.o, feed.i_transpose)
        connect(m, loss.o, feed.i_loss)
        self._written(m, epilogue.o, training.o, writer.i)
        connect(m, feed.o_job, epilogue.i_job)
        connect(m, feed.o, epilogue.i)
        connect(m, writer.o_write, self.o_write)
        connect(m, self.i_written, writer.i_written)
        return m

    def _written(self, m: Module, elements, words, sink) -> None:
        """Maps of the epilogue or words of a kernel; never both, as fences are between them."""
        element, word = elements.payload, words.payload
        m.d.comb += [
            *(sink.payload[name].eq(element[name]) for name in ("data", "mask", "reader")),
            sink.valid.eq(elements.valid | words.valid),
            elements.ready.eq(sink.ready),
            words.ready.eq(sink.ready & ~elements.valid),
        ]
        with m.If(~elements.valid):
            m.d.comb += [Value.cast(sink.payload.data).eq(word.data), sink.payload.reader.eq(word.reader)]

    def _reader(self, m: Module, port: str) -> Reader:
        cfg = self.config
        max_bytes, unit_bytes = {
            "commands": (RECORD_BYTES, RECORD_BYTES),
            "weights": (cfg.array.columns, 4),
            "input": (max(cfg.array.rows, cfg.wide_bytes), 4),
            "side": (cfg.wide_bytes, 2),
        }[port]
        reader = Reader(
            bus_bytes=cfg.bus_bytes, max_bytes=max_bytes, unit_bytes=unit_bytes, depth=cfg.read_words
        )
        m.submodules[f"{port}_reader"] = reader
        connect(m, reader.o_request, getattr(self, f"o_request_{port}"))
        connect(m, getattr(self, f"i_response_{port}"), reader.i_response)
        return reader

    def _start(self, m: Module, commands: Reader, dispatch: Dispatch) -> None:
        """A list is a walk over records."""
        start, walk = self.i_start, commands.i.payload.walk
        m.d.comb += [
            walk.base.eq(start.payload.base),
            walk.n_columns.eq(start.payload.n_commands),
            walk.column_stride.eq(RECORD_BYTES),
            *(count.eq(1) for count in (walk.n_rows, walk.n_tiles)),
            *(length.eq(RECORD_BYTES) for length in (walk.n_bytes, walk.last_bytes)),
            commands.i.valid.eq(start.valid),
            start.ready.eq(commands.i.ready),
        ]
        connect(m, commands.o, dispatch.i)
        connect(m, dispatch.o_done, self.o_done)

    def _queue(self, m: Module, dispatch: Dispatch, kind: Kind, sink) -> None:
        """Commands that wait for their unit."""
        name = kind.name.lower()
        source = getattr(dispatch, f"o_{name}")
        width = len(Value.cast(source.payload))
        fifo = Fifo(FifoConfig(width_bits=width, depth=self.config.queued_commands))
        m.submodules[f"{name}_queue"] = fifo
        connect(m, source, fifo.i)
        connect(m, fifo.o, sink)

    def _by_tag(self, m: Module, source, sinks: tuple) -> None:
        """Elements to the unit that their tag names."""
        for tag, sink in enumerate(sinks):
            payload = Value.cast(sink.payload)
            mine = source.payload.tag == tag
            m.d.comb += [payload.eq(source.payload.data[: len(payload)]), sink.valid.eq(source.valid & mine)]
            with m.If(mine):
                m.d.comb += source.ready.eq(sink.ready)
