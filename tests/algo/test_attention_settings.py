# SPDX-License-Identifier: MIT
"""Settings and schedules against values computed by hand."""

import pytest

from algo.attention.settings import (
    RELEASED,
    CascadeSettings,
    floor_count,
    keep_schedule,
    mean_keep,
    parse_bits,
)


def test_schedule_of_twelve_layers_by_hand():
    # ceil(0.15 * 12) = 2 free layers, then 10 from 0.75 to 0.25 (sum 2 * 0.5) in steps of 0.5 / 9.
    expected = [1, 1, *[0.75 - i * 0.5 / 9 for i in range(10)]]
    assert keep_schedule(12, 0.5, 0.15) == pytest.approx(expected)


def test_schedule_start_may_be_given():
    assert keep_schedule(6, 0.5, 0.15, start=0.9) == pytest.approx([1, 0.9, 0.7, 0.5, 0.3, 0.1])
    with pytest.raises(ValueError, match=r"not 0\.4"):
        keep_schedule(6, 0.5, 0.15, start=0.4)


def test_start_never_exceeds_one():
    assert keep_schedule(6, 0.8, 0.15) == pytest.approx([1, 1.0, 0.9, 0.8, 0.7, 0.6])


def test_token_counts_of_minilm_by_hand():
    # 20 tokens: ratios 1, .75, .625, .5, .375, .25 -> floor of 20, 15, 12.5, 10, 7.5, 5
    assert CascadeSettings(token_keep=0.5).token_counts(6, 20) == [20, 15, 12, 10, 7, 5]


def test_token_counts_after_two_full_layers_by_hand():
    # 1.9x over six layers: 6 / 1.9 - 2 = 1.158 for four layers, 0.4342 down to 0.1447 in equal steps
    settings = CascadeSettings(token_keep=mean_keep(1.9, 6, 0.3), token_free_fraction=0.3)
    assert settings.token_ratios(6) == pytest.approx([1, 1, 0.43421, 0.33772, 0.24123, 0.14474], abs=1e-5)
    assert settings.token_counts(6, 27) == [27, 27, 11, 9, 6, 3]


def test_relaxed_ratios_by_hand():
    settings = CascadeSettings(token_keep=0.5, head_keep=0.7)  # 1, .75, .625, .5, .375, .25
    half = settings.relaxed(0.5, 6)
    assert half.token_ratios(6) == pytest.approx([1, 0.875, 0.8125, 0.75, 0.6875, 0.625])
    assert settings.relaxed(0, 6).token_ratios(6) == [1] * 6
    assert settings.relaxed(1, 6).token_ratios(6) == pytest.approx(settings.token_ratios(6))
    assert half.heads_per_layer(6, 12) == settings.heads_per_layer(6, 12)


def test_head_counts_by_hand():
    # ceil(0.3 * 6) = 2 free layers; 12 heads at 1, .933, .867, .8 -> 12, 11.2, 10.4, 9.6
    assert CascadeSettings(head_keep=0.9).heads_per_layer(6, 12) == [12, 12, 12, 11, 10, 10]


@pytest.mark.parametrize("ratio", [1.0, 1.9, 3.0])
def test_mean_keep_reaches_the_overall_ratio(ratio):
    keep = keep_schedule(12, mean_keep(ratio, 12, 0.15), 0.15)
    assert 12 / sum(keep) == pytest.approx(ratio)


def test_mean_keep_rejects_what_the_free_layers_exceed():
    with pytest.raises(ValueError, match="for 12 layers, not 6"):
        mean_keep(6, 12, 0.15)


def test_floor_count_is_safe_for_decimal_products():
    assert [floor_count(0.9, 1024), floor_count(0.29, 100), floor_count(0.01, 5)] == [921, 29, 1]


def test_released_gpt2_small_counts():
    # Released trace gpt2-small/wikitext2, columns key_fetch_num and value_fetch_num from iteration 1 on.
    settings = RELEASED["gpt2-small-wikitext2"]
    assert settings.token_counts(12, 994) == [921, 716, *[204] * 4, *[102] * 6]
    assert settings.value_counts(12, 994) == [184, 143, *[40] * 4, *[20] * 6]


def test_released_gpt2_medium_counts():
    settings = RELEASED["gpt2-medium-wikitext2"]
    nominal = [1024, 1024, 921, 819, 819, *[614] * 6, *[307] * 13]
    assert settings.token_counts(24, 994) == nominal
    assert settings.value_counts(24, 994) == [307, 307, 276, 245, 245, *[184] * 6, *[92] * 13]
    assert sum(settings.heads_per_layer(24, 16)) == 354


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_keep": 0}, "token_keep must be above 0 and at most 1, not 0"),
        ({"token_keep": 1.5}, "token_keep must be above 0 and at most 1, not 1.5"),
        ({"head_keep": -1}, "head_keep must be above 0"),
        ({"value_keep": 2}, "value_keep must be above 0"),
        ({"score_prompt": True}, "score_prompt must be False where prune_prompt is True"),
        ({"importance_rescale": 0}, "importance_rescale must be above 0"),
        ({"k_bits": 5}, "k_bits must be one of 4, 6, 8, 10, 12, not 5"),
        ({"k_bits": 8, "lsb_bits": 3}, "lsb_bits must be 0 or 4, not 3"),
        ({"lsb_bits": 4}, "needs k_bits"),
        ({"lsb_threshold": 1.1}, "lsb_threshold must be in 0..1, not 1.1"),
        ({"value_semantics": "logit"}, "value_semantics must be probability or score, not 'logit'"),
        ({"reference_tokens": 0}, "reference_tokens must be at least 1, not 0"),
        ({"token_schedule": (1.0, 0.5, 0.6)}, r"token_schedule\[2\] must not exceed 0\.5, not 0\.6"),
        ({"token_schedule": (1.0, 0.0)}, r"token_schedule\[1\] must be above 0"),
        ({"head_counts": (12, 0)}, r"head_counts\[1\] must be at least 1, not 0"),
        ({"token_keep": 0.5, "token_keep_start": 0.2}, "not 0.2"),
        ({"token_free_fraction": 1}, "token_free_fraction must be at least 0 and below 1, not 1"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        CascadeSettings(**fields)


def test_thirteen_heads_of_twelve():
    with pytest.raises(ValueError, match=r"head_counts\[0\] must be in 1..12, the model's heads, not 13"):
        CascadeSettings(head_counts=(13,) * 6).heads_per_layer(6, 12)


def test_schedule_of_another_model():
    with pytest.raises(ValueError, match="must have 6 entries, one for each layer of the model, not 12"):
        RELEASED["gpt2-small-wikitext2"].token_counts(6, 10)


def test_dict_round_trip_and_unknown_field():
    settings = CascadeSettings(token_schedule=(1.0, 0.5), head_counts=(4, 2), k_bits=6, lsb_bits=4)
    assert CascadeSettings.from_dict(settings.to_dict()) == settings
    with pytest.raises(ValueError, match="unknown setting 'tokenkeep'"):
        CascadeSettings.from_dict({"tokenkeep": 0.5})


def test_parse_bits():
    assert parse_bits("8") == {"k_bits": 8, "v_bits": 8, "lsb_bits": 0}
    assert parse_bits("6+4") == {"k_bits": 6, "v_bits": 6, "lsb_bits": 4}
    with pytest.raises(ValueError, match="bits must look like 8 or 6"):
        parse_bits("six")
