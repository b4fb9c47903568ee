# SPDX-License-Identifier: MIT
"""The blocks by name: how to configure, build and exercise each."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amaranth.lib import wiring

from hw.attention.config import attention_config
from hw.augment.config import augment_config
from hw.confidence.config import ConfidenceConfig, ConfidentSoftmaxConfig
from hw.config import ChipConfig
from hw.convolution.config import convolution_config
from hw.depthwise.config import depthwise_config
from hw.epilogue.config import epilogue_config
from hw.fetch.config import FetchConfig, JoinConfig, SplitConfig, fetch_config
from hw.fir.config import fir_config
from hw.harness.job import Case
from hw.importance.config import ImportanceConfig, head_config
from hw.loss.config import loss_config
from hw.pv.config import pv_config
from hw.qk.config import SCORE_BITS, qk_config
from hw.select.config import LocalValueConfig, RadixConfig, Semantics
from hw.softmax.config import SoftmaxConfig
from hw.stream.config import FifoConfig, PackerConfig, RegroupConfig, SkidConfig, WidthChangeConfig
from hw.system.config import system_config
from hw.system.convolution.config import convolution_system_config
from hw.systolic.config import systolic_config
from hw.training.config import training_config
from hw.transpose.config import transpose_config
from hw.zero_eliminator.config import ZeroEliminatorConfig


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block that has RTL, a golden model, a cycle model and vectors."""

    name: str
    """Also the name of the Verilog top module."""
    summary: str
    package: str
    component_name: str
    config: Callable[[ChipConfig], Any]
    """The block's configuration on a chip."""
    has_streams: bool = True
    """All ports are streams; otherwise the block has AXI ports and registers."""

    def component(self, config: Any) -> wiring.Component:
        """A fresh instance of the hardware."""
        return getattr(importlib.import_module(f"{self.package}.rtl"), self.component_name)(config)

    def header(self, config: Any) -> str | None:
        """The C header of a block that has registers."""
        if self.has_streams:
            return None
        return importlib.import_module(f"{self.package}.registers").c_header(config)

    def cases(self, config: Any, *, seed: int, n_random: int) -> list[Case]:
        """Stimulus and golden results: corners first, then ``n_random`` random requests a case.

        ValueError where ports are no streams.
        """
        if not self.has_streams:
            raise ValueError(f"block must have streams to be given vectors, not {self.name!r}")
        return importlib.import_module(f"{self.package}.vectors").cases(config, seed=seed, n_random=n_random)


def _fetch(chip: ChipConfig) -> FetchConfig:
    return fetch_config(
        n_multipliers=chip.n_multipliers,
        n_channels=chip.n_dram_channels,
        kept_lanes=chip.topk.lanes,
        n_max=chip.topk.n_max,
    )


def _fifo(chip: ChipConfig) -> FifoConfig:
    return FifoConfig(width_bits=chip.topk.lanes * chip.topk.element_bits, depth=chip.topk.max_lines + 1)


def _local_values(chip: ChipConfig, semantics: Semantics) -> LocalValueConfig:
    return LocalValueConfig(
        semantics=semantics, lanes=chip.topk.lanes, in_lanes=chip.softmax_lanes, n_max=chip.topk.n_max
    )


