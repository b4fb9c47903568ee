# SPDX-License-Identifier: MIT
"""Golden model of the attention core: against the blocks' models row by row, known cases, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.attention.config import attention_config
from hw.attention.golden import AttentionGolden, largest_of_rows
from hw.attention.layers import GivenTokens, HeadInput, LayerInput
from hw.confidence.golden import Check, ScoreRow, confident_softmax
from hw.config import preset
from hw.importance.config import MAX_LAYERS
from hw.importance.golden import Importance
from hw.pv.golden import weighted_sum
from hw.qk.golden import scores
from hw.select.golden import local_values
from hw.softmax.config import row_scale
from hw.topk.golden import top_k

CORE = attention_config(preset("tiny"))
RADIX = replace(CORE, selector=replace(CORE.selector, engine="radix"))


def random_layer(
    rng, n_tokens, n_heads, head_dim, *, progressive, rows="all", group_size=1, **changes
) -> LayerInput:
    """Scores spread over a few units of log e, so that some rows are confident and others are not."""
    heads: list[HeadInput] = []
    for number in range(n_heads):
        q = rng.integers(-2048, 2048, (1 if rows == "one" else n_tokens, head_dim))
        shared = heads[-1] if number % group_size else None
        k = shared.k.numpy() if shared else rng.integers(-512, 512, (n_tokens, head_dim))
        step = 2.0 ** rng.uniform(-1, 3) / (1 + np.abs(q @ k.T).max())
        v = shared.v.numpy() if shared else rng.integers(-128, 128, (n_tokens, head_dim))
        heads.append(
            HeadInput(
                q=torch.from_numpy(q),
                k=torch.from_numpy(k),
                v=torch.from_numpy(v),
                msb_scale=row_scale(16 * step if progressive else step),
                lsb_scale=row_scale(step),
            )
        )
    made = LayerInput(
        heads=heads,
        progressive=progressive,
        threshold=int(rng.integers(200, 1600)),
        n_values=int(rng.integers(1, n_tokens + 2)),
        out_shift=int(rng.integers(8, 16)),
        n_tokens_next=int(rng.integers(1, n_tokens + 2)),
        n_heads_next=int(rng.integers(1, n_heads + 2)),
        token_shift=int(rng.integers(0, 4)),
        head_shift=int(rng.integers(0, 4)),
        rows=rows,
        groups=None if group_size == 1 else [number // group_size for number in range(n_heads)],
    )
    return replace(made, **changes)


class RowByRow:
    """The same pass by the blocks' golden models, one row at a time, as the rows leave the core."""

    def __init__(self, config, n_tokens: int, n_heads: int) -> None:
        self.config = config
        self.tokens, self.heads = torch.arange(n_tokens), torch.arange(n_heads)
        self.token_scores = Importance(config.token_importance)
        self.head_scores = Importance(config.head_importance)

    def begin(self, given_tokens: GivenTokens, shift: int, protect_last: bool) -> list[int]:
        """A list from outside: sorted by score, the earlier first, as many as stay; returns its elements."""
        scores = [(x << shift) >> given_tokens.halve for x in given_tokens.importance.tolist()]
        elements = [min(x >> shift, 2**24 - 2) for x in scores]
        last = len(scores) - 1
        by_rank = sorted(
            range(len(scores)), key=lambda i: (not (protect_last and i == last), -elements[i], i)
        )
        kept = torch.tensor(sorted(by_rank[: given_tokens.n_keep]))
        self.tokens = given_tokens.tokens[kept]
        self.token_scores.add(torch.zeros(len(kept), dtype=torch.int64))
        self.token_scores.scores += torch.tensor(scores)[kept]
        return elements

    def layer(self, layer: LayerInput, heads: list[int] | None = None) -> dict:
        got: dict = {"order": [], "outputs": {}, "probabilities": {}, "kept_values": {}, "magnitudes": {}}
        if heads is not None:
            self.heads = torch.tensor(heads)
            self.head_scores.clear()
        rows = [
            (place, row, score_row)
            for place, number in enumerate(self.heads.tolist())
            for row, score_row in enumerate(self.rows(layer, number, place))
        ]
        checked = confident_softmax([score_row for _, _, score_row in rows], self.config.confidence)
        for entry, probability, _ in checked:
            if entry.dropped:
                continue
            place, row, _ = rows[entry.row]
            v = layer.heads[self.heads[place]].v[self.tokens][: len(probability)]
            self.token_scores.add(probability)
            kept, indices = local_values(probability, min(layer.n_values, len(v)), self.config.values)
            o, magnitude = weighted_sum(kept, v[indices], layer.out_shift, self.config.pv)
            if layer.rows != "one":
                self.head_scores.add(magnitude[None], start=place)
            at = place, row
            got["order"].append((*at, entry.used_lsb))
            got["outputs"][at], got["probabilities"][at] = o.tolist(), probability.tolist()
            got["kept_values"][at], got["magnitudes"][at] = indices.tolist(), int(magnitude)
        self.advance(layer, got)
        return got

    def rows(self, layer: LayerInput, number: int, place: int) -> list[ScoreRow]:
        head = layer.heads[number]
        k = head.k[self.tokens]
        msb, lsb = (k >> 4, k & 15) if layer.progressive else (k, torch.zeros_like(k))
        queries = head.q if layer.rows == "one" else head.q[self.tokens]
        made = []
        for i, q in enumerate(queries):
            seen = i + 1 if layer.rows == "causal" else len(k)
            made.append(
                ScoreRow(
                    msb=scores(q, msb[:seen], self.config.qk),
                    lsb=scores(q, lsb[:seen], self.config.qk),
                    msb_scale=head.msb_scale,
                    lsb_scale=head.lsb_scale,
                    check=Check(
                        threshold=layer.threshold,
                        progressive=layer.progressive,
                        flush=i + 1 == len(queries) and self.ends(layer, place),
                    ),
                )
            )
        return made

    def ends(self, layer: LayerInput, place: int) -> bool:
        """Whether the head's last row holds back the next head's."""
        if layer.rows != "one" or place + 1 == len(self.heads):
            return True
        groups = layer.groups or range(len(layer.heads))
        return (
            self.config.confidence.window > 2 and groups[self.heads[place]] != groups[self.heads[place + 1]]
        )

    def advance(self, layer: LayerInput, got: dict) -> None:
        got["heads"], got["head_importance"] = self.heads.tolist(), []
        if layer.rows == "one":
            self.head_scores.clear()
            got["next_heads"] = self.heads.tolist()
        for name, shift, n_next in (
            ("token", layer.token_shift, layer.n_tokens_next),
            ("head", layer.head_shift, layer.n_heads_next),
        ):
            if name == "head" and layer.rows == "one":
                continue
            accumulator: Importance = getattr(self, f"{name}_scores")
            present = getattr(self, f"{name}s")
            elements = accumulator.elements(shift)
            got[f"{name}s"], got[f"{name}_importance"] = present.tolist(), elements.tolist()
            if name == "token" and layer.protect_last:
                elements[-1] = 2**24 - 1
            _, kept = top_k(elements, min(n_next, len(present)), self.config.selector.selector)
            accumulator.keep(kept)
            setattr(self, f"{name}s", present[kept])
            got[f"next_{name}s"] = present[kept].tolist()


