# SPDX-License-Identifier: MIT
"""The fetcher, and the names of its parts."""

from amaranth import Module, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .addresses import AddressGenerator
from .config import FetchConfig
from .converter import Converter
from .crossbar import Crossbar
from .lines import Lines
from .planes import PlaneJoin, PlaneSplit
from .shapes import (
    counters_layout,
    kept_layout,
    line_layout,
    memory_request_layout,
    memory_response_layout,
    request_layout,
)

__all__ = ["AddressGenerator", "Converter", "Crossbar", "Fetch", "Lines", "PlaneJoin", "PlaneSplit"]


class Fetch(wiring.Component):
    """Reads the rows of the kept tokens of a head, or of the heads of a record, from a plane in DRAM.

    ::

        i_request, i_kept -> AddressGenerator -> Crossbar -> Converter (one a port) -> Lines -> o
                                   |              |    ^
                              o_counters    o_request{c} i_response{c}

    Requests follow one another without a gap, and their atoms overlap in the queues. Lines leave in order.

    Throughput with a memory that answers every cycle, in atoms per cycle: the least of n_channels, of what
    the converters take, n_ports e b / 256, and of one line a cycle, which is the same M b / 256; and in
    kept tokens per cycle: kept_lanes, and n_ports / n_atoms for the address cursors. The exact cycle of each
    line is replayed by :func:`hw.fetch.cycles.replay`.

    Members
    -------
    i_request, i_kept, o_counters : see :class:`AddressGenerator`
    o_request{c}, i_response{c} : see :class:`Crossbar`
    o : see :class:`Lines`
    """

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_request": In(stream.Signature(request_layout(config.addresses))),
                "i_kept": In(stream.Signature(kept_layout(config.addresses))),
                "o_counters": Out(stream.Signature(counters_layout(config.addresses))),
                **{
                    f"o_request{c}": Out(stream.Signature(memory_request_layout(config.crossbar)))
                    for c in range(config.n_channels)
                },
                **{
                    f"i_response{c}": In(stream.Signature(memory_response_layout(config.crossbar)))
                    for c in range(config.n_channels)
                },
                "o": Out(stream.Signature(line_layout(config.lines))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.addresses = addresses = AddressGenerator(cfg.addresses)
        m.submodules.crossbar = crossbar = Crossbar(cfg.crossbar)
        m.submodules.lines = lines = Lines(cfg.lines)

        def join(source, sink) -> None:
            m.d.comb += [
                sink.valid.eq(source.valid),
                Value.cast(sink.payload).eq(Value.cast(source.payload)),
                source.ready.eq(sink.ready),
            ]

        join(self.i_request, addresses.i_request)
        join(self.i_kept, addresses.i_kept)
        join(addresses.o_counters, self.o_counters)
        for port in range(cfg.n_ports):
            m.submodules[f"converter{port}"] = converter = Converter(cfg.converter)
            join(getattr(addresses, f"o{port}"), getattr(crossbar, f"i{port}"))
            join(getattr(crossbar, f"o{port}"), converter.i)
            join(converter.o, getattr(lines, f"i{port}"))
        for c in range(cfg.n_channels):
            join(getattr(crossbar, f"o_request{c}"), getattr(self, f"o_request{c}"))
            join(getattr(self, f"i_response{c}"), getattr(crossbar, f"i_response{c}"))
        join(lines.o, self.o)
        return m
