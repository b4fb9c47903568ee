# SPDX-License-Identifier: MIT
"""Lists, importance, the selection of tokens and heads, and what leads from layer to layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hw.importance.config import ImportanceConfig
from hw.stream.config import RegroupConfig

from ..config import AttentionConfig
from .rows import Head, Selection
from .selection import Selector
from .streams import Beat, Fork, Regroup

Source = Literal["go on", "fill", "given"]
"""Where a list comes from."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What the cascade does in one layer."""

    tokens: Source
    heads_from: Source
    n_tokens: int
    """In the list that is filled or given."""
    n_model_heads: int
    heads: Sequence[Head]
    """Those present."""
    eviction: "Choice | None"
    """From a given list."""
    head_choice: "Choice | None"
    """None where heads have one row each."""
    token_choice: "Choice | None"
    """None where only sums over the heads are wanted."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A selection of tokens or heads."""

    selection: Selection
    kept: list[int]
    """Places in the list chosen from."""


class KeptList:
    """Mirrors :class:`hw.attention.lists.KeptList`."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.n, self.n_written, self.filled = 0, 0, 0
        self.filling = False
        self.active, self.left = False, 0
        """Numbers still to be read."""
        self.out: Beat | None = None

    def step(self, fill: int | None, kept: Beat | None, read: int | None) -> bool:
        """One cycle after ``out`` was taken. ``fill`` and ``kept`` only where they are taken; ``read``: so
        many numbers are to be read. Whether the read was taken."""
        flow, left = self.out is None, self.left
        ends = left <= self.lanes
        moves = self.active and flow
        ready = not self.active or (moves and ends)
        if not self.active and read is None:
            self._write(fill, kept)
            return False
        if flow:
            self.out = (min(left, self.lanes), ends) if self.active else None
        if moves:
            self.left -= self.lanes
        if ready:
            self.active, self.left = read is not None, read or 0
        self._write(fill, kept)
        return ready and read is not None

    def _write(self, fill: int | None, kept: Beat | None) -> None:
        if self.filling:
            self.filled += self.lanes
            self.filling = self.filled < self.n
        elif fill is not None:
            self.n, self.filled, self.filling = fill, 0, True
        elif kept is not None:
            self.n_written += kept[0]
            if kept[1]:
                self.n, self.n_written = self.n_written, 0


class Importance:
    """Mirrors :class:`hw.importance.rtl.Importance`."""

    def __init__(self, config: ImportanceConfig) -> None:
        self.lanes = config.lanes
        self.state = "IDLE"
        self.after_start = ""
        self.line, self.first_line, self.n_rows = 0, 0, 0
        self.n_held, self.remaining = 0, 0
        self.reading: list[Beat | None] = [None, None, None]
        """Registers from the memory to the regrouping."""
        self.regroup = Regroup(config.regroup)
        self.fork = Fork(2)
        self.kept: list[int] = []
        """Positions that the running or next KEEP takes."""
        self.n_kept = 0
        """Those of them taken."""
        self.hits: Beat | None = None
        self.eliminated: Beat | None = None
        self.packer = Regroup(RegroupConfig(element_bits=1, lanes_in=config.lanes, lanes_out=config.lanes))
        self.is_drained = True
        """No score is on its way out or to its new place."""

    @property
    def adds(self) -> bool:
        """``i.ready``."""
        return self.state == "ADD"

    def exhausted(self, beat: Beat) -> bool:
        """``i_kept.ready``: no position of the beat lies beyond the line."""
        if self.state != "KEEP":
            return False
        end = self.n_kept + beat[0]
        return end == self.n_kept or self.kept[end - 1] // self.lanes <= self.line

    @property
    def out(self) -> Beat | None:
        """On ``o``."""
        return self.regroup.offered(self.reading[2])

    def step(
        self, command: tuple[str, int, int] | None, beat: Beat | None, kept: Beat | None, out_taken: bool
    ) -> None:
        """One cycle: a command (operation, line, rows or elements) where it is taken; ``beat`` likewise."""
        state = self.state
        if self.is_drained and state in ("IDLE", "ADD"):
            if command is not None:
                self._take(*command)
            elif beat is not None:
                self._add(beat)
            return
        end = self.reading[2]
        end_taken = self.regroup.step(end, out_taken)
        flow = end is None or end_taken
        done = self._pack(state, kept)
        read: Beat | None = None
        if state == "IDLE":
            if command is not None:
                self._take(*command)
        elif state == "ADD":
            if beat is not None:
                self._add(beat)
        elif state == "START":
            self.state = self.after_start
        elif state == "READ":
            if flow:
                is_last = self.remaining <= self.lanes
                read = min(self.remaining, self.lanes), is_last
                self.line += 1
                self.remaining -= self.lanes
                if is_last:
                    self.state = "READ_OUT"
        elif state == "LOAD":
            self.remaining -= self.lanes
            if self.remaining <= 0:
                self.state = "IDLE"
        elif state == "READ_OUT":
            if end_taken and end is not None and end[1]:
                self.state = "IDLE"
        elif state == "KEEP_OUT" and done:
            self.state = "IDLE"
        if flow:
            self.reading = [read, self.reading[0], self.reading[1]]
        held = (*self.reading, self.hits, self.eliminated)
        self.is_drained = not any(held) and self.regroup.is_empty and self.packer.is_empty

    def _take(self, operation: str, line: int, n_rows: int) -> None:
        self.line, self.remaining = 0, self.n_held
        if operation == "CLEAR":
            self.n_held = 0
        elif operation == "ADD":
            self.line = self.first_line = line
            self.n_rows = n_rows
            self.state = "ADD"
        elif operation == "LOAD":
            self.n_held = self.remaining = n_rows
            self.state = "LOAD"
        else:
            self.after_start, self.state = operation, "START"

    def _add(self, beat: Beat) -> None:
        self.n_held = max(self.n_held, self.line * self.lanes + beat[0])
        self.line = self.first_line if beat[1] else self.line + 1
        if beat[1]:
            self.n_rows -= 1
            if self.n_rows == 0:
                self.state = "IDLE"

    def _pack(self, state: str, kept: Beat | None) -> bool:
        """Registers of the packing; whether the last score kept is written in this cycle."""
        if self.lanes == 1:
            done = self.eliminated is not None and self.eliminated[1]
        else:
            packed = self.packer.offered(self.eliminated)
            self.packer.step(self.eliminated, packed is not None)
            done = packed is not None and packed[1]
        self.eliminated, self.hits = self.hits, None
        if state == "KEEP" and kept is not None:
            ends = self.exhausted(kept)
            positions = self.kept[self.n_kept : self.n_kept + kept[0]]
            n_here = sum(position // self.lanes == self.line for position in positions)
            self.hits = n_here, ends and kept[1]
            if not ends:
                self.line += 1
            else:
                self.n_kept += kept[0]
                if kept[1]:
                    self.n_held, self.n_kept = self.n_kept, 0
                    self.state = "KEEP_OUT"
        return done


class _Side:
    """Tokens or heads: the list of them, and the importance of what stands in it."""

    def __init__(self, name: str, config: ImportanceConfig, lanes: int) -> None:
        self.command, self.fill, self.read = f"{name} command", f"{name} fill", f"{name} read"
        """Sinks, as the control names them."""
        self.given = f"GIVEN {name}"
        """The state in which its list comes from outside."""
        self.importance, self.list = Importance(config), KeptList(lanes)
        self.score_stamps: list[int] = []
        self.kept_stamps: list[int] = []


class Cascade:
    """Mirrors :class:`hw.attention.cascade.Cascade`."""

    def __init__(self, config: AttentionConfig, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.tokens = _Side("tokens", config.token_importance, config.lanes)
        self.heads = _Side("heads", config.head_importance, config.lanes)
        self.selector = Selector(config.selector)
        self.regroup = Regroup(config.head_regroup)
        self.kept_fork = Fork(3)
        self.state = "LAYER"
        self.done: set[str] = set()
        """Sinks of the state that have had their beat."""
        self.offers: set[str] = set()
        """Those that have not."""
        self.number = -1
        """Of the layer at hand."""
        self.head, self.of_tokens, self.evicting = 0, False, False
        self.n_given = 0
        """Of the list that is given at the moment, those taken."""
        self.has_ended: set[str] = set()
        """Of the selection at hand: ``kept``, all of it has left; ``list``, all of the list has come."""
        self.n_heads_out = 0
        self.out_head: Head | None = None
        """It waits until the next head's number is there."""
        self.summary_stamps: list[int] = []
        self.releasing = False
        """Lines of the layer that no row needs are still on their way."""
        self.summed = False
        """All sums of the layer have left in this cycle."""

    @property
    def layer(self) -> Layer:
        return self.layers[max(self.number, 0)]

    @property
    def waits(self) -> bool:
        """For lines that are on their way, before tokens are selected."""
        return self.releasing and self.of_tokens and self.state == "SELECT"

    @property
    def selecting(self) -> bool:
        return self.state in ("SELECT", "WAIT") and not self.waits

    @property
    def side(self) -> _Side:
        """The one selected from, now or next."""
        return self.tokens if self.of_tokens else self.heads

    @property
    def choice(self) -> Choice:
        """The selection at hand."""
        layer = self.layer
        chosen = (
            layer.eviction if self.evicting else layer.token_choice if self.of_tokens else layer.head_choice
        )
        assert chosen is not None
        return chosen

    @property
    def _heads_source(self) -> Beat | None:
        return None if self.selecting else self.heads.list.out

    @property
    def offered_head(self) -> Head | None:
        """On ``o_head``."""
        head = self.out_head
        if head is None or head.last or self.regroup.offered(self._heads_source) is not None:
            return head
        return None

    @property
    def token_list(self) -> Beat | None:
        """On ``o_list``."""
        return None if self.selecting else self.tokens.list.out

    def step(
        self, cycle: int, list_read: int | None, token_beat: Beat | None, head_beat: Beat | None
    ) -> bool:
        """One cycle after ``out_head`` and the list of tokens were taken; beats of probabilities and of
        magnitudes only where they are taken. Whether the loader's read of the list was taken."""
        side, waits = self.side, self.waits
        offers, taken = set[str]() if waits else self.offers, set[str]()
        kept_list = kept_importance = None
        score_taken = False
        if self.selecting:
            kept_list, kept_importance = self._kept(cycle)
            score_taken = self._select(offers, taken, cycle)
        for which, beat in ((self.tokens, token_beat), (self.heads, head_beat)):
            command = self._command(which, offers, taken)
            if which is side:
                self._importance(cycle, which, command, beat, kept_importance, score_taken)
            else:
                self._importance(cycle, which, command, beat, None, score_taken=False)
        self._heads_out()
        read_taken = self._lists(offers, taken, kept_list, list_read)
        if not waits:
            self._advance(cycle, offers, taken)
        return read_taken

    def _offers(self) -> set[str]:
        """Sinks that the state sends to and that have not had their beat."""
        state, at_hand = self.state, self.side
        names: set[str] = set()
        if state == "ANEW":
            for side, source in ((self.tokens, self.layer.tokens), (self.heads, self.layer.heads_from)):
                names |= {side.command} if source != "go on" else set()
                names |= {side.fill} if source == "fill" else set()
        elif state == "HEADS":
            names = {"heads read"}
        elif state == "ROWS":
            names = {"tokens command", "heads command"}
        elif state == "FORGET":
            names = {"heads command"}
        elif state == "READ":
            names = {at_hand.command}
        elif state == "SELECT":
            names = {at_hand.read, "row", at_hand.command}
        return names - self.done

    def _kept(self, cycle: int) -> tuple[Beat | None, Beat | None]:
        """What is selected: to the list where that takes it, to its importance, out of the core."""
        side, skid = self.side, self.selector.skid
        kept: Beat | None = skid.out
        if kept is None:
            return None, None
        done = self.kept_fork.done
        ready = [not side.list.filling, side.importance.exhausted(kept), True]
        if not done[2]:
            side.kept_stamps.append(cycle)
        to_list = kept if ready[0] and not done[0] else None
        to_importance = None if done[1] else kept
        if self.kept_fork.step(ready):
            skid.out = None
            if kept[1]:
                self.has_ended.add("kept")
        return to_list, to_importance

    def _select(self, offers: set[str], taken: set[str], cycle: int) -> bool:
        """The selection engine's cycle; whether it took a line of scores."""
        side = self.side
        request = self.choice.selection if "row" in offers else None
        line = side.list.out
        has_score = side.importance.out is not None and not side.importance.fork.done[0]
        row_taken, line_taken, score_taken = self.selector.step(cycle, request, line, has_score)
        if row_taken:
            taken.add("row")
        if line_taken and line is not None:
            side.list.out = None
            if line[1]:
                self.has_ended.add("list")
        return score_taken

    def _command(self, side: _Side, offers: set[str], taken: set[str]) -> tuple[str, int, int] | None:
        """The command that the side takes."""
        if side.command not in offers or side.importance.state != "IDLE":
            return None
        taken.add(side.command)
        after = {"ANEW": "CLEAR", "ROWS": "ADD", "FORGET": "CLEAR", "READ": "READ", "SELECT": "KEEP"}
        operation = after[self.state]
        if operation == "KEEP":
            side.importance.kept = self.choice.kept
        if self.state == "ANEW" and side is self.tokens and self.layer.tokens == "given":
            return "LOAD", 0, self.layer.n_tokens
        n_rows = 1 if self.layer.heads[0].is_one else self.tokens.list.n
        return operation, 0 if side is self.tokens else self.head, n_rows

    def _importance(
        self,
        cycle: int,
        side: _Side,
        command: tuple[str, int, int] | None,
        beat: Beat | None,
        kept: Beat | None,
        score_taken: bool,
    ) -> None:
        importance = side.importance
        out_taken = False
        if not importance.is_drained and importance.out is not None:
            if not importance.fork.done[1]:
                side.score_stamps.append(cycle)
            out_taken = importance.fork.step([score_taken, True])
        importance.step(command, beat, kept, out_taken)

    def _heads_out(self) -> None:
        """The list of heads, one by one."""
        source = self._heads_source
        flow = self.out_head is None
        number = self.regroup.offered(source)
        if self.regroup.step(source, number is not None and flow):
            self.heads.list.out = None
        if flow and number is not None and number[0]:
            self.out_head = self.layer.heads[self.n_heads_out]
            self.n_heads_out += 1

    def _lists(self, offers: set[str], taken: set[str], kept: Beat | None, list_read: int | None) -> bool:
        """Whether the loader's read was taken."""
        layer = self.layer
        read_taken = False
        for side, n in ((self.tokens, layer.n_tokens), (self.heads, layer.n_model_heads)):
            fill = None
            if side.fill in offers and not side.list.filling:
                taken.add(side.fill)
                fill = n
            read = side.list.n if side.read in offers else None
            if side is self.tokens and not self.selecting:
                read = list_read
            into = kept if side is self.side else None
            if self.state == side.given:
                into = self._given(side.list.lanes)
            was_read = side.list.step(fill, into, read)
            if was_read and side.read in offers:
                taken.add(side.read)
            elif was_read:
                read_taken = True
        return read_taken

    def _given(self, lanes: int) -> Beat:
        """The next beat of a given list."""
        n = self.layer.n_tokens if self.state == "GIVEN tokens" else len(self.layer.heads)
        count = min(lanes, n - self.n_given)
        self.n_given += count
        return count, self.n_given == n

    def _advance(self, cycle: int, offers: set[str], taken: set[str]) -> None:
        """The control's next state, and what it sends."""
        before = self.state
        self._next(cycle, offers, taken)
        if taken or self.state != before:
            self.offers = self._offers()

    def _next(self, cycle: int, offers: set[str], taken: set[str]) -> None:
        match self.state:
            case "LAYER":
                if self.number + 1 < len(self.layers):
                    self.number += 1
                    self.head, self.of_tokens, self.n_heads_out = 0, False, 0
                    goes_on = self.layer.tokens == self.layer.heads_from == "go on"
                    self.state = "TABLE" if goes_on else "ANEW"
            case "GIVEN tokens":
                self.of_tokens = self.evicting = True
                if self.n_given == self.layer.n_tokens:
                    self.n_given, self.state = 0, "READ"
            case "GIVEN heads":
                if self.n_given == len(self.layer.heads):
                    self.n_given, self.state = 0, "TABLE"
            case "TABLE":
                self.head += 1
                if self.head == self.layer.n_model_heads:
                    self.head, self.state = 0, "HEADS"
            case "SUMS":
                if self.summed:
                    self.state = "SUMMARY"
            case "WAIT":
                if self.has_ended == {"kept", "list"}:
                    self.has_ended.clear()
                    if self.evicting:
                        self.of_tokens = self.evicting = False
                        self.state = self._after_tokens
                    else:
                        self.state = "SUMMARY" if self.of_tokens else "READ"
                        self.of_tokens = True
            case "SUMMARY":
                self.summary_stamps.append(cycle)
                self.state = "LAYER"
            case _:
                if offers == taken:
                    self.done.clear()
                    self._sent()
                else:
                    self.done |= taken

    def _sent(self) -> None:
        """Every sink of the state has had its beat."""
        if self.state == "ROWS":
            self.head += 1
            if self.head == self.heads.list.n:
                self.state = "FORGET" if self.layer.head_choice is None else "READ"
        elif self.state == "ANEW":
            self.state = "GIVEN tokens" if self.layer.tokens == "given" else self._after_tokens
        elif self.state == "FORGET":
            self.of_tokens, self.state = True, "READ"
        elif self.state == "HEADS" and self.layer.token_choice is None:
            self.state = "SUMS"
        else:
            self.state = {"HEADS": "ROWS", "READ": "SELECT", "SELECT": "WAIT"}[self.state]

    @property
    def _after_tokens(self) -> str:
        """The state once the list of tokens is there."""
        return "GIVEN heads" if self.layer.heads_from == "given" else "TABLE"
