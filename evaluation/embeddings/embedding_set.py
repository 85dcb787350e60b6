"""The embeddings of one model for the pictures of one set, with what is known of them, as every measure takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from evaluation.arrays import Units, unit_rows, units_of
from evaluation.protocols import insightface_accuracy, join_views

if TYPE_CHECKING:
    from evaluation.embeddings.extraction import Extracted

JOINS = ("concatenate", "add")
ANALYSED_JOIN = "concatenate"  # of what lies beyond the published figures


@dataclass(frozen=True, eq=False)
class EmbeddingSet:
    """N pictures; their features are checked and L2-normalised here, once, and joined once for each join."""

    extracted: Extracted
    name: Callable[[int], str]  # of a picture, in reports
    identities: np.ndarray | None = None  # (N,) numbers or names; None where a pair list does not say
    ages: np.ndarray | None = None  # (N,) years, -1 where unknown
    age_groups: np.ndarray | None = None  # (N,) 0..7, -1 where unknown

    def __len__(self) -> int:
        return len(self.extracted.original)

    @cached_property
    def embeddings(self) -> Units:
        """Of both views, joined as ANALYSED_JOIN says: (N, 1024)."""
        return self._joined(ANALYSED_JOIN)

    @cached_property
    def age_embeddings(self) -> Units | None:
        """Of the age branch, (N, 512), of the original view; None without one."""
        features = self.extracted.age_features
        return None if features is None else units_of(features, "age_features")

    def columns(self, joins: Sequence[str] = JOINS) -> Iterator[tuple[str, Units]]:
        """These joins of the views, and grey pixels, where there are any, as a baseline."""
        for how in joins:
            yield how, self.embeddings if how == ANALYSED_JOIN else self._joined(how)
        if self.extracted.grey_pixels is not None:
            yield "grey_pixels", units_of(self.extracted.grey_pixels, "grey_pixels")

    def insightface_accuracy(self, first: np.ndarray, second: np.ndarray, genuine: np.ndarray) -> dict[str, float]:
        """InsightFace's accuracy of the pairs `first`, `second` (P,): from the views as they are, not normalised."""
        original, mirror = self.extracted.original, self.extracted.mirror
        return insightface_accuracy(original[first], mirror[first], original[second], mirror[second], genuine)

    def _joined(self, how: str) -> Units:
        return Units(unit_rows(join_views(*self._views, how)))  # as float32 in between: so galleries keep them

    @cached_property
    def _views(self) -> tuple[Units, Units]:
        return units_of(self.extracted.original, "original"), units_of(self.extracted.mirror, "mirror")
