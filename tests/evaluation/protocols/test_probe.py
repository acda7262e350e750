"""Features, the colour histogram, logistic regression and fine-tuning."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from geokr_core.errors import EvaluationError
from geokr_core.evaluation.cells import Start
from geokr_core.evaluation.config import EvaluationConfig, TaskConfig
from geokr_core.evaluation.protocols import fine_tuning
from geokr_core.evaluation.protocols.fine_tuning import Classifier, fine_tune, learning_rate_factor, predict
from geokr_core.evaluation.protocols.probe import (
    HISTOGRAM_BATCH,
    SINGLE_LABEL_STRENGTH,
    STRENGTHS,
    colour_histogram,
    extract_features,
    fit_logistic_regression,
    fit_probe,
    nearest_neighbours,
    standardisation,
    stratified_holdout,
)
from geokr_core.evaluation.starts import running, start_network
from geokr_core.networks import batch_order
from geokr_core.networks.network import build
from geokr_core.networks.normalisation import Normalisation, channel_statistics
from geokr_core.networks.runtime import Runtime
from geokr_core.networks.weights import save_weights

CPU = Runtime(torch.device("cpu"), bf16=False)


def random_start(architecture: str = "squeezenet1_1", seed: int = 0) -> Start:
    return Start("random", seed, architecture, None, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def noise(num: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), dtype=np.uint8)


def blobs(num: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 0.7, (4, dim))
    labels = rng.integers(0, 4, num)
    return (centres[labels] + rng.normal(0, 1.5, (num, dim))).astype(np.float32), labels


@pytest.mark.parametrize("strength", [0.003, 0.1, 3.0])
def test_logistic_regression_equals_scikit_learn(strength: float) -> None:
    features, labels = blobs(300, 20, seed=0)
    others, truth = blobs(1000, 20, seed=1)
    reference = LogisticRegression(C=strength, max_iter=2000, tol=1e-6).fit(features, labels)
    weight, bias = fit_logistic_regression(features, labels, 4, strength)
    accuracy = ((others @ weight.T + bias).argmax(axis=1) == truth).mean()

    assert accuracy == pytest.approx(reference.score(others, truth), abs=0.005)
    assert np.abs(weight - reference.coef_).max() < 0.02 * np.abs(reference.coef_).max()


def test_a_first_guess_saves_time_and_changes_nothing() -> None:
    features, labels = blobs(200, 10, seed=0)
    cold, _ = fit_logistic_regression(features, labels, 4, 0.1)
    warm, _ = fit_logistic_regression(features, labels, 4, 0.1, (np.full((4, 10), 2.0), np.ones(4)))

    assert np.abs(cold - warm).max() < 0.02 * np.abs(cold).max()


def test_the_fit_leaves_the_number_of_threads_alone() -> None:
    features, labels = blobs(20, 5, seed=0)
    before = torch.get_num_threads()
    fit_logistic_regression(features, labels, 4, 1.0)

    assert torch.get_num_threads() == before


def test_a_cell_is_measured_by_one_thread_and_the_others_are_given_back() -> None:
    before = torch.get_num_threads()
    with running(config_of(threads=before + 1, device="cpu")) as runtime:
        assert torch.get_num_threads() == 1
        assert runtime.device.type == "cpu"
        assert not runtime.bf16

    assert torch.get_num_threads() == before


def test_strength_is_chosen_strong_for_noise_and_weak_for_signal() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 60)
    useless = rng.normal(size=(120, 60)).astype(np.float32)
    telling = (labels[:, None] * 6.0 + rng.normal(size=(120, 3))).astype(np.float32)
    chosen = [fit_probe(features, labels, 2, features, seed=0).strength for features in (useless, telling)]

    assert chosen[0] == min(STRENGTHS)
    assert chosen[1] >= 0.3
    lone = np.array([0, 60])  # one labelled item a class: nothing can be held out
    assert fit_probe(telling[lone], labels[lone], 2, telling, seed=0).strength == SINGLE_LABEL_STRENGTH


def test_holdout_takes_a_fifth_of_each_class_and_leaves_every_class_to_fit_on() -> None:
    labels = np.array([0] * 20 + [1] * 5 + [2])
    fitting, held_out = stratified_holdout(labels, seed=3)

    assert np.bincount(labels[held_out], minlength=3).tolist() == [4, 1, 0]
    assert sorted([*fitting, *held_out]) == list(range(26))


def test_constant_features_do_no_harm() -> None:
    features, labels = blobs(100, 6, seed=0)
    dead = np.concatenate([features, np.full((100, 2), 7.0, dtype=np.float32)], axis=1)
    without = fit_probe(features, labels, 4, features, seed=0).predict(features)
    classifier = fit_probe(dead, labels, 4, dead, seed=0)

    assert (classifier.predict(dead) == without).mean() > 0.98


def test_colour_histogram_of_known_images() -> None:
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    images[0, :2, :, 0] = 255  # half of the red channel in the last bin, half in the first
    images[1, ..., 2] = 16  # all of the blue channel in the second bin
    numbers = colour_histogram(images)

    assert numbers.shape == (2, 54)
    assert numbers[0, [0, 15]].tolist() == [0.5, 0.5]
    assert numbers[1, 32:34].tolist() == [0.0, 1.0]
    assert numbers[:, :48].reshape(2, 3, 16).sum(axis=2) == pytest.approx(1.0)
    assert numbers[0, [48, 51]].tolist() == pytest.approx([0.5, 0.5])
    assert numbers[1, 50] == pytest.approx(16 / 255)


def test_colour_histogram_is_the_same_in_any_batch() -> None:
    images = noise(HISTOGRAM_BATCH + 3, size=4)

    assert np.array_equal(colour_histogram(images)[-3:], colour_histogram(images[-3:]))


def test_channel_statistics_of_known_pixels() -> None:
    images = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    images[0, 0, :, 0] = 255
    images[..., 2] = 51
    found = channel_statistics(images)

    assert found.mean.tolist() == pytest.approx([0.5, 0.0, 0.2])
    assert found.std.tolist() == pytest.approx([0.5, 0.5 / 255, 0.5 / 255])  # constant channels can be divided by


def test_random_networks_follow_their_seed_alone() -> None:
    images = noise(4)
    normalisation = channel_statistics(images)

    def features(seed: int) -> np.ndarray:
        network = start_network(random_start(seed=seed), images, normalisation, CPU)
        return extract_features(network, images, normalisation, "last", CPU)

    first = features(0)
    torch.rand(5)  # whatever was drawn in between

    assert np.array_equal(first, features(0))
    assert not np.array_equal(first, features(1))


def test_random_batchnorm_gets_the_statistics_of_the_images() -> None:
    images = np.concatenate([np.full((8, 32, 32, 3), 40, dtype=np.uint8), np.full((8, 32, 32, 3), 200, dtype=np.uint8)])
    images = images + noise(16) // 16
    normalisation = channel_statistics(images)
    network = start_network(random_start("resnet18"), images, normalisation, CPU)
    layer = network.get_submodule("bn1")
    assert isinstance(layer, nn.BatchNorm2d)
    seen = network.get_submodule("conv1")(normalisation(torch.from_numpy(images)))

    assert layer.running_mean is not None
    assert torch.allclose(layer.running_mean, seen.mean(dim=(0, 2, 3)), atol=1e-4)
    assert layer.momentum == pytest.approx(0.1)
    assert not any(module.training for module in network.modules())


def test_loaded_weights_keep_their_batchnorm_statistics(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(build("resnet18"), path)
    start = Start("geokr", 0, "resnet18", path, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    images = noise(4)
    network = start_network(start, images, channel_statistics(images), CPU)

    assert torch.equal(network.get_buffer("bn1.running_mean"), torch.zeros(64))


def test_features_of_a_batch_are_those_of_its_images() -> None:
    images = noise(5)
    normalisation = channel_statistics(images)
    network = start_network(random_start(), images, normalisation, CPU)
    together = extract_features(network, images, normalisation, "multi", CPU)
    alone = extract_features(network, images[3:4], normalisation, "multi", CPU)
    last = extract_features(network, images, normalisation, "last", CPU)

    assert together[3] == pytest.approx(alone[0], abs=1e-5)
    assert together[:, -last.shape[1] :] == pytest.approx(last, abs=1e-6)


def test_features_that_are_not_finite_are_refused() -> None:
    images = noise(2)
    normalisation = channel_statistics(images)
    network = start_network(random_start(), images, normalisation, CPU)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)

    with pytest.raises(EvaluationError, match="2 of 2 images"):
        extract_features(network, images, normalisation, "last", CPU)


def test_predictions_that_are_not_finite_are_refused() -> None:
    features, labels = blobs(50, 5, seed=0)
    classifier = fit_probe(features, labels, 4, features, seed=0)
    features[0, 0] = np.inf

    with pytest.raises(EvaluationError, match="not finite"):
        classifier.predict(features)


def test_items_of_many_blocks_are_predicted_as_each_by_itself_in_their_order() -> None:
    features, labels = blobs(40_000, 8, seed=0)  # five blocks
    classifier = fit_probe(features[::100], labels[::100], 4, features, seed=0)

    by_hand = (features - classifier.centre) / classifier.scale @ classifier.weight.T + classifier.bias

    np.testing.assert_array_equal(classifier.predict(features), by_hand.argmax(axis=1))


def tuned(config: EvaluationConfig, seed: int) -> tuple[Classifier, np.ndarray, np.ndarray]:
    images = noise(24)
    images[12:] //= 4  # the dark ones are the second class
    labels = np.repeat(np.arange(2), 12)
    normalisation = channel_statistics(images)
    network = start_network(random_start("resnet18"), images, normalisation, CPU)
    model = fine_tune(network, "resnet18", images, labels, 2, normalisation, config, seed, CPU)
    return model, predict(model, images, normalisation, CPU), labels


def config_of(**changes: object) -> EvaluationConfig:
    fields = {
        "folder": "sets",
        "tasks": [TaskConfig(name="set")],
        "fine_tune_steps": 12,
        "batch_size": 8,
        "precision": "fp32",
    }
    return EvaluationConfig.model_validate(fields | changes)


def test_fine_tuning_learns_and_is_the_same_for_the_same_seed() -> None:
    _, predicted, labels = tuned(config_of(), seed=0)
    short = config_of(fine_tune_steps=2)
    once, again, other = (tuned(short, seed=seed)[0] for seed in (0, 0, 1))

    assert (predicted == labels).mean() > 0.9
    assert torch.equal(once.head.weight, again.head.weight)
    assert not torch.equal(once.head.weight, other.head.weight)


def test_head_and_batches_follow_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []
    for seed in (0, 0, 1):
        torch.rand(3)  # whatever was drawn in between
        heads.append(Classifier(nn.Identity(), 8, 2, seed).head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])

    asked: list[tuple[int, int]] = []
    batch_rows = batch_order.batch_rows

    def noted(rows: np.ndarray, batch_size: int, seed: int, step: int) -> np.ndarray:
        asked.append((seed, step))
        return batch_rows(rows, batch_size, seed, step)

    monkeypatch.setattr(fine_tuning, "batch_rows", noted)
    tuned(config_of(fine_tune_steps=2), seed=5)
    assert asked == [(5, 1), (5, 2)]


def test_fine_tuning_that_diverges_is_refused() -> None:
    with pytest.raises(EvaluationError, match="step"):
        tuned(config_of(fine_tune_learning_rate=1e30), seed=0)


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    factors = [learning_rate_factor(step, 50) for step in range(50)]

    assert factors[0] == pytest.approx(0.2)
    assert max(factors) == pytest.approx(1.0)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[-1] < 0.01


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(EvaluationError, match="cuda"), running(config_of(device="cuda")):
        pytest.fail("ran without the device it was told to use")


def test_nearest_neighbours_vote_by_how_much_they_point_the_same_way() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    features = (rng.normal(size=(60, 8)) + labels[:, None]).astype(np.float32)
    queries = (rng.normal(size=(40, 8)) + rng.integers(0, 3, 40)[:, None]).astype(np.float32)
    centre, scale = standardisation(features)
    expected = []
    for query in (queries - centre) / scale:
        others = (features - centre) / scale
        cosine = others @ query / np.linalg.norm(others, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-cosine)[:7]
        expected.append(np.argmax([(cosine[nearest] + 1)[labels[nearest] == k].sum() for k in range(3)]))

    assert nearest_neighbours(features, labels, queries, features, 7).tolist() == expected


def test_a_few_labelled_items_do_not_decide_how_features_are_scaled() -> None:
    """One feature varies over the training images but hardly over the labelled ones: it must not be blown up."""
    rng = np.random.default_rng(0)
    unlabelled = rng.normal(size=(200, 2)).astype(np.float32) * [1.0, 100.0]
    labels = np.repeat(np.arange(2), 3)
    labelled = np.stack([labels * 4.0, 0.01 * rng.normal(size=6)], axis=1)
    asked = np.stack([np.repeat([0.0, 4.0], 50), 100.0 * rng.normal(size=100)], axis=1)
    classifier = fit_probe(labelled, labels, 2, unlabelled, seed=0)

    assert (classifier.predict(asked) == np.repeat([0, 1], 50)).mean() > 0.95


def test_fewer_labels_than_neighbours_all_vote() -> None:
    features = np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    found = nearest_neighbours(features, np.array([0, 1]), features, features, num_neighbours=50)
    assert found.tolist() == [0, 1]


def test_neighbours_that_are_not_finite_are_refused() -> None:
    features = np.array([[np.inf, 1.0], [1.0, 0.0]], dtype=np.float32)
    with pytest.raises(EvaluationError, match="not finite"), np.errstate(invalid="ignore"):
        nearest_neighbours(features, np.array([0, 1]), features, features, 1)


def test_fine_tuning_keeps_batchnorm_where_it_is_to_be_frozen() -> None:
    found = []
    for frozen in (True, False):
        network = start_network(random_start("resnet18"), noise(8), Normalisation(torch.zeros(3), torch.ones(3)), CPU)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        config = EvaluationConfig(folder=".", tasks=(TaskConfig(name="x"),), fine_tune_steps=2, batch_size=4)
        labels = np.arange(8, dtype=np.int64) % 2
        plain = Normalisation(torch.zeros(3), torch.ones(3))
        fine_tune(network, "resnet18", noise(8), labels, 2, plain, config, 0, CPU, frozen_batchnorm=frozen)
        after = network.state_dict()
        found.append(
            [torch.equal(before[key], after[key]) for key in ("bn1.running_var", "bn1.weight", "conv1.weight")]
        )

    assert found == [[True, True, False], [False, False, False]]
