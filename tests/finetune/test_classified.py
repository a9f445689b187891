"""Figures of a classifier, against scikit-learn's and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.errors import ClearheadError
from clearhead.finetune import (
    Predictions,
    bootstrap_interval,
    calibrate,
    measure,
    predict,
    save_metrics,
)
from clearhead.recipes.classify import classify, evaluate_classifier

LABELS = ("a", "b", "c")


def predictions(probabilities):
    return Predictions(LABELS, np.log(np.array(probabilities, dtype=np.float64)), 0)


def test_by_hand():
    found = predictions([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3]])
    metrics = measure(found, ["a", "b", "b", "b"])
    assert (metrics.n, metrics.accuracy) == (4, 0.75)
    assert metrics.confusion == ((1, 0, 0), (1, 2, 0), (0, 0, 0))
    a, b, c = metrics.classes
    assert (a.precision, a.recall, a.f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert (b.n, b.n_predicted, b.precision, b.recall, b.f1) == (3, 2, 1.0, 2 / 3, 0.8)
    assert (c.n, c.precision, c.recall, c.f1) == (0, 0.0, 0.0, 0.0)
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)
    assert metrics.loss == pytest.approx(-np.log([0.8, 0.4, 0.7, 0.6]).mean())
    assert metrics.calibration.error == pytest.approx((0.2 + 0.5 + 0.3 + 0.4) / 4)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1))
def test_as_scikit_learn_counts(rows):
    sklearn = pytest.importorskip("sklearn.metrics")
    right, given_ = (list(column) for column in zip(*rows, strict=True))
    found = predictions([[0.8 if one == label else 0.1 for label in LABELS] for one in given_])
    metrics = measure(found, right)
    assert metrics.accuracy == pytest.approx(sklearn.accuracy_score(right, given_))
    confusion = sklearn.confusion_matrix(right, given_, labels=LABELS)
    assert metrics.confusion == tuple(map(tuple, confusion.tolist()))
    each = sklearn.precision_recall_fscore_support(right, given_, labels=LABELS, zero_division=0)
    ours = [(one.precision, one.recall, one.f1, one.n) for one in metrics.classes]
    np.testing.assert_allclose(np.array(ours).T, each)
    macro = sklearn.precision_recall_fscore_support(
        right, given_, average="macro", zero_division=0
    )[:3]
    ours = (metrics.macro_precision, metrics.macro_recall, metrics.macro_f1)
    assert ours == pytest.approx(macro)


def test_calibration_of_a_model_that_is_right_as_often_as_it_thinks():
    random = np.random.default_rng(0)
    confidence = random.uniform(0.5, 1, 200_000)
    found = calibrate(confidence, random.uniform(size=len(confidence)) < confidence)
    assert found.error < 0.005
    assert [one.n for one in found.bins[:5]] == [0] * 5
    assert sum(one.n for one in found.bins) == len(confidence)
    assert found.bins[9].confidence == pytest.approx(0.95, abs=0.001)
    assert found.bins[0].accuracy is None


def test_edges_belong_to_the_bin_below():
    found = calibrate(np.array([0.0, 0.5, 1.0]), np.array([False, True, True]))
    assert [one.n for one in found.bins] == [1, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert found.error == pytest.approx(0.5 / 3)


def test_the_interval_is_that_of_drawing_texts_anew():
    is_right = np.arange(200) < 150
    random = np.random.default_rng(1)
    means = is_right[random.integers(200, size=(20_000, 200))].mean(1)
    expected = np.quantile(means, (0.025, 0.975))
    assert bootstrap_interval(150, 200) == pytest.approx(expected, abs=0.006)
    assert bootstrap_interval(150, 200) == bootstrap_interval(150, 200)
    assert bootstrap_interval(7, 7) == (1.0, 1.0)


def test_mistakes():
    found = predictions([[0.8, 0.1, 0.1]])
    with pytest.raises(ClearheadError, match="labels unseen in training: x, y; the model tells a"):
        measure(predictions([[0.8, 0.1, 0.1]] * 2), ["y", "x"])
    with pytest.raises(ClearheadError, match="1 texts have 2 labels"):
        measure(found, ["a", "b"])
    with pytest.raises(ClearheadError, match="0 texts have 0 labels"):
        measure(Predictions(LABELS, np.empty((0, 3)), 0), [])


def test_a_language_model_is_refused(language_model, tokenizer):
    with pytest.raises(ClearheadError, match="is a language model and has no labels"):
        classify(language_model, tokenizer, ["a"])
    with pytest.raises(ClearheadError, match="is a language model and has no labels"):
        evaluate_classifier(language_model, tokenizer, ["a"], ["x"])


def test_batched_is_as_alone_and_in_order(build, tokenizer, monkeypatch):
    model, objective = build()
    model.eval()
    texts = [one.text for one in objective.parts.train]
    whole = classify(model, tokenizer, texts)
    monkeypatch.setattr("clearhead.finetune.classified._TOKENS_AT_ONCE", 1)
    alone = classify(model, tokenizer, texts)
    np.testing.assert_allclose(whole.log_probabilities, alone.log_probabilities, atol=1e-6)
    np.testing.assert_allclose(whole.probabilities.sum(-1), 1)
    assert whole.n_cut == sum(len(text) > 24 for text in texts)
    cut = predict(model, [tokenizer.encode(texts[0]).astype(np.int64)], 256, max_length=2)
    assert cut.n_cut == 1
    labels = [one.label for one in objective.parts.train]
    assert evaluate_classifier(model, tokenizer, texts, labels) == measure(alone, labels)


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_pictures(tmp_path, name):
    found = predictions([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3]])
    save_metrics(tmp_path / name, measure(found, ["a", "b", "b", "c"]), "a test")
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG") or b"<svg" in content
    with pytest.raises(ClearheadError, match="neither"):
        save_metrics(tmp_path / "a.pdf", measure(found, ["a", "b", "b", "c"]), "a test")
