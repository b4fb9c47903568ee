# SPDX-License-Identifier: MIT
"""Payloads of the fetcher's streams."""

from amaranth import signed, unsigned
from amaranth.lib import data

from .config import ATOM_BITS, LSB_BITS, ONCHIP_BITS, AddressConfig, CrossbarConfig, LinesConfig


def value_layout(lanes: int) -> data.StructLayout:
    """Values of up to 16 bits (12-bit MSB plane and LSB plane together), ``last`` passed on."""
    return data.StructLayout(
        {"data": data.ArrayLayout(signed(ONCHIP_BITS + LSB_BITS), lanes), "last": 1},
    )


def msb_layout(lanes: int) -> data.StructLayout:
    """A beat of the MSB plane."""
    return data.StructLayout({"data": data.ArrayLayout(signed(ONCHIP_BITS), lanes), "last": 1})


def lsb_layout(lanes: int) -> data.StructLayout:
    """A beat of the LSB plane."""
    return data.StructLayout({"data": data.ArrayLayout(unsigned(LSB_BITS), lanes), "last": 1})


def request_layout(config: AddressConfig) -> data.StructLayout:
    """:class:`hw.fetch.layout.Request` as bits; ``dim`` is log2(head_dim / 32)."""
    return data.StructLayout(
        {
            "base_atom": config.atom_address_bits,
            "bits": 4,
            "is_unsigned": 1,
            "dim": 2,
            "record_heads": 3,
            "head": 2,
            "n_heads": 3,
        }
    )


def kept_layout(config: AddressConfig) -> data.StructLayout:
    """Token indices as a packed beat (:func:`hw.stream.rtl.packed_layout`)."""
    return data.StructLayout(
        {
            "data": data.ArrayLayout(unsigned(config.token_bits), config.kept_lanes),
            "count": config.kept_lanes.bit_length(),
            "last": 1,
        }
    )


def counters_layout(config: AddressConfig) -> data.StructLayout:
    """Byte counters of a request."""
    return data.StructLayout({"ideal_bytes": config.counter_bits, "moved_bytes": config.counter_bits})


def cut_layout() -> data.StructLayout:
    """How the rows of one record lie in its atoms; the same beside each atom of the record."""
    return data.StructLayout(
        {
            "bits": 4,
            "is_unsigned": 1,
            "skip": 2,  # units of 64 bits before the first row in the first atom
            "dim": 2,
            "n_heads": 3,
            "last": 1,  # the last record of its request
        }
    )


def atom_address_layout(address_bits: int, note_bits: int) -> data.StructLayout:
    """An atom wanted by a port, and what is to come back beside it."""
    return data.StructLayout({"address": address_bits, "note": note_bits})


def atom_layout(note_bits: int) -> data.StructLayout:
    """An atom delivered to a port."""
    return data.StructLayout({"data": ATOM_BITS, "note": note_bits})


def memory_request_layout(config: CrossbarConfig) -> data.StructLayout:
    """Request to one channel: the atom's address in that channel, and a tag to come back."""
    return data.StructLayout({"address": config.channel_address_bits, "tag": config.tag_bits})


def memory_response_layout(config: CrossbarConfig) -> data.StructLayout:
    """Answer of one channel."""
    return data.StructLayout({"data": ATOM_BITS, "tag": config.tag_bits})


def row_layout(elements_per_beat: int) -> data.StructLayout:
    """A part of a row, as a converter gives it."""
    return data.StructLayout(
        {
            "data": data.ArrayLayout(unsigned(ONCHIP_BITS), elements_per_beat),
            "row_end": 1,  # the row's last part
            "dim": 2,
            "head": 2,  # which of the request's heads
            "last": 1,  # a row of the request's last record
        }
    )


def line_layout(config: LinesConfig) -> data.StructLayout:
    """A packed beat of whole rows of one head, with that head's number within the request."""
    return data.StructLayout(
        {
            "data": data.ArrayLayout(unsigned(ONCHIP_BITS), config.line_elements),
            "count": config.line_elements.bit_length(),
            "last": 1,
            "head": 2,
        }
    )
