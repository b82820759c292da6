"""The real kinds: a scan becomes a volume, a volume becomes cores; what goes wrong leaves nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from support.scans import SMALL, files_below, nifti, upload

from models.cpic.embed import EmbedConfig, estimate
from storage.artifacts import ArtifactStore, read_tensors
from storage.catalogue import Catalogue
from storage.jobs import Job, JobState, Progress
from storage.records import VolumeRecord, VolumeState
from storage.volume import Volume
from workers.jobs import KINDS
from workers.lease import Lease
from workers.runner import Runner
from workers.scans import RecordedCubes

QUICK = {"n_dim": 4, "rank": 4, "held_out": 100}


@pytest.fixture(scope="module")
def scan() -> bytes:
    return nifti()


@pytest.fixture
def runner(make_runner: Any) -> Runner:
    made: Runner = make_runner(*KINDS)
    return made


@pytest.fixture
def volume(catalogue: Catalogue, runner: Runner, tmp_path: Path, scan: bytes) -> VolumeRecord:
    """An ingested volume."""
    record, job = upload(catalogue, tmp_path, scan)
    runner.run(job.id)
    return catalogue.volume(record.id)


def embedded(catalogue: Catalogue, runner: Runner, volume: VolumeRecord, **parameters: Any) -> Job:
    job = runner.run(catalogue.submit("embed", {**QUICK, **parameters}, volume_id=volume.id).id)
    assert job is not None
    return job


def test_ingest_publishes_one_store_and_removes_the_upload(
    catalogue: Catalogue, volume: VolumeRecord, tmp_path: Path
) -> None:
    job = catalogue.job(volume.ingest_job)
    assert (job.state, volume.state) == (JobState.SUCCEEDED, VolumeState.READY)
    assert volume.stored is not None
    assert volume.store is not None
    assert volume.stored.grid.shape == SMALL[::-1]
    assert volume.stored.grid.spacing == (1.5, 1.0, 1.0)
    assert job.result is not None
    assert job.result["volume_digest"] == volume.stored.digest
    assert files_below(tmp_path / "volumes", "*/*") == [f"{volume.id}/1.zarr"]
    assert files_below(tmp_path / "uploads") == []
    Volume.open(tmp_path / volume.store, volume.stored.digest).verify()


def test_a_damaged_scan_is_rejected_and_nothing_is_left(
    catalogue: Catalogue, runner: Runner, tmp_path: Path, scan: bytes
) -> None:
    record, job = upload(catalogue, tmp_path, scan[: len(scan) // 2])
    ended = runner.run(job.id)
    assert ended is not None
    assert ended.error is not None
    assert (ended.state, ended.error["code"]) == (JobState.FAILED, "invalid-scan")
    rejected = catalogue.volume(record.id)
    assert (rejected.state, rejected.error) == (VolumeState.REJECTED, ended.error)
    assert files_below(tmp_path / "volumes") == []
    assert files_below(tmp_path / "uploads") == []


def test_a_scan_over_the_memory_budget_is_refused_with_both_numbers(
    catalogue: Catalogue, make_runner: Any, tmp_path: Path, scan: bytes
) -> None:
    _, job = upload(catalogue, tmp_path, scan)
    ended = make_runner(*KINDS, memory_budget_bytes=193 << 20).run(job.id)
    assert (ended.state, ended.error["code"]) == (JobState.FAILED, "over-budget")
    assert ended.error["needed"] > ended.error["allowed"] == 193 << 20


def test_embed_gives_cores_counts_and_a_certificate(
    catalogue: Catalogue, runner: Runner, volume: VolumeRecord, tmp_path: Path
) -> None:
    job = embedded(catalogue, runner, volume)
    result = job.result
    assert result is not None
    assert volume.stored is not None
    jsonschema.validate(result, catalogue.kind("embed").result_schema)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["volume_digest"] == volume.stored.digest
    assert 0 < result["share_read"] < 1
    assert result["unique_cubes"] <= result["cubes_read"] <= result["unique_cubes"] + QUICK["held_out"]
    assert 0 < result["bytes_read"] < volume.stored.stored_bytes
    assert result["certificate"]["held_out"] == QUICK["held_out"]
    assert (result["sampling"], result["oversampling"], result["sweeps"]) == ("block", 2.0, 1)
    assert max(result["set_sizes"]) == 2 * QUICK["rank"]
    (artifact,) = job.artifacts
    assert artifact.sha256 == result["cores_digest"]
    path = ArtifactStore(tmp_path / "artifacts").path(job.id, job.attempt, artifact.name)
    tensors, manifest = read_tensors(path)
    assert manifest["ranks"] == result["ranks"]
    assert tensors["core.0"].shape[-1] == result["ranks"][0]


def test_ranks_are_found_for_a_tolerance_within_what_was_announced(
    catalogue: Catalogue, runner: Runner, volume: VolumeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Progress] = []
    heartbeat = Lease.report
    monkeypatch.setattr(Lease, "report", lambda lease, p: (heard.append(p), heartbeat(lease, p)))
    asked = {"tolerance": 0.2, "rank": 12, "layout": "tt"}
    loose, tight = (
        embedded(catalogue, runner, volume, **asked | changes).result
        for changes in ({}, {"tolerance": 0.002})
    )
    assert loose is not None
    assert tight is not None
    jsonschema.validate(loose, catalogue.kind("embed").result_schema)
    assert (loose["tolerance"], loose["oversampling"], loose["sweeps"]) == (0.2, None, None)
    assert loose["converged"] is True
    assert max(loose["set_sizes"]) == max(loose["ranks"]) <= 12
    assert (tight["converged"], tight["oversampling"], max(tight["ranks"])) == (False, 2.0, 12)
    assert volume.stored is not None
    config = EmbedConfig(**{**QUICK, **asked, "encoder": "identity"})
    announced = estimate(volume.stored.grid.shape, 1, config)
    for result in (loose, tight):
        assert result["samples"] <= announced.samples
        assert result["cubes_read"] <= announced.cubes
    rounds = [p for p in heard if p.phase == "adapting"]
    assert rounds[0].done == 0
    assert all(p.done <= 20 for p in rounds)
    assert {p.unit for p in rounds} == {"rounds"}
    assert {p.total for p in rounds[1:]} <= {20, None}


def test_a_tolerance_that_could_take_too_much_memory_is_refused_before_it_reads(
    catalogue: Catalogue, make_runner: Any, volume: VolumeRecord
) -> None:
    assert volume.stored is not None
    given = EmbedConfig(**{**QUICK, "encoder": "identity", "layout": "tt", "rank": 8})
    found = replace(given, tolerance=0.01)
    needed, more = (estimate(volume.stored.grid.shape, 1, each).memory_bytes for each in (given, found))
    small = make_runner(*KINDS, memory_budget_bytes=(needed + more) // 2, cache_bytes=0)
    asked = {"layout": "tt", "rank": 8}
    assert embedded(catalogue, small, volume, **asked).state is JobState.SUCCEEDED
    ended = embedded(catalogue, small, volume, **asked, tolerance=0.01)
    assert ended.error is not None
    assert (ended.state, ended.error["code"]) == (JobState.FAILED, "over-budget")
    assert ended.error["needed"] == more > ended.error["allowed"] == (needed + more) // 2


def test_the_same_seed_gives_the_same_cores_to_the_last_bit(
    catalogue: Catalogue, runner: Runner, volume: VolumeRecord
) -> None:
    digests = [
        (embedded(catalogue, runner, volume, seed=seed).result or {})["cores_digest"] for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_dask_cluster_may_read_the_chunks(
    catalogue: Catalogue, runner: Runner, make_runner: Any, volume: VolumeRecord
) -> None:
    distributed = pytest.importorskip("distributed")
    here = embedded(catalogue, runner, volume).result
    with distributed.LocalCluster(
        n_workers=1, processes=False, dashboard_address=None, host="127.0.0.1", protocol="tcp"
    ) as cluster:
        there = embedded(
            catalogue, make_runner(*KINDS, dask_scheduler=cluster.scheduler_address), volume
        ).result
    assert here is not None
    assert there is not None
    assert there["cores_digest"] == here["cores_digest"]
    assert there["chunks_read"] is None


def test_an_embedding_over_the_budget_is_refused_before_it_reads(
    catalogue: Catalogue, make_runner: Any, volume: VolumeRecord
) -> None:
    ended = embedded(catalogue, make_runner(*KINDS, memory_budget_bytes=1 << 20), volume)
    assert ended.error is not None
    assert (ended.state, ended.error["code"], ended.error["allowed"]) == (
        JobState.FAILED,
        "over-budget",
        1 << 20,
    )


@pytest.mark.parametrize(
    "parameters",
    [
        {"encoder": "guess"},
        {"rank": 0},
        {"layout": "ring"},
        {"sampling": "voxel"},
        {"oversampling": 0.5},
        {"oversampling": 9},
        {"tolerance": 0},
        {"tolerance": 1},
        {"x": 1},
    ],
)
def test_bad_settings_fail_by_name(
    parameters: dict[str, Any], catalogue: Catalogue, runner: Runner, volume: VolumeRecord
) -> None:
    ended = embedded(catalogue, runner, volume, **parameters)
    assert ended.error is not None
    assert ended.error["code"] in ("invalid-parameters", "invalid-config")
    assert next(iter(parameters)) in ended.error["detail"]


def test_a_flipped_bit_closes_the_volume(
    catalogue: Catalogue, runner: Runner, volume: VolumeRecord, tmp_path: Path
) -> None:
    assert volume.store is not None
    shards = [path for path in (tmp_path / volume.store / "0" / "c").rglob("*") if path.is_file()]
    for shard in shards:
        content = bytearray(shard.read_bytes())
        for position in range(1000, len(content) - 20_000, 5_000):
            content[position] ^= 4
        shard.write_bytes(content)
    ended = embedded(catalogue, runner, volume)
    assert ended.error is not None
    assert (ended.state, ended.error["code"]) == (JobState.FAILED, "corrupt-volume")
    closed = catalogue.volume(volume.id)
    assert (closed.state, closed.error) == (VolumeState.QUARANTINED, ended.error)


def test_a_metadata_file_that_was_changed_closes_the_volume(
    catalogue: Catalogue, runner: Runner, volume: VolumeRecord, tmp_path: Path
) -> None:
    assert volume.store is not None
    with (tmp_path / volume.store / "zarr.json").open("a") as file:
        file.write(" ")
    ended = embedded(catalogue, runner, volume)
    assert ended.error is not None
    assert ended.error["code"] == "corrupt-volume"
    assert catalogue.volume(volume.id).state is VolumeState.QUARANTINED


def test_covered_voxels_are_those_in_the_union(volume: VolumeRecord, tmp_path: Path) -> None:
    assert volume.store is not None
    reader = Volume.open(tmp_path / volume.store).cube_reader()
    source = RecordedCubes(reader)
    assert source.covered_voxels() == 0
    origins = np.random.default_rng(0).integers(-9, SMALL[0], (300, 3))
    source.cubes(origins[:200], 9)
    source.cubes(origins[200:], 9)
    source.cubes(origins[:40] + 3, (1, 24, 2))
    reader.close()
    seen = np.zeros(reader.shape, bool)
    for z, y, x in origins:
        seen[max(z, 0) : max(z + 9, 0), max(y, 0) : max(y + 9, 0), max(x, 0) : max(x + 9, 0)] = True
    for z, y, x in origins[:40] + 3:
        seen[max(z, 0) : max(z + 1, 0), max(y, 0) : max(y + 24, 0), max(x, 0) : max(x + 2, 0)] = True
    assert source.covered_voxels() == seen.sum()


@pytest.mark.parametrize(
    ("tolerance", "words"), [(1, "maximum of 1"), (0, "minimum of 0"), ("low", "'number', 'null'")]
)
def test_a_tolerance_is_refused_with_its_limit(tolerance: object, words: str) -> None:
    schema = next(kind for kind in KINDS if kind.name == "embed").announcement().parameters_schema
    jsonschema.validate({"tolerance": None}, schema)
    jsonschema.validate({"tolerance": 0.5}, schema)
    with pytest.raises(jsonschema.ValidationError, match=words):
        jsonschema.validate({"tolerance": tolerance}, schema)


def test_announcements_hold_json_schemas() -> None:
    for kind in KINDS:
        announced = kind.announcement()
        for schema in (announced.parameters_schema, announced.result_schema):
            jsonschema.Draft202012Validator.check_schema(schema)
    internal = [kind.name for kind in KINDS if kind.internal]
    assert (internal, len({kind.name for kind in KINDS})) == (["ingest"], len(KINDS))
