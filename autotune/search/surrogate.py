"""A Gaussian process over rows of codes, made for few and dear measurements of many candidates.

Notation, with n measured rows, N candidates and p distance tables:

=========  ==========  ==================================================================
``codes``  (n, axes)   the measured rows
``y``      (n,)        their values, less is better, prior mean already taken off
``K``      (n, n)      covariance of the measured rows in units of the scale
``H``      (N, s)      prior columns: what each of s sources expects of the candidates
``V``      (n, N)      ``inv(chol(K)) @ k(measured, candidates)``: grows by a row a measurement
=========  ==========  ==================================================================

The covariance is a product over distance tables j of ``(1 + c_j k_j) / (1 + c_j)`` with k_j a Matern 5/2 of
length l_j (the ANOVA kernel): a sum of main effects and interactions of every order, in which a small c_j makes
parameter j matter little. Times of kernels are of this kind. A plain product of Materns never forgets that two
configs differ in a parameter of no importance; on the open replay tables it needs half as many evaluations again.
``H @ H.T`` is added, so that how far a source is to be believed is learnt with the rest.

Lengths, weights and noise are the maximum of their posterior, the scale is integrated out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.search.axes import Axis, Codes, Floats

Singles = NDArray[np.float32]

#: Medians of the priors of length, weight and noise variance, and their log-normal widths. Lengths are in units
#: of a parameter's whole span: by default a parameter changes its effect about once from end to end.
LENGTH, WEIGHT, NOISE = 1.2, 1.0, 1e-3
WIDTHS = (0.7, 1.0, 1.0)
#: The inverse-gamma prior of the scale counts as this many measurements.
_PRIOR_COUNT = 4.0
#: Added to the diagonal, for float32 columns of V.
JITTER = 1e-5
#: Joint tables of several axes up to this many rows: few gathers over all candidates, in cache.
JOINT = 600

_SQRT5 = math.sqrt(5.0)


class Surrogate:
    def __init__(self, axes: Sequence[Axis]) -> None:
        self._axes = tuple(axes)
        #: (axis number, distances): one factor of the covariance each.
        self._factors = [(number, table) for number, axis in enumerate(axes) for table in axis.distances]
        p = len(self._factors)
        self._prior = np.repeat(np.log([LENGTH, WEIGHT, NOISE]), [p, p, 1])
        self._width = np.repeat(WIDTHS, [p, p, 1])
        #: Log lengths, log weights, log noise.
        self._theta = self._prior.copy()
        self._groups = _grouped([len(axis.values) for axis in axes])

    def fit(self, codes: Codes, y: Floats, prior: Floats, scale: float, steps: int) -> None:
        """Improve the hyperparameters by ``steps`` of resilient propagation, from where they stand.

        :param prior: (n, s), rows of H
        :param scale: what the variance of ``y`` is expected to be
        """
        theta, step = self._theta, np.full(len(self._theta), 0.15)
        best, before = (math.inf, theta), np.zeros(len(theta))
        for _ in range(steps + 1):
            loss, slope = self._loss(theta, codes, y, prior, scale)
            if loss < best[0]:
                best = (loss, theta)
            agree = np.sign(slope * before)
            step = np.clip(np.where(agree > 0, 1.3 * step, np.where(agree < 0, 0.5 * step, step)), 1e-3, 0.6)
            before = np.where(agree < 0, 0.0, slope)
            theta = theta - np.sign(before) * step
        self._theta = best[1]

    def _loss(self, theta: Floats, codes: Codes, y: Floats, prior: Floats, scale: float) -> tuple[float, Floats]:
        """Negative log posterior of the hyperparameters, and its gradient."""
        p, n = len(self._factors), len(y)
        tables, slopes = self._tables(theta)
        places = [np.ix_(codes[:, number], codes[:, number]) for number, _ in self._factors]
        product = np.ones((n, n))
        for table, place in zip(tables, places, strict=True):
            product *= table[place]
        noise = math.exp(theta[-1])
        try:
            inverse = np.linalg.inv(np.linalg.cholesky(product + prior @ prior.T + (noise + JITTER) * np.eye(n)))
        except np.linalg.LinAlgError:  # one step too far: the best one so far stays
            return math.inf, np.zeros(len(theta))
        precision = inverse.T @ inverse
        weights = precision @ y
        spread = float(y @ weights) + _PRIOR_COUNT * scale
        loss = 0.5 * (n + _PRIOR_COUNT) * math.log(spread) - float(np.log(np.diag(inverse)).sum())
        # d loss / d K, then through each table.
        outer = 0.5 * (precision - np.outer(weights, weights) * (n + _PRIOR_COUNT) / spread)
        through = outer * product
        slope = np.empty(len(theta))
        for j, ((by_length, by_weight), place) in enumerate(zip(slopes, places, strict=True)):
            slope[j], slope[p + j] = (through * by_length[place]).sum(), (through * by_weight[place]).sum()
        slope[-1] = noise * np.trace(outer)
        off = (theta - self._prior) / self._width
        return loss + 0.5 * float(off @ off), slope + off / self._width

    def _tables(self, theta: Floats) -> tuple[list[Floats], list[tuple[Floats, Floats]]]:
        """Per factor its covariances, and the slopes of their logarithms by log length and log weight."""
        p = len(self._factors)
        tables, slopes = [], []
        lengths, weights = np.exp(theta[:p]), np.exp(theta[p:-1])
        for (_, distances), length, weight in zip(self._factors, lengths, weights, strict=True):
            r = _SQRT5 * distances / length
            decay = np.exp(-r)
            matern = (1 + r + r * r / 3) * decay
            one = 1 + weight * matern
            tables.append(one / (1 + weight))
            by_length = weight * (r * r * (1 + r) / 3) * decay / one
            slopes.append((by_length, weight * matern / one - weight / (1 + weight)))
        return tables, slopes

    def posterior(self, candidates: Codes, prior: Floats) -> Posterior:
        """Of all candidates, with the hyperparameters as they stand and nothing measured yet."""
        tables, _ = self._tables(self._theta)
        joint = []
        for group in self._groups:
            table: Floats = np.ones((1, 1))
            code = np.zeros(len(candidates), dtype=np.int64)
            for number in group:
                factor = np.ones((len(self._axes[number].values),) * 2)
                for (axis, _), one in zip(self._factors, tables, strict=True):
                    if axis == number:
                        factor = factor * one
                table = np.kron(table, factor).astype(float)
                code = code * len(factor) + candidates[:, number]
            joint.append((table.astype(np.float32), code))
        return Posterior(joint, prior.astype(np.float32), math.exp(self._theta[-1]) + JITTER)


class Posterior:
    """Mean and deviation of every candidate; takes in measured rows one by one, each a pass over the candidates."""

    def __init__(self, joint: list[tuple[Singles, Codes]], prior: Singles, noise: float) -> None:
        self._joint, self._prior, self._noise = joint, prior, noise
        self._count = 0
        self._lower = np.zeros((0, 0))
        self._v: Singles = np.zeros((0, len(prior)), dtype=np.float32)
        self._left: Singles = 1.0 + (prior**2).sum(1)  # variance not explained yet
        self.rows: list[int] = []

    def __len__(self) -> int:
        return len(self._left)

    def take(self, rows: Sequence[int]) -> None:
        """Measured, or being measured: the values follow in :meth:`mean`."""
        if len(rows) > 8 and not self.rows:
            self._take_all(rows)
            return
        for row in rows:
            known = self._v[: self._count, row].astype(float)
            own = math.sqrt(max(float(self._left[row]) + self._noise, 1e-8))
            fresh = (self._cross([row])[:, 0] - known.astype(np.float32) @ self._v[: self._count]) / np.float32(own)
            self._append(fresh, np.append(known, own))
            self.rows.append(row)

    def _take_all(self, rows: Sequence[int]) -> None:
        cross = self._cross(rows)
        inside = cross[list(rows)].astype(float)
        self._lower = np.linalg.cholesky(0.5 * (inside + inside.T) + self._noise * np.eye(len(rows)))
        self._v = (cross @ np.linalg.inv(self._lower).T.astype(np.float32)).T.copy()
        self._left = self._left - (self._v**2).sum(0)
        self._count, self.rows = len(rows), list(rows)

    def _append(self, fresh: Singles, lower: Floats) -> None:
        n = self._count
        if n == len(self._v):  # doubled, so that a measurement does not copy all before it
            self._v = np.concatenate([self._v, np.empty((max(16, n), len(fresh)), dtype=np.float32)])
        self._v[n] = fresh
        self._left = self._left - fresh * fresh
        grown = np.zeros((n + 1, n + 1))
        grown[:n, :n], grown[n] = self._lower, lower
        self._lower, self._count = grown, n + 1

    def _cross(self, rows: Sequence[int]) -> Singles:
        """(N, len(rows)) covariances of all candidates with some."""
        chosen = list(rows)
        result: Singles = self._prior @ self._prior[chosen].T
        product: Singles | None = None
        for table, code in self._joint:
            part = table[:, code[chosen]][code]
            product = part if product is None else np.multiply(product, part, out=product)
        return result if product is None else product + result

    def mean(self, y: Floats) -> Singles:
        """(N,) expected values, given those of the first ``len(y)`` rows taken."""
        n = len(y)
        weights = np.linalg.solve(self._lower[:n, :n], y)
        result: Singles = weights.astype(np.float32) @ self._v[:n]
        return result

    def deviation(self, y: Floats, scale: float) -> Singles:
        """(N,) standard deviations; all rows taken count, those without a value too."""
        n = len(y)
        weights = np.linalg.solve(self._lower[:n, :n], y)
        variance = (float(weights @ weights) + _PRIOR_COUNT * scale) / (n + _PRIOR_COUNT)
        result: Singles = np.sqrt(np.float32(variance) * np.maximum(self._left, np.float32(1e-9)))
        return result


def _grouped(sizes: Sequence[int]) -> list[list[int]]:
    """Neighbouring axes whose joint table stays small; none is left out."""
    groups: list[list[int]] = [[]]
    rows = 1
    for number, size in enumerate(sizes):
        if groups[-1] and rows * size > JOINT:
            groups.append([])
            rows = 1
        groups[-1].append(number)
        rows *= size
    return groups