def assert_same(result, expected: dict) -> None:
    assert result.order == expected["order"]
    for head, row, used_lsb in expected["order"]:
        assert result.outputs[head, row].tolist() == expected["outputs"][head, row]
        seen = expected["probabilities"][head, row]
        unseen = [0] * (len(result.tokens) - len(seen))
        assert result.probabilities[head, row].tolist() == seen + unseen
        assert result.kept_values[head, row].nonzero()[:, 0].tolist() == expected["kept_values"][head, row]
        assert int(result.magnitudes[head, row]) == expected["magnitudes"][head, row]
        assert bool(result.used_lsb[head, row]) == used_lsb
    for name in ("tokens", "heads", "next_tokens", "next_heads", "token_importance", "head_importance"):
        assert getattr(result, name).tolist() == expected[name], name


@given(
    seed=st.integers(0, 2**32 - 1),
    n_tokens=st.integers(1, 14),
    n_heads=st.integers(1, 4),
    head_dim=st.sampled_from([32, 64]),
    progressive=st.booleans(),
    window=st.sampled_from([1, 2, 8]),
    engine=st.sampled_from(["quickselect", "radix"]),
    rows=st.sampled_from(["all", "causal"]),
)
@settings(max_examples=40, deadline=None)
def test_equals_the_blocks_joined_row_by_row(
    seed, n_tokens, n_heads, head_dim, progressive, window, engine, rows
):
    rng = np.random.default_rng(seed)
    confidence = replace(CORE.confidence, window=window)
    golden = AttentionGolden(
        replace(RADIX if engine == "radix" else CORE, confidence=confidence), n_tokens, n_heads
    )
    reference = RowByRow(replace(CORE, confidence=confidence), n_tokens, n_heads)
    for _ in range(3):
        layer = random_layer(rng, n_tokens, n_heads, head_dim, progressive=progressive, rows=rows)
        assert_same(golden.layer(layer), reference.layer(layer))


