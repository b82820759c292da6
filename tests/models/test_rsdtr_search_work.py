"""A search has a limit of work, for kernels whose spectra bound little."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from test_rsdtr_rings import decaying, normal

from models.rsdtr import search
from models.rsdtr.cuts import Tails
from models.rsdtr.search import RingSearch, groupings, ring_of, work
from models.rsdtr.spectra import Spectra

FLAT, STEEP = (1, 16, 16, 3, 3, 3), (1, 8, 8, 3, 3, 3)


def found(spectra: Spectra) -> RingSearch:
    searched = RingSearch(spectra, spectra.arrays[0].numel(), lambda _: True)
    for modes in groupings(spectra.sizes):
        searched.over(modes)
    return searched


@pytest.mark.parametrize("most", [1e5, 1e6])
def test_the_cuts_of_a_grouping_take_no_more_than_the_limit(
    monkeypatch: pytest.MonkeyPatch, most: float
) -> None:
    spectra = Spectra(normal(*FLAT), 0.5)
    for count in (1, 2):
        for axes in combinations(range(5), count):
            spectra.tails(axes)
    taken: list[float] = []
    tails_of = Tails.of

    def counted(matrices: torch.Tensor) -> Tails:
        taken.append(work(*matrices.shape))
        return tails_of(matrices)

    monkeypatch.setattr(Tails, "of", counted)
    found(spectra)
    allowed = len(groupings(spectra.sizes)) * most
    assert sum(taken) > allowed
    taken.clear()
    monkeypatch.setattr(search, "MOST_WORK", most)
    found(spectra)
    assert 0 < sum(taken) <= allowed


def test_without_work_no_ring_is_found_and_with_little_one_within_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spectra = Spectra(decaying(*STEEP), 0.4)
    best = found(spectra)
    monkeypatch.setattr(search, "MOST_WORK", 0.0)
    assert found(spectra).found is None
    monkeypatch.setattr(search, "MOST_WORK", 1e6)
    limited = found(spectra)
    assert best.found is not None
    assert limited.found is not None
    assert limited.found.storage >= best.found.storage
    assert ring_of(spectra, limited.found).relative_error(spectra.arrays) <= 0.4