BLOCKS: dict[str, Block] = {
    block.name: block
    for block in (
        Block(
            name="topk",
            summary="the k largest of n elements by quick-select, in their original order",
            package="hw.topk",
            component_name="TopK",
            config=lambda chip: chip.topk,
        ),
        Block(
            name="radix_select",
            summary="as topk, but by counting digits: no chance, fewer cycles",
            package="hw.select",
            component_name="RadixSelect",
            config=lambda chip: RadixConfig(
                lanes=chip.topk.lanes, n_max=chip.topk.n_max, element_bits=chip.topk.element_bits
            ),
        ),
        Block(
            name="local_value_select",
            summary="the largest probabilities of a row, with their indices",
            package="hw.select",
            component_name="LocalValueSelect",
            config=lambda chip: _local_values(chip, "probability"),
        ),
        Block(
            name="local_value_select_by_score",
            summary="the probabilities of the keys with the largest scores",
            package="hw.select",
            component_name="LocalValueSelect",
            config=lambda chip: _local_values(chip, "score"),
        ),
        Block(
            name="token_importance",
            summary="cumulative probabilities of the kept tokens",
            package="hw.importance",
            component_name="Importance",
            config=lambda chip: ImportanceConfig(
                lanes=chip.softmax_lanes,
                n_max=chip.topk.n_max,
                kept_lanes=chip.topk.lanes,
                element_bits=chip.topk.element_bits,
            ),
        ),
        Block(
            name="head_importance",
            summary="cumulative magnitude of the outputs of the kept heads",
            package="hw.importance",
            component_name="Importance",
            config=lambda chip: head_config(
                kept_lanes=chip.topk.lanes,
                magnitude_bits=pv_config(chip).magnitude_bits,
                element_bits=chip.topk.element_bits,
            ),
        ),
        Block(
            name="zero_eliminator",
            summary="packs the marked lanes of a beat to the front",
            package="hw.zero_eliminator",
            component_name="ZeroEliminator",
            config=lambda chip: ZeroEliminatorConfig(
                lanes=chip.topk.lanes, element_bits=chip.topk.element_bits
            ),
        ),
        Block(
            name="fifo",
            summary="queue with a registered output",
            package="hw.stream",
            component_name="Fifo",
            config=_fifo,
        ),
        Block(
            name="skid_buffer",
            summary="register slice that cuts every combinational path",
            package="hw.stream",
            component_name="SkidBuffer",
            config=lambda chip: SkidConfig(width_bits=chip.topk.lanes * chip.topk.element_bits),
        ),
        Block(
            name="width_change",
            summary="from chip.softmax_lanes to the top-k engine's lanes",
            package="hw.stream",
            component_name="WidthChange",
            config=lambda chip: WidthChangeConfig(
                element_bits=chip.topk.element_bits, lanes_in=chip.softmax_lanes, lanes_out=chip.topk.lanes
            ),
        ),
        Block(
            name="packer",
            summary="joins beats of any count into full ones",
            package="hw.stream",
            component_name="Packer",
            config=lambda chip: PackerConfig(element_bits=chip.topk.element_bits, lanes=chip.topk.lanes),
        ),
        Block(
            name="regroup",
            summary="rows of packed beats to full beats of another width",
            package="hw.stream",
            component_name="Regroup",
            config=lambda chip: RegroupConfig(
                element_bits=SCORE_BITS, lanes_in=qk_config(chip).lanes, lanes_out=chip.softmax_lanes
            ),
        ),
        Block(
            name="qk",
            summary="scores of a query with one line of keys a cycle",
            package="hw.qk",
            component_name="Qk",
            config=qk_config,
        ),
        Block(
            name="pv",
            summary="sum of the kept values, weighted with their probabilities",
            package="hw.pv",
            component_name="Pv",
            config=pv_config,
        ),
        Block(
            name="softmax",
            summary="softmax of one row of scores after another, in fixed point",
            package="hw.softmax",
            component_name="Softmax",
            config=lambda chip: SoftmaxConfig(lanes=chip.softmax_lanes),
        ),
        Block(
            name="confidence",
            summary="asks for the LSBs of rows whose maximum probability is low, and recomputes them",
            package="hw.confidence",
            component_name="Confidence",
            config=lambda chip: ConfidenceConfig(lanes=chip.softmax_lanes),
        ),
        Block(
            name="confident_softmax",
            summary="confidence check and softmax, joined",
            package="hw.confidence",
            component_name="ConfidentSoftmax",
            config=lambda chip: ConfidentSoftmaxConfig(lanes=chip.softmax_lanes),
        ),
        Block(
            name="plane_split",
            summary="values to an MSB and an LSB plane",
            package="hw.fetch",
            component_name="PlaneSplit",
            config=lambda chip: SplitConfig(lanes=chip.topk.lanes),
        ),
        Block(
            name="plane_join",
            summary="MSB and LSB plane to values",
            package="hw.fetch",
            component_name="PlaneJoin",
            config=lambda chip: JoinConfig(lanes=chip.topk.lanes),
        ),
        Block(
            name="fetch_addresses",
            summary="kept tokens to atom addresses, dealt over the ports",
            package="hw.fetch",
            component_name="AddressGenerator",
            config=lambda chip: _fetch(chip).addresses,
        ),
        Block(
            name="fetch_crossbar",
            summary="ports to memory channels and back, atoms in order again",
            package="hw.fetch",
            component_name="Crossbar",
            config=lambda chip: _fetch(chip).crossbar,
        ),
        Block(
            name="fetch_converter",
            summary="atoms to rows of 12-bit elements",
            package="hw.fetch",
            component_name="Converter",
            config=lambda chip: _fetch(chip).converter,
        ),
        Block(
            name="fetch_lines",
            summary="rows of all ports to lines of one head",
            package="hw.fetch",
            component_name="Lines",
            config=lambda chip: _fetch(chip).lines,
        ),
        Block(
            name="fetch",
            summary="kept tokens to lines of K or V, through DRAM",
            package="hw.fetch",
            component_name="Fetch",
            config=_fetch,
        ),
        Block(
            name="attention",
            summary="the attention core: whole sentences, layer after layer",
            package="hw.attention",
            component_name="Attention",
            config=attention_config,
        ),
        Block(
            name="augment",
            summary="DiffAugment of images, and its adjoint",
            package="hw.augment",
            component_name="Augment",
            config=augment_config,
        ),
        Block(
            name="systolic",
            summary="sums of convolutions, the weights staying in the array",
            package="hw.systolic",
            component_name="Systolic",
            config=systolic_config,
        ),
        Block(
            name="fir",
            summary="blur after a transposed convolution, and upsampling by two",
            package="hw.fir",
            component_name="Fir",
            config=fir_config,
        ),
        Block(
            name="depthwise",
            summary="sums of convolutions whose channels do not mix, a few multipliers each",
            package="hw.depthwise",
            component_name="Depthwise",
            config=depthwise_config,
        ),
        Block(
            name="epilogue",
            summary="sums to maps: scale, bias, noise or residual, activation",
            package="hw.epilogue",
            component_name="Epilogue",
            config=epilogue_config,
        ),
        Block(
            name="transpose",
            summary="pixels and channels of a map exchanged",
            package="hw.transpose",
            component_name="Transpose",
            config=transpose_config,
        ),
        Block(
            name="training",
            summary="group norm and its gradient from sums, and the update of masters",
            package="hw.training",
            component_name="Training",
            config=training_config,
        ),
        Block(
            name="loss",
            summary="gradient of label-smoothed cross entropy in a picture's scores",
            package="hw.loss",
            component_name="Loss",
            config=loss_config,
        ),
        Block(
            name="convolution",
            summary="the convolution core: a list of commands, maps in memory in and maps out",
            package="hw.convolution",
            component_name="Convolution",
            config=convolution_config,
        ),
    )
}

TOPS: dict[str, Block] = {
    "system": Block(
        name="system",
        summary="the attention core behind AXI: registers, memory masters, jobs",
        package="hw.system",
        component_name="System",
        config=system_config,
        has_streams=False,
    ),
    "convolution_system": Block(
        name="convolution_system",
        summary="the convolution core behind AXI: registers, memory masters, lists of commands",
        package="hw.system.convolution",
        component_name="ConvolutionSystem",
        config=convolution_system_config,
        has_streams=False,
    ),
}
"""What is emitted like a block, but has buses for ports: tested by software on its registers."""


def block(name: str, *, tops: bool = False) -> Block:
    """The block, with ``tops`` also the top, of that name; ValueError naming the known ones otherwise."""
    known = BLOCKS | TOPS if tops else BLOCKS
    if name not in known:
        raise ValueError(f"block must be one of {', '.join(known)}, not {name!r}")
    return known[name]
