"""`tomotrain compress` and `export`, and what the service shows of compressed volumes: with a real worker."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
import zarr
from house import House, open_house, wait_until
from PIL import Image
from problem_checks import assert_problem
from test_cli import RESULT
from test_cli_train import Run, assert_one_line, run, words_of

from service.client import Client, ServiceProblem
from service.fetching import FetchFailed, fetch_store
from service.watcher import Watcher
from storage.jobs import JobState
from storage.volume import Volume
from workers.jobs.base import AnyKind
from workers.jobs.compress import Compress
from workers.jobs.export import Export
from workers.jobs.ingest import Ingest
from workers.runner import Runner
from workers.settings import WorkerSettings

__all__ = ["run"]

SHAPE_XYZ = (24, 20, 66)
KINDS = (Ingest(), Compress(), Export())


def scan() -> bytes:
    """Smooth, with a little noise: (x, y, z) voxels of 1 x 2 x 3 mm."""
    x, y, z = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in SHAPE_XYZ)]
    body = 1000 * np.exp(-2 * (x**2 + y**2 + z**2)) + np.random.default_rng(0).normal(0, 5, SHAPE_XYZ)
    return bytes(nibabel.Nifti1Image(body.astype(np.int16), np.diag([1, 2, 3, 1])).to_bytes())


@contextmanager
def working(house: House, kinds: tuple[AnyKind, ...] = KINDS) -> Iterator[None]:
    """A worker that does what comes."""
    settings = WorkerSettings(
        data_root=house.root, device="cpu", memory_budget_bytes=2 << 30, retry_pause_s=0
    )
    runner, stop = Runner(house.catalogue, kinds, settings, worker="worker", device="cpu"), threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            for job in house.catalogue.jobs(state=JobState.QUEUED):
                runner.run(job.id)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service with a worker that compresses."""
    with open_house(tmp_path_factory.mktemp("archive")) as house:
        house.catalogue.announce("worker", [kind.announcement() for kind in KINDS], "cpu")
        with working(house):
            yield house


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "head.nii"
    path.write_bytes(scan())
    return path


@pytest.fixture(scope="module")
def small(archive: House, head: Path) -> dict[str, Any]:
    """A compressed volume, as the service shows it."""
    with Client(str(archive.http.base_url)) as client:
        accepted = client.upload(head)
        job = client.submit("compress", {"ratio": 12}, volume_id=accepted.volume.id)
        done = client.wait(job.id)
    assert done.result is not None
    answer: dict[str, Any] = archive.http.get(f"/v1/volumes/{done.result['volume_id']}").json()
    return answer


def url_of(house: House) -> str:
    return str(house.http.base_url)


def store_of(house: House, volume_id: str) -> Volume:
    record = house.catalogue.volume(volume_id)
    return Volume.open(house.root / str(record.store))


def test_compress_sends_the_scan_prints_what_was_lost_and_fetches_the_store(
    run: Run, archive: House, head: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "head.ome.zarr"
    answer = run("compress", head, "--ratio", "8", "--url", url_of(archive), "--output", folder)
    assert answer.returncode == 0, answer.stderr
    job = archive.catalogue.jobs(kind="compress", limit=1)[0]
    result: Any = job.result
    assert job.parameters["ratio"] == 8
    assert result["ratio"] >= 8
    words = words_of(answer.stdout)
    for part in [
        "wanted a ratio of 8",
        f"source {2 * 24 * 20 * 66:,} bytes of voxels (int16)",
        f"compressed {result['coded_bytes']:,} bytes, all levels of the pyramid",
        f"ratio {result['ratio']:.4g}",
        f"on disk {result['stored_bytes']:,} bytes with metadata",
        f"PSNR {result['psnr']:.2f} dB for a peak of {result['peak']:g}",
        f"SSIM {result['ssim']:.4f}, mean over slices",
        f"largest error {result['max_error']:g}, of any voxel",
        "compressor putt, step = ",
        f"volume {result['volume_id']}",
    ]:
        assert part in words
    there = store_of(archive, result["volume_id"])
    fetched = Volume.open(folder, result["volume_digest"])
    fetched.verify()
    np.testing.assert_array_equal(zarr.open_array(folder / "0", mode="r")[...], there.array(0)[...])
    assert [path.name for path in tmp_path.iterdir()] == ["head.ome.zarr"]

    count = len(archive.catalogue.volumes())
    again = run("compress", head, "--bound", "0", "--url", url_of(archive), "--json")
    told = json.loads(again.stdout)
    assert (told["job"]["result"]["psnr"], told["job"]["result"]["max_error"]) == (None, 0)
    assert told["volume"]["derived"]["volume_id"] == told["source"]["id"] == job.volume_id
    assert len(archive.catalogue.volumes()) == count + 1

    path = tmp_path / "again.nii.gz"
    answer = run("export", folder, "--url", url_of(archive), "--output", path)
    assert answer.returncode == 0, answer.stderr
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj).T, there.array(0)[...])