@given(
    seed=st.integers(0, 2**32 - 1),
    n_positions=st.integers(1, 12),
    n_heads=st.integers(1, 7),
    group_size=st.integers(1, 3),
    progressive=st.booleans(),
    protect_last=st.booleans(),
    rows=st.sampled_from(["one", "one", "causal"]),
    window=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=40, deadline=None)
def test_given_lists_equal_the_blocks_joined_row_by_row(
    seed, n_positions, n_heads, group_size, progressive, protect_last, rows, window
):
    """Tokens with gaps, heads given in the second layer, ties and scores at their limit."""
    rng = np.random.default_rng(seed)
    config = replace(CORE, confidence=replace(CORE.confidence, window=window))
    positions = np.flatnonzero(rng.random(n_positions) < 0.8)
    positions = positions if len(positions) else np.array([n_positions - 1])
    highest = int(rng.choice([3, 5000, 2**24 - 2]))
    brought = GivenTokens(
        tokens=torch.from_numpy(positions),
        importance=torch.from_numpy(rng.integers(0, highest + 1, len(positions))),
        n_keep=int(rng.integers(1, len(positions) + 2)),
        halve=bool(rng.random() < 0.5),
    )
    shift = int(rng.integers(0, 4))
    golden = AttentionGolden.given(
        config, brought.tokens, brought.importance, brought.n_keep, n_positions, n_heads, shift,
        brought.halve, protect_last,
    )  # fmt: skip
    reference = RowByRow(config, n_positions, n_heads)
    assert golden.eviction is not None
    assert golden.eviction.importance.tolist() == reference.begin(brought, shift, protect_last)
    assert golden.eviction.kept.tolist() == reference.tokens.tolist()
    for number in range(3):
        layer = random_layer(
            rng, n_positions, n_heads, 32, progressive=progressive, rows=rows, group_size=group_size,
            protect_last=protect_last, token_shift=shift,
        )  # fmt: skip
        heads = sorted(rng.choice(n_heads, rng.integers(1, n_heads + 1), replace=False).tolist())
        chosen = heads if number == 1 else None
        assert_same(golden.layer(layer, chosen), reference.layer(layer, chosen))
        assert not protect_last or golden.tokens[-1] == reference.tokens[-1] == golden.eviction.kept[-1]


def test_some_rows_use_their_lsbs_and_leave_later():
    layer = random_layer(np.random.default_rng(1), 30, 2, 32, progressive=True, threshold=600)
    result = AttentionGolden(CORE, 30, 2).layer(layer)
    n_lsb = int(result.used_lsb.sum())
    assert 5 < n_lsb < 55
    assert [(head, row) for head, row, _ in result.order] != [(h, r) for h in range(2) for r in range(30)]
    assert sorted(result.order[:30])[0].head == sorted(result.order[:30])[-1].head == 0


@pytest.mark.parametrize("progressive", [False, True])
def test_extreme_operands_equal_the_blocks(progressive):
    """Largest magnitudes of every operand: |Q.K| = 2^33 at both planes, outputs that saturate."""
    low = -(1 << (15 if progressive else 11))
    corners = torch.tensor([[-2048, low], [2047, -low - 1], [-2048, -low - 1], [2047, low]])
    q, k = corners.T[..., None].expand(2, 4, 64)
    head = HeadInput(
        q=q.clone(), k=k.clone(), v=q.clone(), msb_scale=row_scale(1e-9), lsb_scale=row_scale(1e-10)
    )
    layer = LayerInput(
        heads=[head], progressive=progressive, threshold=4095, n_values=3, out_shift=8,
        n_tokens_next=2, n_heads_next=1,
    )  # fmt: skip
    result = AttentionGolden(CORE, 4, 1).layer(layer)
    assert_same(result, RowByRow(CORE, 4, 1).layer(layer))
    assert {-2048, 2047} <= set(result.outputs.flatten().tolist())


