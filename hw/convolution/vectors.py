# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the convolution core."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from hw.harness.job import Beats, Case, pack_fields
from hw.harness.memory import Memory

from .config import ADDRESS_BITS, COMMAND_COUNT_BITS, ConvolutionConfig
from .cycles import replay
from .dispatch import Kind
from .golden import run
from .loss_runs import loss_runs
from .operations import Conv, Depthwise, SumsOperation
from .program import Program, lowered, outputs_of
from .rtl import READ_PORTS
from .runs import Run, runs
from .traffic import Piece, addresses, pieces, requests, writes
from .training_runs import training_runs
from .walk import Walk
from .writer import Format
from .written import Written, WrittenSums, WrittenWords


def cases(config: ConvolutionConfig, *, seed: int, n_random: int) -> list[Case]:
    """Those of :mod:`.runs`, :mod:`.training_runs` and :mod:`.loss_runs`, with the cycle of every write."""
    made = [
        *runs(config, seed=seed, n_random=n_random),
        *training_runs(config, seed=seed),
        *loss_runs(config, seed=seed),
    ]
    return [timed_case(one, config) for one in made]


def timed_case(run_: Run, config: ConvolutionConfig, *, latency_cycles: int = 12) -> Case:
    """As :func:`case_of`, with the cycle of every write."""
    timing = replay(lowered(run_.operations, run_.maps, config), config, latency_cycles=latency_cycles)
    return replace(
        case_of(run_, config, latency_cycles=latency_cycles),
        expected_cycles={"o_write": timing.writes, "o_done": np.array([timing.done])},
        max_cycles=timing.done + 100,
    )


