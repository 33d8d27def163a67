"""The rows of ``dicelab check``."""

from __future__ import annotations

from lab.check import ROWS
from tests.support import matrix


def test_rows_follow_the_feature_matrix() -> None:
    firsts = {feature: marks.index("x") + 1 for feature, marks in matrix.FEATURES.items()}
    names = {"dice roller": "dice roller api", "postgres": "postgresql", "parent and child spans": "parent/child spans"}
    shown = {row.feature.lower(): row.first_stage for row in ROWS}
    for feature, first in firsts.items():
        assert shown[names.get(feature, feature).lower()] == first
