"""A small scan, and a service to send it to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from errands import offer
from furnished import Room, furnish, keyed_house, names_of
from house import SPACING_XYZ, House, Library, nifti_voxels, open_house


@pytest.fixture(scope="session")
def nifti(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small sound NIfTI-1 file (.nii)."""
    path = tmp_path_factory.mktemp("nifti") / "scan.nii"
    nib.save(nib.Nifti1Image(nifti_voxels(), np.diag([*SPACING_XYZ, 1.0])), path)
    return path.read_bytes()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A service on an empty data root."""
    with open_house(tmp_path) as opened:
        yield opened


@pytest.fixture
def office(house: House) -> House:
    """A service whose worker does errands, too."""
    return offer(house)


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Such a service for tests that need no empty one."""
    with open_house(tmp_path_factory.mktemp("desk")) as opened:
        yield offer(opened)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, nifti: bytes) -> Iterator[Library]:
    """A service with one scan that has been read, for tests that change nothing."""
    with open_house(tmp_path_factory.mktemp("library")) as opened:
        yield Library(opened, opened.ready(nifti))


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory, nifti: bytes) -> Iterator[Room]:
    """A service that asks for keys, with something of everything in it, for tests of what is refused."""
    with keyed_house(tmp_path_factory.mktemp("room")) as opened:
        yield Room(opened, names_of(furnish(opened, nifti)))
