"""Several processes at one draft: the same bytes, no shard twice, and nobody is waited for in vain."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import storage.derived_draft
import storage.derived_help
from storage.checkpoints import Checkpoints
from storage.compressors.goals import Goal
from storage.derived import Call, Drafts, Written, assist, drafted, joined, putt
from storage.derived_compressed import assisted, compressed
from storage.derived_draft import Draft
from storage.derived_report import LevelReader
from storage.errors import JobCancelled, LeaseLost
from storage.ingest import Moments, ingest
from storage.jobs import Progress
from storage.records import Derivation
from storage.volume import Volume
from tests.storage.scans import ArrayScan

Array = NDArray[Any]
CODING = putt(16.0)


def source_of(folder: Path, voxels: Array) -> Volume:
    return Volume.open(folder, ingest(ArrayScan(voxels), folder).digest)


@pytest.fixture
def source(tmp_path: Path) -> Volume:
    """Of six shards of level 0, and coarser ones."""
    voxels = np.random.default_rng(0).normal(100, 20, (150, 20, 300)).astype(np.int16)
    return source_of(tmp_path / "v.zarr", voxels)


class House:
    """An owner, and helpers in threads; who coded which shard, by what is read of the source."""

    def __init__(self, source: Volume, root: Path) -> None:
        self.source, self.root = source, root
        self.coded: dict[str, list[Any]] = {}
        self.threads: list[threading.Thread] = []
        self.left: list[str] = []

    def values(self, who: str, pause_s: float = 0.0) -> Callable[..., Array]:
        reader = LevelReader(self.source)
        coded = self.coded.setdefault(who, [])

        def box(level: int, frame: int | None, box: tuple[slice, slice, slice]) -> Array:
            coded.append((level, *((axis.start, axis.stop) for axis in box)))
            time.sleep(pause_s)
            return reader.box(level, frame, box)

        return box

    def own(self, attempt: int = 1, *, pause_s: float = 0.0, folder: str = "d", **how: Any) -> Written:
        box = self.values("owner", pause_s)
        return drafted(
            self.source,
            lambda frame, where: box(0, frame, where),
            coarser=box,
            drafts=Drafts(self.root / folder, "job_1", attempt),
            derivation=Derivation("vol_1", self.source.stored.digest, "compress"),
            coding=CODING,
            **how,
        )

    def help(self, who: str, attempt: int = 1, *, pause_s: float = 0.0, **how: Any) -> bool:
        """Whether there is more to do."""
        box, more = self.values(who, pause_s), False
        for draft, work in joined(Drafts(self.root / "d", "job_1", attempt)):
            assert work == {"step": 16.0}
            more |= assist(
                draft, self.source, lambda frame, where: box(0, frame, where), box, coding=CODING, **how
            )
        return more

    def call(self, *helpers: Callable[[], Any]) -> Call:
        """For helpers that begin in threads of their own."""

        def ring(count: int) -> None:
            assert count >= len(helpers)
            self.threads += [threading.Thread(target=self._helping, args=(one,)) for one in helpers]
            for thread in self.threads:
                thread.start()

        return Call({"step": 16.0}, ring)

    def _helping(self, helper: Callable[[], Any]) -> None:
        try:
            helper()
        except LeaseLost as error:
            self.left.append(str(error))

    def end(self) -> None:
        for thread in self.threads:
            thread.join()


@pytest.fixture
def house(source: Volume, tmp_path: Path) -> House:
    return House(source, tmp_path)


def published(house: House, written: Written) -> Volume:
    stored = written.publish(house.root / "made.zarr")
    made = Volume.open(house.root / "made.zarr", stored.digest)
    made.verify()
    return made


def test_helpers_code_what_is_left_once_and_alike(house: House) -> None:
    alone = house.own(folder="alone")
    shards = len(house.coded.pop("owner"))
    call = house.call(lambda: house.help("a", pause_s=0.02), lambda: house.help("b", pause_s=0.02))
    together = house.own(call=call, pause_s=0.02)
    house.end()
    assert together.stored == alone.stored
    assert (together.squares, together.largest) == (alone.squares, alone.largest)
    coded = Counter(box for boxes in house.coded.values() for box in boxes)
    assert len(coded) == shards
    assert set(coded.values()) == {1}
    assert all(house.coded.values())
    assert together.helped > 0
    assert together.made + together.helped == alone.made
    assert sorted(path.name for path in together.draft.folder.iterdir()) == ["ledger.jsonl", "volume.zarr"]
    assert not house.left
    published(house, together)


def test_a_helper_that_stops_in_a_shard_is_waited_for_no_longer_than_it_is_there(house: House) -> None:
    alone = house.own(folder="alone").stored

    def failing(progress: Progress) -> None:
        if progress.done:
            raise RuntimeError("this helper cannot")

    def helper() -> None:
        with pytest.raises(RuntimeError):
            house.help("failing", report=failing)

    began = time.monotonic()
    written = house.own(call=house.call(helper), pause_s=0.1)
    assert time.monotonic() - began < storage.derived_help.PATIENCE_S / 3
    house.end()
    assert len(house.coded["failing"]) == 1
    assert written.stored == alone
    assert written.helped == 0


def test_a_silent_helper_is_sent_away_and_can_write_nothing_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = house.own(folder="alone").stored
    monkeypatch.setattr(storage.derived_help, "PATIENCE_S", 0.3)
    claimed, ended = threading.Event(), threading.Event()

    def silent(progress: Progress) -> None:
        claimed.set()
        assert ended.wait(20)

    call = house.call(lambda: house.help("silent", report=silent))
    written = house.own(call=call, pause_s=0.05)
    assert claimed.is_set()
    assert written.stored == alone
    store = {path: path.read_bytes() for path in written.draft.store.rglob("*") if path.is_file()}
    ended.set()
    house.end()
    assert house.left == ["attempt 1 of job 'job_1' lost its lease"]
    assert {path: path.read_bytes() for path in written.draft.store.rglob("*") if path.is_file()} == store
    assert published(house, written).stored == alone


def test_a_helper_that_was_sent_away_cannot_move_a_finished_shard_into_the_volume(house: House) -> None:
    late: list[Draft] = []

    def ring(count: int) -> None:
        drafts = Drafts(house.root / "d", "job_1", 1).joined(lambda order: True)
        draft, _ = next(drafts)
        assert draft.claim("0/c/0/0/0")
        assert draft.help is None
        late.append(draft)
        drafts.close()  # type: ignore[attr-defined] # leaves the desk

    written = house.own(call=Call({}, ring))
    with pytest.raises(LeaseLost):
        late[0].add("0/c/0/0/0", b"late", tiles=1, moments=Moments())
    with pytest.raises(LeaseLost):
        late[0].sign()
    with pytest.raises(LeaseLost):
        late[0].claim("0/c/0/0/1")
    published(house, written)


def test_who_is_sent_away_with_a_shard_in_hand_does_not_get_it_into_the_volume(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the shard, whole at the desk, and the rename that would put it in its place."""
    alone = house.own(folder="alone").stored
    write = storage.derived_draft._write

    def sends_away(path: Path, content: bytes) -> None:
        write(path, content)
        if path.parent.parent.name == "desks":
            path.parent.rename(path.parent.with_name(f"{path.parent.name}.sent_away"))

    monkeypatch.setattr(storage.derived_draft, "_write", sends_away)
    written = house.own(call=house.call(lambda: house.help("helper")), pause_s=0.05)
    house.end()
    assert house.left
    assert len(house.coded["helper"]) == 1
    assert written.helped == 0
    assert published(house, written).stored == alone


