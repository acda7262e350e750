"""Shares learned from vectors: the predictions are those of ridge regression, its strength is chosen on other places."""

import numpy as np

from geokr_core.embeddings.regression import STRENGTHS, Predictor, as_shares, fit, place_folds

NUM, D, K = 600, 12, 3


def toy(noise: float = 0.15) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vectors that say the shares up to noise, and where the chips lie."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(K, 0.5), NUM)
    features = shares @ rng.normal(size=(K, D)) + rng.normal(0, noise, (NUM, D))
    return features.astype(np.float32), shares, rng.uniform(0, 1, NUM), rng.uniform(0, 1, NUM)


def test_predictions_are_those_of_ridge_regression() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    features, shares, lon, lat = toy()
    folds = place_folds(lon, lat, 0.1, 3)
    fold = Predictor(features, folds)._parts[0]
    ours = fold.predictions(shares)
    scaler = StandardScaler().fit(features[fold.others])
    for k, strength in enumerate(STRENGTHS):
        ridge = Ridge(alpha=strength * fold.prepared.values.mean()).fit(
            scaler.transform(features[fold.others]), shares[fold.others]
        )
        assert np.allclose(ours[k], ridge.predict(scaler.transform(features[fold.rows])), atol=1e-4)


def test_a_fitted_function_is_ridge_regression_at_the_strength_that_is_best_elsewhere() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    features, shares, lon, lat = toy()
    features[:, 0] = 7.0  # constant: it must not divide by nothing
    folds = place_folds(lon, lat, 0.1, 5)
    predictor = Predictor(features, folds)
    errors = ((predictor.at_all_strengths(shares) - shares) ** 2).mean(axis=(1, 2))
    assert predictor.strength(shares) == errors.argmin()
    linear = fit(features, shares, folds)
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    products = np.linalg.eigvalsh(scaled.T @ scaled)
    ridge = Ridge(alpha=STRENGTHS[int(errors.argmin())] * products.mean()).fit(scaled, shares)
    assert np.allclose(linear(features), ridge.predict(scaled), atol=1e-4)
    assert np.isfinite(fit(features, shares, np.zeros(NUM, dtype=int)).weights).all()


def test_shares_are_shares() -> None:
    found = as_shares(np.array([[-0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]))
    assert np.allclose(found.sum(axis=1), 1)
    assert (found > 0).all()
