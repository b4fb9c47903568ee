# SPDX-License-Identifier: MIT
"""Local value selection at the pace of the rows: engines that take turns."""

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import wiring

from hw.select.rtl import LocalValueSelect

from .config import AttentionConfig


class ValueSelect(wiring.Component):
    """``config.n_value_engines`` local value selections: each row to the next one, results in order.

    An engine cannot load a row while it selects from the row before; while one selects, the next one loads.

    Members
    -------
    i_row, i, o : as :class:`hw.select.rtl.LocalValueSelect` has them, with semantics ``probability``
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        self.engines = [LocalValueSelect(config.values) for _ in range(config.n_value_engines)]
        members = self.engines[0].signature.members
        super().__init__({name: members[name] for name in ("i_row", "i", "o")})

    def elaborate(self, platform) -> Module:
        m = Module()
        for place, engine in enumerate(self.engines):
            m.submodules[f"engine{place}"] = engine
        self._deal(m, self.i_row, [engine.i_row for engine in self.engines], Value.cast(1), "row")
        self._deal(m, self.i, [engine.i for engine in self.engines], self.i.payload.last, "line")
        turn = self._turn(m, self.o.valid & self.o.ready & self.o.payload.last, "output")
        for place, engine in enumerate(self.engines):
            with m.If(turn == place):
                m.d.comb += [
                    self.o.valid.eq(engine.o.valid),
                    Value.cast(self.o.payload).eq(Value.cast(engine.o.payload)),
                    engine.o.ready.eq(self.o.ready),
                ]
        return m

    def _deal(self, m: Module, source, sinks: list, ends: Value, name: str) -> None:
        """Beats of one row to one engine, those of the next row to the next."""
        turn = self._turn(m, source.valid & source.ready & ends, name)
        for place, sink in enumerate(sinks):
            m.d.comb += Value.cast(sink.payload).eq(Value.cast(source.payload))
            with m.If(turn == place):
                m.d.comb += [sink.valid.eq(source.valid), source.ready.eq(sink.ready)]

    def _turn(self, m: Module, ends: Value, name: str) -> Signal:
        n_engines = len(self.engines)
        turn = Signal(range(max(n_engines, 2)), name=f"{name}_turn")
        with m.If(ends):
            m.d.sync += turn.eq(Mux(turn == n_engines - 1, 0, turn + 1))
        return turn
