import numpy as np
import pytest

from clearhead.evaluate import bootstrap, compare


def test_the_interval_of_a_share_is_that_of_the_textbook():
    values = np.array([1.0] * 300 + [0.0] * 700)
    found = bootstrap(values)
    assert found.value == pytest.approx(0.3)
    error = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert found.low == pytest.approx(0.3 - error, abs=0.005)
    assert found.high == pytest.approx(0.3 + error, abs=0.005)
    assert bootstrap(values) == found
    assert bootstrap(values, seed=1) != found


def test_a_statistic_of_several_means():
    table = np.array([[2.0, 1.0], [4.0, 1.0], [6.0, 2.0]])
    found = bootstrap(table, lambda means: means[:, 0] / means[:, 1])
    assert found.value == pytest.approx(3.0)
    assert 2 <= found.low <= found.value <= found.high <= 4


def test_equal_models_do_not_differ_and_a_better_one_does():
    random = np.random.default_rng(0)
    first = (random.random(500) < 0.5).astype(float)
    same = compare(first, first)
    assert (same.difference.value, same.p_value) == (0.0, 1.0)
    better = np.maximum(first, random.random(500) < 0.1)
    found = compare(first, better)
    assert found.difference.value == pytest.approx((better - first).mean())
    assert found.difference.low > 0
    assert found.p_value < 0.01
    assert compare(better, first).difference.value == -found.difference.value


def test_the_p_value_is_that_of_the_exact_test():
    """Of 10 pairs that differ, 8 speak for the second: two-sided, 112 of 1024 are as extreme."""
    first, second = np.zeros(30), np.zeros(30)
    second[:8], first[8:10] = 1, 1
    assert compare(first, second).p_value == pytest.approx(112 / 1024, abs=0.02)


def test_chance_alone_is_seldom_sure():
    random = np.random.default_rng(1)
    found = [
        compare((random.random(200) < 0.4) * 1.0, (random.random(200) < 0.4) * 1.0).p_value
        for _ in range(40)
    ]
    assert sum(p < 0.05 for p in found) <= 6