def equal_layer(n_tokens: int, n_heads: int, **changes) -> LayerInput:
    """Queries of zero: all keys get the same probability; V counts up over tokens."""
    zeros = torch.zeros(n_tokens, 32, dtype=torch.int64)
    values = torch.arange(n_tokens)[:, None].expand(-1, 32).clone()
    head = HeadInput(q=zeros, k=zeros, v=values, msb_scale=row_scale(1.0), lsb_scale=row_scale(1.0))
    made = LayerInput(
        heads=[head] * n_heads, progressive=False, threshold=0, n_values=n_tokens, out_shift=8,
        n_tokens_next=n_tokens, n_heads_next=n_heads,
    )  # fmt: skip
    return replace(made, **changes)


def test_equal_keys_share_the_row_and_ties_go_to_the_earlier():
    """Four equal keys have 1,024 of 4,096 each; two heads and four rows give a token 8 x 1,024."""
    result = AttentionGolden(CORE, 4, 2).layer(equal_layer(4, 2, n_values=2, n_tokens_next=3, n_heads_next=1))
    assert result.probabilities.unique().tolist() == [1024]
    assert result.kept_values.tolist() == [[[True, True, False, False]] * 4] * 2
    assert result.outputs.unique().tolist() == [1024 * 1 // 256]
    assert result.magnitudes.unique().tolist() == [32 * 4]
    assert result.token_importance.tolist() == [8 * 1024] * 4
    assert result.head_importance.tolist() == [4 * 32 * 4] * 2
    assert result.next_tokens.tolist() == [0, 1, 2] and result.next_heads.tolist() == [0]


def test_importance_goes_on_over_layers_by_position_in_the_kept_list():
    golden = AttentionGolden(CORE, 5, 2)
    first = golden.layer(random_layer(np.random.default_rng(3), 5, 2, 32, progressive=False,
                                      n_tokens_next=3, n_heads_next=1, token_shift=0))  # fmt: skip
    second = golden.layer(equal_layer(5, 2))
    assert second.tokens.tolist() == first.next_tokens.tolist() and len(second.tokens) == 3
    kept = torch.isin(first.tokens, first.next_tokens)
    assert second.token_importance.tolist() == (first.token_importance[kept] + 3 * 1365).tolist()


def test_pruned_tokens_and_heads_are_ignored():
    """Anything at all in their places, even out of range, changes nothing."""
    rng = np.random.default_rng(5)
    before = random_layer(rng, 6, 3, 32, progressive=True, n_tokens_next=4, n_heads_next=2)
    layer = random_layer(rng, 6, 3, 32, progressive=True)
    plain, spoilt = AttentionGolden(CORE, 6, 3), AttentionGolden(CORE, 6, 3)
    plain.layer(before)
    spoilt.layer(before)
    gone = torch.ones(6, dtype=torch.bool)
    gone[plain.tokens] = False

    def spoil(number: int, head: HeadInput) -> HeadInput:
        rows = gone if number in plain.heads else torch.ones_like(gone)
        filled = {name: getattr(head, name).masked_fill(rows[:, None], 1 << 40) for name in ("q", "k", "v")}
        return replace(head, **filled)

    other = replace(layer, heads=[spoil(number, head) for number, head in enumerate(layer.heads)])
    a, b = plain.layer(layer), spoilt.layer(other)
    assert len(a.tokens) == 4 and len(a.heads) == 2
    assert torch.equal(a.outputs, b.outputs) and a.order == b.order


@given(
    rows=st.integers(1, 30).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 6), min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    k=st.integers(1, 40),
)
@settings(max_examples=100, deadline=None)
def test_values_are_kept_as_the_local_selection_keeps_them(rows, k):
    probabilities = torch.tensor(rows)
    for row, kept in zip(probabilities, largest_of_rows(probabilities, k), strict=True):
        _, indices = local_values(row, min(k, len(row)), CORE.values)
        assert torch.equal(kept.nonzero()[:, 0], indices)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"threshold": 4096}, r"threshold must be in 0\.\.4095, not 4096"),
        ({"n_values": 0}, "n_values must be at least 1, not 0"),
        ({"n_tokens_next": 0}, "n_tokens_next must be at least 1, not 0"),
        ({"n_heads_next": 0}, "n_heads_next must be at least 1, not 0"),
        ({"out_shift": 7}, r"out_shift must be in 8\.\.15, not 7"),
        ({"token_shift": 99}, r"shift must be in 0\.\.\d+, not 99"),
        ({"heads": []}, "heads must be 1, not 0"),
    ],
)
def test_rejects_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        AttentionGolden(CORE, 4, 1).layer(equal_layer(4, 1, **changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokens": [0, 2, 2]}, r"tokens must be ascending numbers in 0\.\.4, at least one, not \[0, 2, 2\]"),
        ({"tokens": [0, 2, 5]}, r"tokens must be ascending numbers in 0\.\.4"),
        ({"importance": [1, 2]}, "importance must have 3 numbers, not 2"),
        ({"importance": [1, 2, 2**24 - 1]}, r"importance must be in 0\.\.16777214, not 16777215"),
        ({"importance": [1, -2, 3]}, r"elements must be in 0\.\.\d+, not -2\.\.3"),
        ({"n_keep": 0}, "n_keep must be at least 1, not 0"),
    ],
)
def test_rejects_given_lists_out_of_range(changes, message):
    lists = {"tokens": [0, 2, 4], "importance": [1, 2, 3], "n_keep": 3, **changes}
    with pytest.raises(ValueError, match=message):
        AttentionGolden.given(
            CORE, torch.tensor(lists["tokens"]), torch.tensor(lists["importance"]), lists["n_keep"], 5, 1
        )