def test_an_owner_that_dies_while_it_sends_its_helpers_away_loses_none_of_their_work(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree = shutil.rmtree

    def dies(path: Path, **how: Any) -> None:
        if path.name.startswith("desks."):
            raise KeyboardInterrupt
        rmtree(path, **how)

    call = house.call(lambda: house.help("helper", pause_s=0))
    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            house.own(call=call, pause_s=0.02)
    house.end()
    coded = len(house.coded["owner"])
    written = house.own(2)
    assert len(house.coded["owner"]) == coded
    assert (written.made, written.helped) == (0, 0)
    assert written.kept > 0
    assert sorted(path.name for path in written.draft.folder.iterdir()) == ["ledger.jsonl", "volume.zarr"]


def test_what_a_helper_did_last_before_it_left_is_not_done_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finishes and leaves between the owner's look at its ledger and that at its desk."""
    release, done = threading.Event(), threading.Event()
    is_given_up = storage.derived_help.Help.is_given_up

    def after_it_left(self: Any, key: str) -> bool:
        release.set()
        assert done.wait(20)
        return is_given_up(self, key)

    def lingering(progress: Progress) -> None:
        assert release.wait(20)

    def helper() -> None:
        house.help("helper", report=lingering, until=0.0)
        done.set()

    monkeypatch.setattr(storage.derived_help.Help, "is_given_up", after_it_left)
    written = house.own(call=house.call(helper), pause_s=0.05)
    house.end()
    assert len(house.coded["helper"]) == 1
    assert not set(house.coded["helper"]) & set(house.coded["owner"])
    assert written.helped > 0
    assert written.kept == 0


def test_without_symbolic_links_nobody_is_asked(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, target: str) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refused)
    called: list[int] = []
    written = house.own(call=Call({"step": 16.0}, called.append))
    assert not called
    assert written.made > 0
    published(house, written)


