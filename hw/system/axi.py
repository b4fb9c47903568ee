# SPDX-License-Identifier: MIT
"""AXI4 and AXI4-Lite ports (Arm IHI 0022), seen from the master."""

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

ADDRESS_BITS = 64
OKAY, SLVERR = 0b00, 0b10
INCR = 0b01
CACHE = 0b0011
"""Normal memory, not cached, may be buffered."""


def _address(channel: str, bus_bits: int) -> dict[str, wiring.Member]:
    return {
        f"{channel}id": Out(1),
        f"{channel}addr": Out(ADDRESS_BITS),
        f"{channel}len": Out(8),
        f"{channel}size": Out(3, init=(bus_bits // 8).bit_length() - 1),
        f"{channel}burst": Out(2, init=INCR),
        f"{channel}cache": Out(4, init=CACHE),
        f"{channel}prot": Out(3),
        f"{channel}valid": Out(1),
        f"{channel}ready": In(1),
    }


def read_signature(bus_bits: int) -> wiring.Signature:
    """A read-only AXI4 master; one ID, so answers come in order."""
    return wiring.Signature(
        {
            **_address("ar", bus_bits),
            "rid": In(1),
            "rdata": In(bus_bits),
            "rresp": In(2),
            "rlast": In(1),
            "rvalid": In(1),
            "rready": Out(1),
        }
    )


def write_signature(bus_bits: int) -> wiring.Signature:
    """A write-only AXI4 master of whole words; one ID."""
    return wiring.Signature(
        {
            **_address("aw", bus_bits),
            "wdata": Out(bus_bits),
            "wstrb": Out(bus_bits // 8, init=(1 << bus_bits // 8) - 1),
            "wlast": Out(1),
            "wvalid": Out(1),
            "wready": In(1),
            "bid": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
        }
    )


def lite_signature(address_bits: int) -> wiring.Signature:
    """AXI4-Lite of 32 bits."""
    return wiring.Signature(
        {
            "awaddr": Out(address_bits),
            "awprot": Out(3),
            "awvalid": Out(1),
            "awready": In(1),
            "wdata": Out(32),
            "wstrb": Out(4),
            "wvalid": Out(1),
            "wready": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
            "araddr": Out(address_bits),
            "arprot": Out(3),
            "arvalid": Out(1),
            "arready": In(1),
            "rdata": In(32),
            "rresp": In(2),
            "rvalid": In(1),
            "rready": Out(1),
        }
    )


def flat_ports(
    prefix: str, signature: wiring.Signature, *, is_slave: bool = False
) -> dict[str, wiring.Member]:
    """Ports named as tools expect them: ``prefix_araddr`` and so on."""
    seen = signature.flip() if is_slave else signature
    return {f"{prefix}_{name}": member for name, member in seen.members.items()}


def join(m: Module, outside: wiring.Component, prefix: str, port: wiring.PureInterface) -> None:
    """Joins the flat ports of ``outside`` with the interface of a block inside."""
    for name, member in port.signature.members.items():
        pin, inner = getattr(outside, f"{prefix}_{name}"), getattr(port, name)
        m.d.comb += pin.eq(inner) if member.flow == wiring.Out else inner.eq(pin)