def test_export_of_a_volume(run: Run, archive: House, small: dict[str, Any], tmp_path: Path) -> None:
    told = store_of(archive, small["id"]).array(0)[...]
    nifti, packed = tmp_path / "a.nii.gz", tmp_path / "a.zip"
    answer = run("export", small["id"], "--url", url_of(archive), "--output", nifti)
    assert answer.returncode == 0, answer.stderr
    image = nibabel.load(nifti)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, told)
    np.testing.assert_array_equal(image.affine, np.diag([1, 2, 3, 1]))
    words = words_of(answer.stdout)
    assert "format nifti 1 voxels 66 x 20 x 24, int16" in words
    assert "note a job (compress) made these values" in words
    asked = ("--format", "ome-zarr", "--keep-codecs", "--json")
    answer = run("export", small["id"], "--url", url_of(archive), "--output", packed, *asked)
    assert json.loads(answer.stdout)["result"]["codecs"] == ["crc32c", "tomotrain.putt"]
    assert packed.stat().st_size < told.nbytes / 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "a.zip"]


def test_bad_options_end_with_one_line_before_anything_is_sent(
    run: Run, archive: House, head: Path, tmp_path: Path
) -> None:
    url = ("--url", url_of(archive))
    count = len(archive.catalogue.jobs(limit=100))
    for arguments, words in [
        (("--ratio", "2", "--psnr", "40"), ("--ratio and --psnr", "one of --ratio, --psnr and --bound")),
        (("--ratio", "1"), ("--ratio 1", "above 1")),
        (("--psnr", "nan"), ("--psnr nan", "above 0")),
        (("--bound", "-1"), ("--bound -1", "at least 0")),
        (("--output", str(tmp_path)), (str(tmp_path), "is there already")),
        (("--output", str(tmp_path / "none" / "a.zarr")), ("there is no folder",)),
    ]:
        assert_one_line(run("compress", head, *arguments, *url), *words)
    assert_one_line(run("compress", tmp_path / "no.nii", *url), "give the path of a scan")
    assert_one_line(run("export", head, *url, "--output", tmp_path / "a.nii"), "must end in .nii.gz")
    kept = ("--output", tmp_path / "a.nii.gz", "--keep-codecs")
    assert_one_line(run("export", head, *url, *kept), "add --format ome-zarr")
    assert run("export", head, *url, "--format", "analyze", "--output", tmp_path / "a").returncode == 2
    dicom = ("--output", tmp_path / "a.dcm", "--format", "dicom")
    assert_one_line(run("export", head, *url, *dicom), "must end in .zip")
    assert len(archive.catalogue.jobs(limit=100)) == count


