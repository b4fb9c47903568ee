# SPDX-License-Identifier: MIT
"""Passes of the core through the emitted Verilog of the whole system: registers, memory, interrupt.

Everything that it leaves in memory and in registers is held to the golden model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hw.attention.program import Pass, unpack_summary
from hw.system.config import SystemConfig, SystemFormat
from hw.system.cosim import run_in_verilator
from hw.system.registers import system_format
from hw.system.runs import Log, Run, Step
from sim.driver.system import Image, image_of

BASE = 0x2_4680_0000
"""Above 4 GiB, so that high halves count."""
START, SOFT_RESET = 1, 2
"""Bits of CONTROL."""
BUSY, DONE, ERROR = 1, 2, 4
"""Bits of STATUS."""
COUNTERS = {
    "IDEAL_BYTES_LO": "ideal_bytes",
    "MOVED_BYTES_LO": "moved_bytes",
    "ROWS": "n_rows",
    "RECOMPUTED_ROWS": "n_recomputed",
}
"""Registers that add up what the beats of ``o_summary`` say."""


@dataclass(frozen=True, kw_only=True)
class SystemRun:
    """One run, from the write that starts it to its interrupt."""

    cycles: int
    """Register CYCLES."""
    bytes_by_master: Mapping[str, int]
    """Descriptors and planes read, outputs written; planes in atoms."""
    mismatches: tuple[str, ...]


class Software:
    """What software does with a system, and how what it reads is judged."""

    def __init__(self, layout: SystemFormat) -> None:
        self.layout = layout
        self.beat_registers = {port: f"OUT_{name}_BEATS" for port, name in layout.output_names.items()}
        self.results = [
            "STATUS", "ERROR", "ERROR_JOB", "IRQ_STATUS", "CYCLES_LO", "LAYERS_DONE", *COUNTERS,
            *self.beat_registers.values(),
        ]  # fmt: skip
        """Registers that are read after a run."""

    def write(self, **values: int) -> list[Step]:
        return [("write", self.layout.addresses[name], value) for name, value in values.items()]

    def read(self, *names: str) -> list[Step]:
        return [("read", self.layout.addresses[name]) for name in names]

    def setup(self, image: Image) -> list[Step]:
        """All registers but the last."""
        return [("write", address, value) for address, value in image.writes]

    def job(self, image: Image) -> list[Step]:
        """Set up, run, wait for the interrupt, read what there is, clear the interrupt."""
        start = self.write(IRQ_ENABLE=3, CONTROL=START)
        results = self.read(*self.results)
        return [*self.setup(image), *start, ("irq",), *results, *self.write(IRQ_STATUS=3)]

    def last_results(self, log: Log) -> dict[str, int]:
        """By register, of the last job; zeros where it did not end."""
        n = len(self.results)
        return dict(zip(self.results, [0] * n if log.problems else log.reads[-n:], strict=True))

    def mismatches(
        self, image: Image, log: Log, expected: Mapping[str, np.ndarray], *, base: int = BASE
    ) -> tuple[str, ...]:
        """Of the last job against golden's beats by port: status, every beat in memory, every counter.

        base : byte address of the run's memory
        """
        if log.problems:
            return tuple(log.problems)
        got = self.last_results(log)
        if (got["STATUS"], got["IRQ_STATUS"]) != (DONE, 1):
            return (f"status {got}",)
        wrong: list[str] = []
        counts = {port: got[name] for port, name in self.beat_registers.items()}
        beats = image.beats(log.memory[image.base - base :], counts, self.layout)
        for port, want in expected.items():
            wrong += _unlike(port, beats[port], want, self.layout)
        layers = unpack_summary(expected["o_summary"])
        totals = {register: sum(layer[name] for layer in layers) for register, name in COUNTERS.items()}
        totals["LAYERS_DONE"] = len(layers)
        wrong += [f"{name} {got[name]}, golden {n}" for name, n in totals.items() if got[name] != n]
        return tuple(wrong)


def _unlike(port: str, beats: np.ndarray, want: np.ndarray, layout: SystemFormat) -> list[str]:
    """A line where a region does not hold the golden beats, with zeros above up to a whole bus word."""
    n_words, n_all = want.shape[1], layout.padded_bytes(4 * want.shape[1]) // 4
    padded = np.pad(want, ((0, 0), (0, n_all - n_words)))
    if len(beats) != len(want):
        return [f"{port}: {len(beats)} beats, golden {len(want)}"]
    differing = np.flatnonzero((beats[:, :n_all] != padded).any(1))
    return [f"{port}: {len(differing)} beats unlike golden, first {differing[0]}"] if len(differing) else []


def run_on_system(
    passes: Sequence[Pass],
    expected: Mapping[str, np.ndarray],
    config: SystemConfig,
    *,
    p_stall: float = 0.2,
    seed: int = 1,
    max_cycles: int,
) -> SystemRun:
    """All passes as one run, with memory and software of cocotbext-axi.

    Registers and memories of the design begin with random bits.

    Parameters
    ----------
    expected : golden's beats by output port, as in :func:`hw.attention.vectors.case`
    p_stall : chance that a channel pauses in a cycle, and that a word of memory comes up to 20 cycles late
    max_cycles : after so many the run is given up, with a mismatch

    Raises RuntimeError where the simulator stops, as it does where a rule of AXI is broken.
    """
    layout = system_format(config)
    software, image = Software(layout), image_of(passes, config.core, layout, base=BASE)
    run = Run(
        name="passes",
        steps=software.job(image),
        base=BASE,
        memory=image.memory,
        latency_cycles=20,
        p_stall=p_stall,
        seed=seed,
        max_cycles=max_cycles,
    )
    (log,) = run_in_verilator(config, [run], state_seed=seed, models="cocotbext-axi")
    got = software.last_results(log)
    n_output_bytes = sum(
        got[name] * layout.padded_bytes(4 * expected[port].shape[1])
        for port, name in software.beat_registers.items()
    )
    return SystemRun(
        cycles=got["CYCLES_LO"],
        bytes_by_master={
            "descriptors": image.regions["descriptors"].n_bytes,
            "planes": got["MOVED_BYTES_LO"],
            "outputs": n_output_bytes,
        },
        mismatches=software.mismatches(image, log, expected),
    )
