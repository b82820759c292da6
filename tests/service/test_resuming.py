"""Clients that resume: the real tus client, ours, and a process that was killed; what they send twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import zarr
from cutting_proxy import cutting
from house import House, open_house, wait_until
from tusclient.client import TusClient
from typer.testing import CliRunner

from service.cli import app as cli
from service.client import Client, ServiceProblem, ServiceUnreachable
from service.packing import NothingToSend
from storage.upload_sessions import UploadSessions

IN_FLIGHT = 1 << 19
"""What may be under way, in buffers, when a connection is cut."""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A service that takes 64 MB; clients remember in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("service.trying.FIRST_PAUSE_S", 0.02)
    with open_house(tmp_path / "root", max_upload_bytes=64 << 20) as opened:
        yield opened


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four megabytes of noise as NIfTI."""
    path = tmp_path_factory.mktemp("scan") / "noise.nii"
    voxels = np.random.default_rng(0).integers(0, 1000, (128, 128, 128), dtype=np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Zarr of 28 objects."""
    folder = tmp_path_factory.mktemp("zarr") / "scan.zarr"
    array = zarr.create_array(
        folder, shape=(48, 48, 48), chunks=(16, 16, 16), dtype="int16", dimension_names=("z", "y", "x")
    )
    array[:] = np.random.default_rng(0).integers(1, 1000, (48, 48, 48), dtype=np.int16)
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remembered(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "cache" / "tomotrain" / "uploads"
    return list(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_the_real_tus_client_resumes_after_a_cut(house: House, scan: Path, share: float) -> None:
    size = scan.stat().st_size
    with cutting(house.http.base_url.port, [int(size * share)]) as proxy, scan.open("rb") as file:
        uploader = TusClient(f"{proxy.url}/v1/tus").uploader(
            file_stream=file, retries=5, retry_delay=0.1, metadata={"filename": "noise.nii"}
        )
        uploader.upload()
    assert proxy.done_cuts == 1
    assert proxy.sent < size + IN_FLIGHT
    (volume,) = house.http.get("/v1/volumes").json()["volumes"]
    assert volume["source_sha256"] == sha256(scan)
    assert uploader.request.response_headers["x-volume-id"] == volume["id"]


def test_the_real_tus_client_sends_pieces_with_checksums(house: House, scan: Path) -> None:
    with cutting(house.http.base_url.port, [1_500_000]) as proxy, scan.open("rb") as file:
        TusClient(f"{proxy.url}/v1/tus").uploader(
            file_stream=file, chunk_size=1 << 20, retries=5, retry_delay=0.1, upload_checksum=True
        ).upload()
    (volume,) = house.http.get("/v1/volumes").json()["volumes"]
    assert volume["source_sha256"] == sha256(scan)


def test_our_client_resumes_after_many_cuts(house: House, scan: Path, tmp_path: Path) -> None:
    size, heard = scan.stat().st_size, []
    cuts = [300, *[size // 8] * 6, 900]
    with cutting(house.http.base_url.port, cuts) as proxy, Client(proxy.url) as client:
        accepted = client.upload_resumable(scan, name="noise", on_sent=heard.append)
    assert proxy.done_cuts == len(cuts)
    assert proxy.sent < size + len(cuts) * IN_FLIGHT
    assert (accepted.volume.name, accepted.volume.source_sha256) == ("noise", sha256(scan))
    assert heard[-1] == size
    assert remembered(tmp_path) == []


def test_a_large_file_goes_in_several_requests(
    house: House, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.resuming.REQUEST_BYTES", 1 << 20)
    with Client(str(house.http.base_url)) as client:
        assert client.upload_resumable(scan).volume.source_sha256 == sha256(scan)


def test_another_process_goes_on_where_one_was_ended(
    house: House, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = scan.stat().st_size
    with monkeypatch.context() as patched, cutting(house.http.base_url.port, [size // 2] * 3) as proxy:
        patched.setattr("service.trying.MOST_TRIES", 1)
        with Client(proxy.url) as client, pytest.raises(ServiceUnreachable):
            client.upload_resumable(scan)
        (note,) = remembered(tmp_path)
        assert note.read_text().startswith("/v1/tus/upl_")
        assert "noise" not in note.read_text() + note.name
        upload = note.read_text().replace("/v1/tus/", "/v1/uploads/")
        wait_until(lambda: house.http.get(upload).json()["received"] > size // 4)
        patched.setattr("service.trying.MOST_TRIES", 8)
        first: list[int] = []
        with Client(proxy.url) as client:
            accepted = client.upload_resumable(scan, on_sent=first.append)
    assert first[0] > size // 4
    assert first[-1] == size
    assert accepted.volume.source_sha256 == sha256(scan)
    assert proxy.sent < size + 4 * IN_FLIGHT


def test_without_resuming_or_when_it_is_gone_an_upload_begins_anew(
    house: House, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(house.http.base_url)
    with monkeypatch.context() as patched, cutting(house.http.base_url.port, [1_000_000] * 2) as proxy:
        patched.setattr("service.trying.MOST_TRIES", 1)
        for _ in range(2):
            with Client(proxy.url) as client, pytest.raises(ServiceUnreachable):
                client.upload_resumable(scan, resume=False)
        assert len(UploadSessions(house.catalogue.database).open_ids()) == 2
        address = remembered(tmp_path)[0].read_text()
        house.http.delete(address, headers={"Tus-Resumable": "1.0.0"})
        with Client(proxy.url) as client:
            assert client.upload_resumable(scan).volume.source_sha256 == sha256(scan)
    assert url


def test_tries_are_bounded(house: House, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.trying.MOST_TRIES", 3)
    with cutting(house.http.base_url.port, [350] * 100) as proxy, Client(proxy.url) as client:
        with pytest.raises(ServiceUnreachable):
            client.upload_resumable(scan)
        assert proxy.done_cuts <= 4


def test_what_the_service_refuses_is_not_tried_again(house: House, tmp_path: Path) -> None:
    wrong = tmp_path / "no scan"
    wrong.write_bytes(os.urandom(1000))
    with cutting(house.http.base_url.port, []) as proxy, Client(proxy.url) as client:
        with pytest.raises(ServiceProblem) as refusal:
            client.upload_resumable(wrong)
        assert refusal.value.problem.code == "unsupported-scan"
        assert proxy.sent < 4000


@pytest.mark.parametrize("connections", [1, 4])
def test_a_zarr_is_resumed_with_one_object_repeated_for_each_cut_at_most(
    house: House, store: Path, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = _counted_puts(monkeypatch)
    cuts = [12_000 + 1_500 * number for number in range(20)]
    with cutting(house.http.base_url.port, cuts) as proxy, Client(proxy.url) as client:
        accepted = client.upload_zarr(store, name="noise", connections=connections)
    objects = [path for path in store.rglob("*") if path.is_file()]
    assert proxy.done_cuts >= 3
    assert len(objects) <= len(put) <= len(objects) + proxy.done_cuts
    house.work(accepted.job.id)
    volume = house.http.get(f"/v1/volumes/{accepted.volume.id}").json()
    assert (volume["state"], volume["name"], volume["shape"]) == ("ready", "noise", [48, 48, 48])
    sent = zarr.open_array(store, mode="r")[:]
    assert volume["statistics"]["mean"] == pytest.approx(float(np.asarray(sent).mean()))


def _counted_puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that are sent, each as often as it is."""
    keys: list[str] = []
    send = Client._send_object

    def counted(self: Client, address: str, key: str, path: Path, sha256: str) -> None:
        keys.append(key)
        send(self, address, key, path, sha256)

    monkeypatch.setattr(Client, "_send_object", counted)
    return keys


def test_another_process_sends_what_is_missing_of_a_zarr(
    house: House, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = _counted_puts(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr("service.trying.MOST_TRIES", 1)
        with cutting(house.http.base_url.port, [100_000] * 50) as proxy, Client(proxy.url) as client:
            with pytest.raises(ServiceUnreachable):
                client.upload_zarr(store, connections=1)
            before = len(put)
            assert 1 < before < 28
            proxy.cuts.clear()
            patched.setattr("service.trying.MOST_TRIES", 8)
            accepted = client.upload_zarr(store, connections=1)
    assert len(put) <= 28 + 1
    assert accepted.volume.state == "validating"


def test_only_a_zarr_of_version_3_is_sent_object_by_object(house: House, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "labels").mkdir(parents=True)
    with Client(str(house.http.base_url)) as client:
        with pytest.raises(NothingToSend, match=r"no zarr\.json"):
            client.upload_zarr(other)
        (other / "zarr.json").write_bytes((store / "zarr.json").read_bytes())
        (other / "labels" / "zarr.json").write_text("{}")
        with pytest.raises(NothingToSend, match="labels"):
            client.upload_zarr(other)


def test_the_command_sends_files_and_folders(house: House, scan: Path, store: Path) -> None:
    url = str(house.http.base_url)
    answer = CliRunner().invoke(cli, ["upload", str(scan), str(store), "--url", url])
    assert answer.exit_code == 0, answer.output
    volumes = {volume["id"]: volume for volume in house.http.get("/v1/volumes").json()["volumes"]}
    lines = [line.split("  ") for line in answer.stdout.splitlines() if line.startswith("vol_")]
    assert [path for _, path in lines] == [str(scan), str(store)]
    assert {volume for volume, _ in lines} == set(volumes)
    assert volumes[lines[0][0]]["source_sha256"] == sha256(scan)
