# SPDX-License-Identifier: MIT
"""The course of a run: begin or refuse, end well or with an error, stop in order."""

from collections.abc import Sequence

from amaranth import Module, Signal, Value, ValueLike
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

DONE_EVENT, ERROR_EVENT = 0b01, 0b10
"""Bits of IRQ_STATUS."""


def error_layout() -> data.StructLayout:
    """Register ERROR; no error where ``code`` is 0."""
    return data.StructLayout({"code": 8, "detail": 8})


def first_of(m: Module, found: Sequence[tuple[ValueLike, int, ValueLike]], name: str) -> Signal:
    """Of (condition, code, detail) the first whose condition holds, of :func:`error_layout`."""
    first = Signal(error_layout(), name=name)
    for condition, code, detail in reversed(found):
        with m.If(condition):
            m.d.comb += [first.code.eq(code), first.detail.eq(detail)]
    return first


class Course(wiring.Component):
    """One run at a time. The first error, or a soft reset, ends it, and it is over once every master is idle.

    Members
    -------
    start, soft_reset : of register CONTROL; :meth:`join` connects them and other registers
    refusal : why a run cannot begin
    error : what goes wrong in this cycle of a run
    place : where it is, for register ERROR_*
    ended : everything that the run was to do is done
    idle : no transfer is under way on any bus
    begins, running : a run starts with the next cycle; one is under way
    busy, status, first_error, first_place : registers
    events : bits to set in IRQ_STATUS
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "start": In(1),
                "soft_reset": In(1),
                "refusal": In(error_layout()),
                "error": In(error_layout()),
                "place": In(32),
                "ended": In(1),
                "idle": In(1),
                "begins": Out(1),
                "running": Out(1),
                "busy": Out(1),
                "status": Out(32),
                "first_error": Out(error_layout()),
                "first_place": Out(32),
                "events": Out(2),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        done, failed = Signal(), Signal()
        m.d.comb += self.status.eq(self.busy | done << 1 | failed << 2)
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.soft_reset):
                    m.d.sync += [done.eq(0), failed.eq(0), self.first_error.eq(0)]
                with m.Elif(self.start):
                    m.d.sync += [done.eq(0), failed.eq(0), self.first_error.eq(0), self.first_place.eq(0)]
                    with m.If(self.refusal.code != 0):
                        m.d.sync += [failed.eq(1), self.first_error.eq(self.refusal)]
                        m.d.comb += self.events.eq(ERROR_EVENT)
                    with m.Else():
                        m.d.comb += self.begins.eq(1)
                        m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += [self.running.eq(1), self.busy.eq(1)]
                with m.If(self.soft_reset):
                    m.next = "STOP"
                with m.Elif(self.error.code != 0):
                    m.d.sync += [
                        failed.eq(1),
                        self.first_error.eq(self.error),
                        self.first_place.eq(self.place),
                    ]
                    m.next = "STOP"
                with m.Elif(self.ended):
                    m.d.sync += done.eq(1)
                    m.d.comb += self.events.eq(DONE_EVENT)
                    m.next = "IDLE"
            with m.State("STOP"):
                m.d.comb += self.busy.eq(1)
                with m.If(self.soft_reset):
                    m.d.sync += [failed.eq(0), self.first_error.eq(0)]
                with m.If(self.idle):
                    with m.If(failed & ~self.soft_reset):
                        m.d.comb += self.events.eq(ERROR_EVENT)
                    m.next = "IDLE"
        return m

    def join(self, m: Module, file: wiring.Component, place: Value, irq: Signal) -> None:
        """Connects what :func:`hw.system.register_map.run_registers` lists; drives ``place`` and ``irq``."""
        m.d.comb += [
            self.start.eq(file.control[0]),
            self.soft_reset.eq(file.control[1]),
            file.busy.eq(self.busy),
            file.status.eq(self.status),
            file.error.eq(Value.cast(self.first_error)),
            place.eq(self.first_place),
            file.irq_status_set.eq(self.events),
            irq.eq((file.irq_status & file.irq_enable).any()),
        ]