def test_rejects_groups_and_first_layers_that_contradict():
    layer = random_layer(np.random.default_rng(1), 4, 4, 32, progressive=False, rows="one", group_size=2)
    for groups in ([0, 0, 1], [1, 1, 2, 2], [0, 1, 0, 1], [0, 0, 2, 2]):
        with pytest.raises(ValueError, match=r"groups must be 4 numbers, ascending from 0 without gaps"):
            AttentionGolden(CORE, 4, 4).layer(replace(layer, groups=groups))
    with pytest.raises(ValueError, match="k of heads 1 and 2 must be equal: they share it"):
        AttentionGolden(CORE, 4, 4).layer(replace(layer, groups=[0, 0, 0, 1]))
    with pytest.raises(ValueError, match="rows must be one of all, causal, one, sum, not 'two'"):
        AttentionGolden(CORE, 4, 4).layer(replace(layer, rows="two"))
    zeros = torch.zeros(4, dtype=torch.int64)
    core = AttentionGolden.given(CORE, torch.arange(4), zeros, 4, 4, 4, token_shift=2)
    with pytest.raises(ValueError, match=r"those of the given list, \(2, False\), not \(0, False\)"):
        core.layer(replace(layer, token_shift=0))
    with pytest.raises(ValueError, match=r"heads must be ascending numbers in 0\.\.3"):
        AttentionGolden(CORE, 4, 4).layer(layer, heads=[2, 1])


@pytest.mark.parametrize(
    "field, value, progressive, message",
    [
        ("q", 2048, False, r"q must be in -2048\.\.2047, not 0\.\.2048"),
        ("k", -2049, False, r"k must be in -2048\.\.2047"),
        ("k", 32768, True, r"k must be in -32768\.\.32767"),
        ("v", 2048, False, r"v must be in -2048\.\.2047"),
    ],
)
def test_rejects_elements_out_of_range(field, value, progressive, message):
    layer = equal_layer(4, 1, progressive=progressive)
    spoilt = getattr(layer.heads[0], field).clone()
    spoilt[1, 1] = value
    with pytest.raises(ValueError, match=message):
        AttentionGolden(CORE, 4, 1).layer(replace(layer, heads=[replace(layer.heads[0], **{field: spoilt})]))


def test_rejects_wrong_shapes_and_too_many():
    layer = equal_layer(4, 1)
    with pytest.raises(TypeError, match=r"v of head 0 must be int64\[4, 32\], not torch.float64\[4, 32\]"):
        AttentionGolden(CORE, 4, 1).layer(
            replace(layer, heads=[replace(layer.heads[0], v=layer.heads[0].v.double())])
        )
    with pytest.raises(ValueError, match=r"n_tokens must be in 1\.\.1024, not 1025"):
        AttentionGolden(CORE, 1025, 1)
    with pytest.raises(ValueError, match=r"n_heads must be in 1\.\.64, not 65"):
        AttentionGolden(CORE, 4, 65)
    golden = AttentionGolden(CORE, 1, 1)
    for _ in range(MAX_LAYERS):
        golden.layer(equal_layer(1, 1))
    with pytest.raises(ValueError, match=f"at most {MAX_LAYERS} layers"):
        golden.layer(equal_layer(1, 1))
