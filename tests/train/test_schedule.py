import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearhead.errors import ClearheadError
from clearhead.train import ScheduleConfig, rate_factor


@given(
    kind=st.sampled_from(["cosine", "wsd"]),
    warmup=st.integers(0, 30),
    decay=st.floats(0, 1),
    final=st.floats(0, 1),
    steps=st.integers(1, 200),
)
def test_rises_then_never_rises_again_and_ends_near_the_final_fraction(
    kind, warmup, decay, final, steps
):
    config = ScheduleConfig(kind, warmup, decay, final)
    factors = [rate_factor(config, step, steps) for step in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    after = factors[warmup:]
    assert after == sorted(after, reverse=True)


def test_known_values():
    wsd = ScheduleConfig("wsd", warmup_steps=9, decay_fraction=0.5, final_fraction=0.0)
    assert rate_factor(wsd, 0, 100) == pytest.approx(0.1)
    assert rate_factor(wsd, 9, 100) == rate_factor(wsd, 50, 100) == 1
    assert rate_factor(wsd, 75, 100) == pytest.approx(0.5)
    assert rate_factor(wsd, 99, 100) == pytest.approx(0.02)
    cosine = ScheduleConfig("cosine", warmup_steps=0, final_fraction=0.1)
    assert rate_factor(cosine, 50, 100) == pytest.approx(0.55)
    assert rate_factor(cosine, 99, 100) == pytest.approx(0.1, abs=1e-3)


def test_a_run_of_unknown_length_does_not_decay():
    assert rate_factor(ScheduleConfig(warmup_steps=0), 10**6, None) == 1


@pytest.mark.parametrize(
    "wrong", [{"kind": "linear"}, {"warmup_steps": -1}, {"decay_fraction": 2.0}]
)
def test_wrong_values_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ClearheadError, match=name):
        ScheduleConfig(**wrong)
