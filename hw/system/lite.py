# SPDX-License-Identifier: MIT
"""The register file behind AXI4-Lite."""

from collections.abc import Sequence

from amaranth import Module, Mux, Signal, Value, ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .axi import OKAY, SLVERR, lite_signature
from .register_map import ADDRESS_BITS, Register


class RegisterFile(wiring.Component):
    """One access at a time each way; address and data of a write may come in any order.

    Members
    -------
    axi : AXI4-Lite slave
    busy : locked registers refuse writes
    ``name`` of a register in small letters: its value; in for "ro", out for "rw" and "w1c"; for "w1s" the
        bits written, for one cycle. Of a "w1c" also ``name_set``: bits to set, which win over a write. None
        of an "ro" with a reset value, which is a constant.
    """

    def __init__(self, table: Sequence[Register]) -> None:
        self.table = table
        members = {"axi": In(lite_signature(ADDRESS_BITS)), "busy": In(1)}
        for register in table:
            name = register.name.lower()
            if register.access == "ro" and register.reset:
                continue
            members[name] = In(32) if register.access == "ro" else Out(32, init=register.reset)
            if register.access == "w1c":
                members[f"{name}_set"] = In(32)
        super().__init__(members)

    def wide(self, name: str) -> Value:
        """The value of two registers, ``name`` and the halves' endings."""
        return getattr(self, f"{name}_lo") | getattr(self, f"{name}_hi") << 32

    def elaborate(self, platform) -> Module:
        m = Module()
        self._write(m)
        self._read(m)
        return m

    def _write(self, m: Module) -> None:
        axi = self.axi
        has_address, has_data, go, ok = Signal(), Signal(), Signal(), Signal()
        address = Signal(ADDRESS_BITS, reset_less=True)
        data, strobe = Signal(32, reset_less=True), Signal(4, reset_less=True)
        m.d.comb += [
            axi.awready.eq(~has_address),
            axi.wready.eq(~has_data),
            go.eq(has_address & has_data & (~axi.bvalid | axi.bready)),
        ]
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += [has_address.eq(1), address.eq(axi.awaddr)]
        with m.If(axi.wvalid & axi.wready):
            m.d.sync += [has_data.eq(1), data.eq(axi.wdata), strobe.eq(axi.wstrb)]
        with m.If(axi.bready):
            m.d.sync += axi.bvalid.eq(0)
        with m.If(go):
            m.d.sync += [axi.bvalid.eq(1), axi.bresp.eq(Mux(ok, OKAY, SLVERR))]
            m.d.sync += [has_address.eq(0), has_data.eq(0)]

        mask = Signal(32)
        m.d.comb += [mask.word_select(byte, 8).eq(strobe[byte].replicate(8)) for byte in range(4)]
        for register in self.table:
            if register.access == "w1c":
                name = register.name.lower()
                value, events = getattr(self, name), getattr(self, f"{name}_set")
                m.d.sync += value.eq(value | events)
        with m.Switch(address[2:]):
            for register in self.table:
                with m.Case(register.offset >> 2):
                    self._write_one(m, register, go, ok, data & mask & register.mask, mask & register.mask)

    def _write_one(self, m: Module, register: Register, go, ok, data, mask) -> None:
        if register.access == "ro":
            return  # answers SLVERR
        name = register.name.lower()
        value = getattr(self, name)
        free = ~self.busy if register.access == "rw" and register.locked else 1
        m.d.comb += ok.eq(free)
        with m.If(go & free):
            if register.access == "w1s":
                m.d.comb += value.eq(data)
            elif register.access == "w1c":
                m.d.sync += value.eq((value & ~data) | getattr(self, f"{name}_set"))
            else:
                m.d.sync += value.eq((value & ~mask) | data)

    def _read(self, m: Module) -> None:
        axi = self.axi
        m.d.comb += axi.arready.eq(~axi.rvalid)
        with m.If(axi.rready):
            m.d.sync += axi.rvalid.eq(0)
        with m.If(axi.arvalid & axi.arready):
            m.d.sync += axi.rvalid.eq(1)
            with m.Switch(axi.araddr[2:]):
                for register in self.table:
                    with m.Case(register.offset >> 2):
                        m.d.sync += [axi.rdata.eq(self._read_value(register)), axi.rresp.eq(OKAY)]
                with m.Default():
                    m.d.sync += [axi.rdata.eq(0), axi.rresp.eq(SLVERR)]

    def _read_value(self, register: Register) -> ValueLike:
        if register.access == "w1s":
            return 0
        if register.access == "ro" and register.reset:
            return register.reset
        return getattr(self, register.name.lower())
