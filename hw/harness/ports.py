# SPDX-License-Identifier: MIT
"""The stream ports of a component, read from its signature."""

from amaranth import Shape
from amaranth.lib import stream, wiring

from .job import StreamPort


def stream_ports(component: wiring.Component) -> tuple[StreamPort, ...]:
    """Streams of ``component`` in the order of its signature; TypeError if another kind of port is there."""
    ports = []
    for name, member in component.signature.members.items():
        if not (member.is_signature and isinstance(member.signature, stream.Signature)):
            raise TypeError(f"port {name} of {type(component).__name__} is not a stream")
        bits = Shape.cast(member.signature.members["payload"].shape).width
        ports.append(StreamPort(name, bits, member.flow == wiring.In))
    return tuple(ports)
