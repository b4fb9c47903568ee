# SPDX-License-Identifier: MIT
"""What software does for the system: memory image and register writes for passes, outputs back from memory.

Needs no torch and no simulator; with the addresses that a board has, the same bytes and writes run a chip.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hw.attention.config import AttentionConfig
from hw.attention.program import Pass, programs
from hw.system.config import ALIGNMENT_BYTES, COUNT_BITS, SystemFormat

SUMMARY, ROWS, SUMS = "o_summary", "o", "o_sums"


@dataclass(frozen=True, kw_only=True)
class Region:
    """A piece of memory."""

    address: int
    """Of its first byte."""
    n_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """Passes, ready to run."""

    base: int
    """Byte address of the memory."""
    memory: np.ndarray
    """uint8[n_bytes]: descriptors, planes, and room for outputs."""
    regions: Mapping[str, Region]
    """``descriptors``, ``dram0`` and so on, and the core's output ports."""
    writes: Sequence[tuple[int, int]]
    """Register writes (address, value), all but the start."""

    def beats(
        self, memory: np.ndarray, n_beats: Mapping[str, int], layout: SystemFormat
    ) -> dict[str, np.ndarray]:
        """Output beats by port, from memory after a run: uint32[n_beats, words of the stride].

        ``n_beats`` is what the registers ``OUT_*_BEATS`` say.
        """
        found = {}
        for port, stride in layout.strides_bytes.items():
            start = self.regions[port].address - self.base
            raw = np.ascontiguousarray(memory[start : start + n_beats[port] * stride])
            found[port] = raw.view("<u4").reshape(n_beats[port], stride // 4)
        return found


def image_of(
    passes: Sequence[Pass],
    config: AttentionConfig,
    layout: SystemFormat,
    *,
    base: int = 0,
    room: Mapping[str, int] | None = None,
) -> Image:
    """Descriptors, planes by channel, then outputs, each from a multiple of 4,096 bytes on.

    Parameters
    ----------
    base : byte address of all of it, a multiple of 4,096
    room : beats that an output's region holds, where other than the most that there can be

    Raises ValueError where the base is not aligned, or as :func:`hw.attention.program.programs`.
    """
    if base % ALIGNMENT_BYTES:
        raise ValueError(f"base must be a multiple of {ALIGNMENT_BYTES}, not {base:#x}")
    program = programs(passes, config)
    jobs = _jobs(passes, config, program.inputs, layout)
    atoms = program.atoms.astype("<u4")
    contents = {"descriptors": jobs}
    for c in range(layout.n_channels):
        contents[f"dram{c}"] = np.ascontiguousarray(atoms[c :: layout.n_channels]).view(np.uint8).reshape(-1)
    most = _most_beats(passes, config, layout) | dict(room or {})
    for port, stride in layout.strides_bytes.items():
        contents[port] = np.zeros(most[port] * stride, np.uint8)
    regions, parts, address = {}, [], base
    for name, content in contents.items():
        regions[name] = Region(address=address, n_bytes=len(content))
        padding = -len(content) % ALIGNMENT_BYTES
        parts += [content, np.zeros(padding, np.uint8)]
        address += len(content) + padding
    n_layers = sum(len(one.layers) for one in passes)
    return Image(
        base=base,
        memory=np.concatenate(parts),
        regions=regions,
        writes=_writes(regions, n_layers, layout),
    )


def _writes(regions: Mapping[str, Region], n_layers: int, layout: SystemFormat) -> list[tuple[int, int]]:
    values = {"N_LAYERS": n_layers, "DESCRIPTOR_BYTES": regions["descriptors"].n_bytes}
    bases = {"DESCRIPTOR": "descriptors"} | {f"DRAM{c}": f"dram{c}" for c in range(layout.n_channels)}
    for port, name in layout.output_names.items():
        bases[f"OUT_{name}"] = port
        values[f"OUT_{name}_BYTES"] = regions[port].n_bytes
    for name, region in bases.items():
        address = regions[region].address
        values |= {f"{name}_BASE_LO": address & 0xFFFF_FFFF, f"{name}_BASE_HI": address >> 32}
    return [(layout.addresses[name], value) for name, value in values.items()]


def _jobs(
    passes: Sequence[Pass], config: AttentionConfig, inputs: Mapping[str, np.ndarray], layout: SystemFormat
) -> np.ndarray:
    """uint8[n_bytes]: for each layer a header, then its beats of each input, each in whole bus words."""
    next_beat = dict.fromkeys(layout.inputs, 0)
    parts = []
    for one in passes:
        for number in range(len(one.layers)):
            counts = _counts(one, number, config)
            header = np.array([counts[name] for name in layout.inputs[1:]], dtype=f"<u{COUNT_BITS // 8}")
            parts.append(_padded(header.view(np.uint8)[None], layout))
            for name in layout.inputs:
                first = next_beat[name]
                next_beat[name] = last = first + counts[name]
                beats = np.ascontiguousarray(inputs[name][first:last], dtype="<u4")
                parts.append(_padded(beats.view(np.uint8), layout))
    return np.concatenate([part.reshape(-1) for part in parts])


def _padded(records: np.ndarray, layout: SystemFormat) -> np.ndarray:
    """uint8[n, bytes], each in whole bus words."""
    n_bytes = records.shape[1]
    return np.pad(records, ((0, 0), (0, layout.padded_bytes(n_bytes) - n_bytes)))


def _counts(one: Pass, number: int, config: AttentionConfig) -> dict[str, int]:
    """Beats of each input that a layer takes."""
    n_given = len(one.given.tokens) if one.given is not None and number == 0 else 0
    return {
        "i_layer": 1,
        "i_token_importance": -(-n_given // config.token_importance.lanes),
        "i_tokens": -(-n_given // config.lanes),
        "i_heads": -(-len(one.heads.get(number, ())) // config.lanes),
        "i_head": len(one.layers[number].heads),
    }


def _most_beats(passes: Sequence[Pass], config: AttentionConfig, layout: SystemFormat) -> dict[str, int]:
    """Of each output, where nothing is pruned: lists, with their scores, once a selection."""
    most = dict.fromkeys(layout.strides_bytes, 0)
    for one in passes:
        for number, layer in enumerate(one.layers):
            n_tokens, n_heads = one.n_positions, len(layer.heads)
            n_selections = 1 + (one.given is not None and number == 0)
            for port in most:
                n_listed = n_heads if "head" in port else n_selections * n_tokens
                if port != SUMS:
                    most[port] += -(-n_listed // config.lanes) + n_selections
            most[ROWS] += n_heads * n_tokens
            most[SUMMARY] += 1
            if layer.rows == "sum":
                most[SUMS] += -(-n_tokens // config.confidence.lanes)
    return most
