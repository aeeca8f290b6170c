import numpy as np
import pytest

from jaxclip.tasks.classification_metrics import Confusion, classification_metrics

# Three images of class 0, two of 1, one of 3 and none of 2.
TARGETS = np.array([0, 0, 0, 1, 1, 3])
SCORES = np.array(
    [
        [0.9, 0.1, 0.0, 0.0],
        [0.2, 0.8, 0.1, 0.0],
        [0.2, 0.8, 0.1, 0.0],
        [0.1, 0.7, 0.2, 0.3],
        [0.1, 0.2, 0.9, 0.3],
        [0.1, 0.0, 0.3, 0.4],
    ]
)
LABELS = ["ant", "bee", "cat", "dog"]


def test_counts():
    metrics = classification_metrics(SCORES, TARGETS, LABELS)
    expected = [[1, 2, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(metrics.confusion, expected)
    assert metrics.labels == LABELS
    assert metrics.images == 6
    assert metrics.top_1 == pytest.approx(3 / 6)
    assert metrics.top_5 is None  # Of four classes any is.
    assert metrics.per_class == pytest.approx({"ant": 1 / 3, "bee": 1 / 2, "dog": 1})
    assert metrics.mean_per_class == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert metrics.worst_confusions() == [Confusion("ant", "bee", 2, 3), Confusion("bee", "cat", 1, 2)]
    assert metrics.worst_confusions(1) == [Confusion("ant", "bee", 2, 3)]


def test_equal_counts_come_by_their_part_of_the_class():
    scores = np.eye(3)[[0, 0, 0, 1, 0]]
    metrics = classification_metrics(scores, np.array([0, 0, 2, 2, 1]), LABELS[:3])
    assert metrics.worst_confusions(None) == [
        Confusion("bee", "ant", 1, 1),
        Confusion("cat", "ant", 1, 2),
        Confusion("cat", "bee", 1, 2),
    ]


def test_equals_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 12, 500), rng.normal(size=(500, 12))
    scores[np.arange(500), targets] += 1
    metrics = classification_metrics(scores, targets, [f"{i}" for i in range(12)])
    for k, ours in ((1, metrics.top_1), (5, metrics.top_5)):
        assert ours == pytest.approx(top_k_accuracy_score(targets, scores, k=k), abs=1e-12)
    assert 0.2 < metrics.top_1 < metrics.top_5 < 0.95
    np.testing.assert_array_equal(metrics.confusion, confusion_matrix(targets, scores.argmax(axis=1)))
    assert metrics.mean_per_class == pytest.approx(balanced_accuracy_score(targets, scores.argmax(axis=1)), abs=1e-12)


def test_what_scores_all_alike_is_at_chance():
    targets = np.arange(10).repeat(3)
    metrics = classification_metrics(np.zeros((30, 10)), targets, [f"{i}" for i in range(10)])
    assert (metrics.top_1, metrics.top_5) == (pytest.approx(0.1), pytest.approx(0.5))
    assert metrics.confusion[:, 0].sum() == 30


def test_two_classes_of_one_name_are_one_to_the_reader():
    metrics = classification_metrics(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]), ["crane", "crane", "owl"])
    assert metrics.per_class == {"crane": 1.0, "owl": 0.0}
    assert metrics.mean_per_class == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("scores", "targets"), [(np.zeros((0, 4)), []), (SCORES, TARGETS[:5]), (SCORES[:, :3], TARGETS)]
)
def test_what_does_not_fit_together_raises(scores, targets):
    with pytest.raises(ValueError, match="a row for each target and a column for each label"):
        classification_metrics(scores, np.array(targets, int), LABELS)