def case_of(
    run_: Run, config: ConvolutionConfig, *, latency_cycles: int = 12, jitter_cycles: int = 0
) -> Case:
    """A memory image in, every write in order: golden's numbers at the addresses of the lowering."""
    program = lowered(run_.operations, run_.maps, config)
    given = {name: torch.from_numpy(values) for name, values in run_.maps.items()}
    golden = {name: values.numpy() for name, values in run(run_.operations, given).items()}
    written = write_beats(program, golden, config)
    n_words = -(-len(program.memory) // config.bus_bytes)
    memory = np.zeros(n_words * config.bus_bytes, np.uint8)
    memory[: len(program.memory)] = program.memory
    words = memory.view("<u4").reshape(n_words, -1).astype(np.uint32)
    ports = {f"o_request_{port}": f"i_response_{port}" for port in READ_PORTS} | {"o_write": "i_written"}
    return Case(
        name=run_.name,
        inputs={
            "i_start": pack_fields(
                [
                    (np.array([program.base]), ADDRESS_BITS),
                    (np.array([program.n_commands]), COMMAND_COUNT_BITS),
                ]
            )
        },
        expected={
            "o_write": written,
            "o_done": np.zeros((1, 1), np.uint32),
            **{f"o_request_{port}": beats for port, beats in request_beats(program, config).items()},
        },
        max_cycles=_budget(program, config),
        memories={
            request: Memory(
                response=response,
                words=words,
                address_bits=config.bus_address_bits,
                latency_cycles=latency_cycles,
                jitter_cycles=jitter_cycles,
                writes=request == "o_write",
            )
            for request, response in ports.items()
        },
    )


def _words(written: WrittenWords, reader: int, image: np.ndarray) -> Iterator[Piece]:
    """Elements of all walks for one reader."""
    for walk in (walk for whose, walk in written.outputs if whose == reader):
        for number, address in enumerate(addresses(walk).tolist(), 1):
            content = image[address : address + walk.n_bytes].tobytes()
            yield address, content, number == walk.n_elements


def _budget(program: Program, config: ConvolutionConfig) -> int:
    """Cycles that are more than enough: no unit needs more than a few for a byte or a sum."""
    n_sums = sum(
        w.rectangle.n_tiles * w.rectangle.tile_beats * _passes(w.operation, config)
        for w in program.written
        if isinstance(w, Written)
    )
    return 2000 + 4 * len(program.memory) + 8 * n_sums + 200 * program.n_commands


def _passes(operation: SumsOperation, config: ConvolutionConfig) -> int:
    if isinstance(operation, Depthwise):
        return operation.layer.kernel**2
    if not isinstance(operation, Conv):
        return 2
    layer = operation.layer
    return 1 + layer.n_planes * layer.kernel**2 * -(-layer.n_in // (config.array.rows // 2))


def request_beats(program: Program, config: ConvolutionConfig) -> dict[str, Beats]:
    """Beats of each port's requests, in order."""
    kinds = {Kind.WEIGHTS: "weights", Kind.INPUT: "input", Kind.SIDE: "side"}
    walks: dict[str, list[Walk]] = {port: [] for port in READ_PORTS}
    walks["commands"] = [program.records]
    for kind, payload in program.commands:
        if kind in kinds:
            walks[kinds[kind]].append(payload[0])
    return {
        port: pack_fields(
            [
                (
                    np.concatenate(
                        [np.zeros(0, np.int64), *(requests(w, config.bus_bytes) for w in of_port)]
                    ),
                    config.bus_address_bits,
                )
            ]
        )
        for port, of_port in walks.items()
    }


def write_beats(program: Program, maps: Mapping[str, np.ndarray], config: ConvolutionConfig) -> Beats:
    """Beats of ``o_write``, in order, of the maps' values."""
    image = _after(program, maps)
    parts = (
        part for one in program.written for part in _parts(one, program, maps, image, config.array.columns)
    )
    address, content, strobes = zip(*writes(parts, config.bus_bytes), strict=True)
    data = np.frombuffer(b"".join(content), np.uint8).reshape(len(content), config.bus_bytes)
    bits = np.array([[strobe >> n & 1 for n in range(config.bus_bytes)] for strobe in strobes])
    return pack_fields([(np.array(address), config.bus_address_bits), (data, 8), (bits, 1)])


def _after(program: Program, maps: Mapping[str, np.ndarray]) -> np.ndarray:
    """Memory with all lists as they end: a kernel writes each number once."""
    image = program.memory.copy()
    for name, place in program.lists.items():
        place.write(image, maps[name])
    return image


def _parts(
    written: Written | WrittenSums | WrittenWords,
    program: Program,
    maps: Mapping[str, np.ndarray],
    image: np.ndarray,
    lanes: int,
) -> Iterator[tuple[int, Piece]]:
    """What the epilogue's beats of a job write: each reader's element in turn, and the mask's; or what a
    kernel writes, of the lists as they are in ``image``."""
    if isinstance(written, WrittenWords):
        made_of = {reader: _words(written, reader, image) for reader in (0, 1)}
        yield from ((reader, next(made_of[reader])) for reader in written.readers)
        return
    if isinstance(written, WrittenSums):
        halves = maps[written.name].astype("<i8").view("<i2").ravel()
        beats = np.pad(halves, (0, -len(halves) % lanes)).reshape(-1, lanes).astype(np.int64)
        for (piece,) in pieces(written.walk, beats, Format.HALVES):
            yield 0, piece
        return
    of = written.rectangle
    by_reader = []
    outputs = outputs_of(written.operation.epilogue)
    for _, name in outputs:
        place, values = program.places[name], maps[name]
        padded = np.zeros((*values.shape[:2], (of.first_tile + of.n_tiles) * lanes), np.int64)
        padded[..., : values.shape[2]] = values[..., : padded.shape[2]]
        cut = padded[of.y :: of.step, of.x :: of.step][: of.n_rows, : of.n_columns, of.first_tile * lanes :]
        elements = cut.reshape(of.n_rows, of.n_columns, of.n_tiles, lanes).transpose(2, 0, 1, 3)
        walk = place.walk(of)
        by_reader.append(pieces(walk, elements.reshape(-1, lanes), place.format, place.plane_bytes))
    for together in zip(*by_reader, strict=True):
        for (reader, _), made in zip(outputs, together, strict=True):
            for piece in made:
                yield reader, piece
