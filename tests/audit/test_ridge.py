"""Ridge regression can be unlearned in closed form: then the gap is zero to the last digits."""

from __future__ import annotations

import numpy as np
import pytest

from segunlearn.audit.gap import gap


def ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ y)


def test_a_downdated_ridge_regression_has_gap_zero_and_the_original_has_not() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20)
    x_r, x_s, x_t = (rng.normal(size=(n, 20)) for n in (25, 5, 40))
    y_r, y_s, y_t = (x @ truth + rng.normal(size=len(x)) for x in (x_r, x_s, x_t))
    x, y = np.vstack([x_r, x_s]), np.concatenate([y_r, y_s])
    retrained, original = ridge(x_r, y_r), ridge(x, y)

    # Woodbury: take the rows of S out of the inverse without touching R
    inverse = np.linalg.inv(x.T @ x + 0.1 * np.eye(20))
    middle = np.linalg.inv(np.eye(5) - x_s @ inverse @ x_s.T)
    downdated = inverse + inverse @ x_s.T @ middle @ x_s @ inverse
    unlearned = downdated @ (x.T @ y - x_s.T @ y_s)

    def people(weights: np.ndarray, x: np.ndarray, y: np.ndarray, name: str) -> dict[str, float]:
        return {f"{name}{i}": -float(e**2) for i, e in enumerate(x @ weights - y)}

    def against_retrained(weights: np.ndarray) -> float:
        sets = ((x_s, y_s, "s"), (x_t, y_t, "t"))
        own, reference = ([people(w, *s) for s in sets] for w in (weights, retrained))
        return gap(own[0], own[1], [reference[0]], [reference[1]]).excess

    assert against_retrained(unlearned) == pytest.approx(0, abs=1e-9)
    assert against_retrained(original) > 0.5