def test_what_the_service_refuses_ends_with_one_line(
    run: Run, archive: House, head: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    url = ("--url", url_of(archive))
    refused = run("compress", head, "--compressor", "rar", *url)
    assert_one_line(refused, "/compressor", "'rar' is not one of")
    missing = "vol_00000000-0000-7000-8000-000000000000"
    assert_one_line(run("export", missing, *url, "--output", tmp_path / "a.nii.gz"), missing)
    assert_one_line(run("compress", head, "--compressor", "zstd", "--ratio", "1000", *url), "1000")
    assert list(tmp_path.iterdir()) == []


def test_a_compressed_volume_is_seen_like_any_other(archive: House, small: dict[str, Any]) -> None:
    """Slices of every level, and the store, from which zarr reads the same voxels."""
    volume, address = store_of(archive, small["id"]), f"/v1/volumes/{small['id']}"
    assert small["derived"]["kind"] == "compress"
    assert small["derived"]["settings"]["compressor"] == "putt"
    assert small["stored_bytes"] < 2 * np.prod(SHAPE_XYZ) / 2
    for level in range(small["levels"]):
        plane = volume.array(level)[5]
        low, high = int(plane.min()), int(plane.max())
        asked = {"level": level, "window_min": low, "window_max": high}
        answer = archive.http.get(f"{address}/slices/z/5", params=asked)
        assert answer.status_code == 200
        shown = np.asarray(Image.open(io.BytesIO(answer.content)))
        np.testing.assert_array_equal(shown, np.rint((plane - low) / (high - low) * 255).astype(np.uint8))
    manifest = archive.http.get(f"{address}/zarr/manifest.json").json()
    assert manifest["digest"] == small["digest"]
    for key, entry in manifest["objects"].items():
        assert archive.http.head(f"{address}/zarr/{key}").headers["content-length"] == str(entry["size"])


def altering(transport: httpx.BaseTransport, key: str) -> httpx.MockTransport:
    """A way to a service on which one object is changed."""

    def answer(request: httpx.Request) -> httpx.Response:
        found = transport.handle_request(request)
        content = found.read()
        if request.url.path.endswith(key):
            content = content[:-1] + bytes([content[-1] ^ 1])
        return httpx.Response(found.status_code, content=content)

    return httpx.MockTransport(answer)


@pytest.mark.parametrize("key", ["0/c/0/0/0", "manifest.json"])
def test_what_was_altered_on_the_way_is_not_kept(
    archive: House, small: dict[str, Any], tmp_path: Path, key: str
) -> None:
    from rich.console import Console

    quiet = Watcher(Console(file=io.StringIO()))
    with (
        httpx.HTTPTransport() as transport,
        Client(url_of(archive), transport=altering(transport, key)) as client,
        quiet,
    ):
        with pytest.raises(FetchFailed, match=r"sha-256|cannot be used"):
            fetch_store(client, client.volume(small["id"]), tmp_path / "a.zarr", quiet)
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "a.zarr.part").mkdir()
        with pytest.raises(FetchFailed, match="remove it"):
            fetch_store(client, client.volume(small["id"]), tmp_path / "a.zarr", quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr.part"]


@pytest.mark.parametrize(
    ("parameters", "code", "words"),
    [
        ({"compressor": "zstd", "ratio": 1000}, "unreachable-target", ("zstd cannot reach", "1000")),
        ({"compressor": "zfp", "bound": 0}, "unreachable-target", ("use putt, auto",)),
        ({"compressor": "tucker", "ratio": 9}, "unsuitable-compressor", ("pip install 'tomotrain[peers]'",)),
        ({"ratio": 2, "psnr": 40}, "invalid-parameters", ("one of ratio, psnr and bound",)),
    ],
)
def test_what_a_compressor_cannot_do_comes_as_a_problem_with_its_cause(
    archive: House,
    small: dict[str, Any],
    parameters: dict[str, Any],
    code: str,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorly.decomposition", None)
    source = small["derived"]["volume_id"]
    with Client(url_of(archive)) as client:
        job = client.submit("compress", parameters, volume_id=source)
        with pytest.raises(ServiceProblem):
            client.wait(job.id)
    body = assert_problem(archive.http.get(f"/v1/jobs/{job.id}/result"), 409, "job-failed")
    assert (body["cause"]["code"], body["cause"]["status"]) == (code, 422)
    for word in words:
        assert word in body["cause"]["detail"]


def test_analyze_takes_a_volume_and_sends_no_scan_twice(
    run: Run, house: House, tmp_path: Path, nifti: bytes
) -> None:
    known, path = house.ready(nifti), tmp_path / "a.nii"
    path.write_bytes(nifti)
    for asked in (known, path):
        thread = threading.Thread(target=embedding, args=(house,))
        thread.start()
        answer = run("analyze", asked, "--url", url_of(house), "--json")
        thread.join()
        assert json.loads(answer.stdout)["volume"]["id"] == known, answer.stderr
    assert len(house.catalogue.volumes()) == 1


def embedding(house: House) -> None:
    """Finishes the next job."""
    wait_until(lambda: house.catalogue.jobs(state=JobState.QUEUED) != [], 60)
    house.finish(house.catalogue.jobs(state=JobState.QUEUED)[0].id, RESULT)
