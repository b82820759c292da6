"""Made heads: their target is what it is said to be, and neither brightness nor shape tell it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from service.cohort_table import Columns, read_table
from service.phantoms import AMPLITUDE, SPACING_MM, head, write_cohort


def test_the_share_is_exact_and_in_the_left_half_alone() -> None:
    bare = head(3, 0.0)
    for share in (0.0, 0.25, 1.0):
        changed = np.abs(head(3, share) - bare) > AMPLITUDE / 2
        region = np.abs(head(3, 1.0) - bare) > AMPLITUDE / 2
        assert np.isclose(changed.sum() / region.sum(), share, atol=1e-3)
        assert not changed[len(bare) // 2 :].any()
    assert np.abs(np.abs(head(3, 1.0) - bare)[region] - AMPLITUDE).max() < 1e-9


def test_means_tell_nothing() -> None:
    shares = np.linspace(0, 1, 30)
    means = [head(number, share)[:16].mean() for number, share in enumerate(shares)]
    plain = [head(number, 0.0)[:16].mean() for number in range(30)]
    assert np.std(np.subtract(means, plain)) < 0.2 * np.std(plain)


def test_a_cohort_is_a_table_of_scans_and_one_head_beside(tmp_path: Path) -> None:
    table, unseen, truth = write_cohort(tmp_path, 3)
    rows = read_table(table, Columns("share")).rows
    assert len({row.patient for row in rows}) == 3
    assert unseen.name not in [row.scan for row in rows]
    shares = sorted([*(float(row.target) for row in rows), truth])
    assert np.allclose(shares, [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    image = nibabel.load(unseen)
    assert image.header.get_zooms() == (SPACING_MM,) * 3
    again = tmp_path / "again"
    again.mkdir()
    write_cohort(again, 3)
    assert (again / unseen.name).read_bytes() == unseen.read_bytes()
