# SPDX-License-Identifier: MIT
"""Wiring between streams: one to one across payload shapes, and one to several."""

from amaranth import Cat, Module, Signal, Value
from amaranth.lib import stream

__all__ = ["connect", "fork", "only_if"]


def connect(m: Module, source, sink) -> None:
    """Joins two streams whose payloads have the same bits, whatever their shapes.

    ValueError where the widths differ.
    """
    payload = Value.cast(source.payload)
    if len(payload) != len(Value.cast(sink.payload)):
        raise ValueError(
            f"payloads must have one width, not {len(payload)} and {len(Value.cast(sink.payload))}"
        )
    m.d.comb += [
        Value.cast(sink.payload).eq(payload),
        sink.valid.eq(source.valid),
        source.ready.eq(sink.ready),
    ]


def fork(m: Module, source, *sinks, name: str) -> None:
    """Offers each beat of ``source`` to every sink, once, each as soon as that sink is ready.

    Handshake only: the payloads are wired by the caller. ``source.ready`` depends on the sinks' ``ready`` in
    the same cycle.
    """
    done = Signal(len(sinks), name=f"{name}_done")
    """Sinks that have this beat already."""
    settled = Signal(len(sinks), name=f"{name}_settled")
    m.d.comb += [settled.eq(done | Cat(sink.ready for sink in sinks)), source.ready.eq(settled.all())]
    for place, sink in enumerate(sinks):
        m.d.comb += sink.valid.eq(source.valid & ~done[place])
    with m.If(source.valid):
        m.d.sync += done.eq(settled & ~settled.all().replicate(len(sinks)))


def only_if(m: Module, wanted: Value, sink, name: str):
    """A sink for :func:`fork` that hands on to ``sink`` while ``wanted``, and else takes beats to no effect.

    Handshake only.
    """
    handshake = stream.Signature(1).create(path=(f"{name}_if",))
    m.d.comb += [sink.valid.eq(handshake.valid & wanted), handshake.ready.eq(sink.ready | ~wanted)]
    return handshake
