"""Inner products of all pairs of a feature store's rows, computed in blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradalign.alignment.store import GRAMS, FeatureStore
from gradalign.files import replacing

Floats = NDArray[np.float64]


def normalised(rows: NDArray[np.floating]) -> Floats:
    """Rows divided by their norms, in float64; zero rows stay zero."""
    unit = np.array(rows, np.float64)
    norms = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(norms > 0, norms, 1.0)
    return unit


def gram(store: FeatureStore, cosines: bool = False, block: int = 256) -> Floats:
    """Inner products of all pairs of rows, in float64; also written into the store's folder.

    Args:
        store: the store.
        cosines: of the `normalised` rows.
        block: rows in memory at a time, twice.

    Returns:
        (rows, rows), symmetric; the content of ``gram.npy`` or, with ``cosines``, of ``cosines.npy``.

    Raises:
        GradAlignError: the place cannot be written to.
    """
    features = store.features()
    count = len(features)
    products = np.empty((count, count))

    def rows(start: int) -> Floats:
        own = features[start : start + block]
        return normalised(own) if cosines else own.astype(np.float64)

    for i in range(0, count, block):
        own = rows(i)
        for j in range(i, count, block):
            products[i : i + block, j : j + block] = own @ (own if j == i else rows(j)).T
            products[j : j + block, i : i + block] = products[i : i + block, j : j + block].T
    with replacing(store.folder / GRAMS[cosines]) as part, part.open("wb") as file:
        np.save(file, products)
    return products