def test_a_draft_that_was_taken_over_asks_nobody(house: House) -> None:
    drafts = Drafts(house.root / "d", "job_1", 1)
    draft = drafts.open("a" * 64)
    Drafts(house.root / "d", "job_1", 2).open("a" * 64)
    with pytest.raises(LeaseLost):
        draft.ask({})
    assert [path.suffix for path in (house.root / "d").iterdir()] == [".2"]


def test_frames_are_helped_with_too(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(100, 20, (5, 4, 20, 30)).astype(np.int16)
    house = House(source_of(tmp_path / "v.zarr", voxels), tmp_path)
    alone = house.own(folder="alone").stored
    written = house.own(call=house.call(lambda: house.help("helper")), pause_s=0.05)
    house.end()
    assert written.stored == alone
    assert written.helped > 0


def test_the_next_attempt_keeps_what_helpers_did_and_sends_them_away(house: House) -> None:
    alone = house.own(folder="alone")
    shards = len(house.coded.pop("owner"))
    taken = threading.Event()

    def report(progress: Progress) -> None:
        if len(house.coded.get("helper", ())) > 2:
            raise JobCancelled("job_1")

    def waiting(progress: Progress) -> None:
        if len(house.coded["helper"]) > 3:
            assert taken.wait(20)

    with pytest.raises(JobCancelled):
        house.own(call=house.call(lambda: house.help("helper", report=waiting)), pause_s=0.05, report=report)
    before = len(house.coded["owner"])
    until = time.monotonic() + 10
    while len(house.coded["helper"]) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    written = house.own(2)
    taken.set()
    house.end()
    assert house.left
    assert written.stored == alone.stored
    assert written.kept > 0
    assert len(house.coded["owner"]) - before <= shards - 3
    published(house, written)


def test_helpers_leave_in_time_and_come_again(house: House) -> None:
    more: list[bool] = []

    def helper() -> None:
        more.append(house.help("hurried", until=0.0))
        more.append(house.help("patient"))

    house.own(call=house.call(helper), pause_s=0.1)
    house.end()
    assert more == [True, False]
    assert len(house.coded["hurried"]) == 1
    assert house.coded["patient"]


def test_nobody_helps_an_owner_of_another_program(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def ring(count: int) -> None:
        with monkeypatch.context() as other:
            other.setattr("storage.derived._program", lambda: "another")
            assert not house.help("stranger")

    written = house.own(call=Call({"step": 16.0}, ring))
    assert not house.coded["stranger"]
    assert written.helped == 0


@pytest.mark.parametrize(
    ("goal", "compressor"),
    [
        (Goal("ratio", 6), "putt"),
        (Goal("bound", 3), "putt"),
        (Goal("bound", 0), "blosc"),
    ],
    ids=str,
)
def test_a_compression_for_any_goal_is_helped(
    goal: Goal, compressor: str, source: Volume, tmp_path: Path
) -> None:
    drafts, helpers = Drafts(tmp_path / "d", "job_1", 1), []

    def ring(count: int) -> None:
        assert not assisted(source, goal, drafts=drafts)
        helpers.append(count)

    made = compressed(
        source,
        goal,
        compressor=compressor,
        seed=0,
        drafts=drafts,
        derivation=Derivation("vol_1", source.stored.digest, "compress"),
        checkpoints=Checkpoints(tmp_path / "plan", 1),
        ring=ring,
    )
    assert len(helpers) == len(made.passes)
    assert made.written.made == 0
    assert made.written.helped == made.passes[-1].tiles
    made.written.volume().verify()


def test_nobody_is_called_for_one_shard(tmp_path: Path) -> None:
    source = source_of(tmp_path / "v.zarr", np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    called: list[int] = []
    House(source, tmp_path).own(call=Call({}, called.append))
    assert not called


def test_who_comes_when_all_is_done_finds_nothing_to_do(house: House) -> None:
    house.own(call=Call({"step": 16.0}, lambda count: None))
    assert not house.help("late")
    assert not house.coded["late"]
