"""What one attempt saved, the next one finds: whole, as it was, or not at all."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage.checkpoints import NAME, Checkpoints
from storage.errors import StorageFull
from storage.tensors import packed

TENSORS = {
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False]),
    "turned": np.arange(6, dtype=np.int64).reshape(2, 3).T,
    "weights.1": np.array([np.pi, -0.0, np.inf, np.nan]),
}
MANIFEST = {"number": 3, "history": {"losses": [0.1, 1 / 3]}}


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "job_1", 1)


def test_nothing_was_saved(kept: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    assert kept.load() is None
    assert kept.part("fold-0").load() is None
    assert not caplog.records


def test_the_next_attempt_finds_the_last_one_to_the_bit(kept: Checkpoints) -> None:
    kept.save({"old": np.ones(3)}, {"number": 2})
    kept.save(TENSORS, MANIFEST)
    found = Checkpoints(kept.folder, 2).load()
    assert found is not None
    tensors, manifest = found
    assert manifest == MANIFEST
    assert tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype
        assert tensors[name].shape == array.shape
        assert tensors[name].tobytes() == np.asarray(array, order="C").tobytes()
    assert [path.name for path in kept.folder.iterdir()] == [NAME]


def test_parts_are_apart(kept: Checkpoints) -> None:
    inner = kept.part("fold-0").part("stage_1")
    for number, place in enumerate((kept, kept.part("fold-0"), inner, kept.part("fold-1"))):
        place.save({}, {"number": number})
    assert [
        found[1]["number"]
        for place in (kept, kept.part("fold-0"), inner, kept.part("fold-1"))
        if (found := place.load()) is not None
    ] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a.b", "/etc", "A", "-a"])
def test_a_part_has_a_plain_name(kept: Checkpoints, name: str) -> None:
    with pytest.raises(ValueError, match="no name for a part"):
        kept.part(name)


def flipped(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"\xff" * 100,
        lambda content: content[: len(content) // 2],
        flipped,
        lambda content: content.replace(b'\\"number\\": 3', b'\\"number\\": 4'),
        lambda content: packed(TENSORS, MANIFEST),
        lambda content: packed(TENSORS, {"sha256": None, "manifest": None}),
    ],
)
def test_a_damaged_one_is_not_used_and_the_log_says_so(
    damage: Callable[[bytes], bytes], kept: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    kept.save(TENSORS, MANIFEST)
    path = kept.folder / NAME
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert kept.load() is None
    assert "damaged" in caplog.text
    kept.save(TENSORS, MANIFEST)
    assert kept.load() is not None


def test_one_for_another_purpose_is_not_used_and_is_replaced(
    kept: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    before = kept.meant_for("version 1").part("fold-0")
    before.save(TENSORS, MANIFEST)
    now = Checkpoints(kept.folder, 2).meant_for("version 2").part("fold-0")
    with caplog.at_level(logging.WARNING):
        assert now.load() is None
        assert kept.part("fold-0").load() is None
    assert "another version" in caplog.text
    assert "damaged" not in caplog.text
    assert before.load() is not None
    now.save({}, {"number": 7})
    assert (now.load() or ({}, {}))[1] == {"number": 7}
    assert before.load() is None


def test_an_unfinished_write_leaves_the_one_before(kept: Checkpoints) -> None:
    kept.save(TENSORS, MANIFEST)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StorageFull, match="checkpoint"):
            kept.save({"large": np.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = kept.load()
    assert found is not None
    assert found[1] == MANIFEST
    assert [path.name for path in kept.folder.iterdir()] == [NAME]


def test_a_late_attempt_does_not_spoil_the_present_one(kept: Checkpoints) -> None:
    (kept.folder).mkdir()
    (kept.folder / f"{NAME}.1.part").write_bytes(b"half of what the first attempt was writing")
    second = Checkpoints(kept.folder, 2)
    second.save(TENSORS, MANIFEST)
    assert second.load() is not None
