"""The dashboard as a person sees it, in a real browser (Chromium)."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from errands import offer
from house import EMBED, INTERNAL, House, wait_until
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.compressed import compressed

from storage.artifacts import ArtifactStore
from storage.ids import derived_id
from storage.jobs import JobKind, Progress, Queue
from storage.records import Derivation, DerivedVolume
from storage.tidy import store_key
from storage.volume import Volume

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


class Watched:
    """A page, and whatever went wrong in it."""

    def __init__(self, page: Page, house: House) -> None:
        self.page, self.house = page, house
        self.troubles: list[str] = []
        self.statuses: list[tuple[str, int]] = []
        page.on("console", lambda message: self.troubles.append(message.text))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("request", self._only_ours)
        page.on("response", lambda answer: self.statuses.append((answer.url, answer.status)))
        page.goto(str(house.http.base_url))

    def _only_ours(self, request: object) -> None:
        url = request.url  # type: ignore[attr-defined]
        if not url.startswith(str(self.house.http.base_url)):
            self.troubles.append(f"asked another host: {url}")


@pytest.fixture
def watched(browser: Browser, house: House) -> Iterator[Watched]:
    page = browser.new_page()
    shown = Watched(page, house)
    yield shown
    page.close()


@needs_chromium
def test_from_an_empty_page_to_a_result(watched: Watched, tmp_path: Path, nifti: bytes) -> None:
    page, house = watched.page, watched.house
    expect(page.locator("#no-scans")).to_be_visible()
    expect(page.locator("#no-jobs")).to_be_visible()
    expect(page.locator("#health")).to_have_text("ready")

    scan = tmp_path / "köpfchen <b>.nii"
    scan.write_bytes(nifti)
    page.set_input_files("#file", scan)
    card = page.locator("#scans .card")
    expect(card.locator("h3")).to_have_text("scan.nii")  # names of files may be those of patients
    expect(card.locator(".chip")).to_have_text("validating")

    (volume,) = house.catalogue.volumes()
    house.work(volume.ingest_job)
    expect(card.locator(".chip")).to_have_text("ready")
    expect(card).to_contain_text("12 \u00d7 16 \u00d7 20 (z, y, x)")
    expect(card).to_contain_text("3 \u00d7 2 \u00d7 1 mm")
    picture = card.locator("img")
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 0
    card.get_by_role("button", name="coronal").click()
    expect(picture).to_have_attribute("src", f"/v1/volumes/{volume.id}/slices/y/8?level=0&size=512")

    card.get_by_role("button", name="Embed").click()
    row = page.locator("#jobs .row").first
    expect(row.locator("h3")).to_contain_text("embed")
    (job, _) = house.catalogue.jobs()
    claimed = house.catalogue.claim(job.id, "worker", 60)
    assert claimed is not None
    house.catalogue.heartbeat(job.id, claimed.attempt, 60, Progress("sampling", 7, 60, "bonds"))
    expect(row).to_contain_text("sampling: 7 of 60 bonds")
    expect(row.locator("progress")).to_have_js_property("value", 7)
    house.catalogue.finish(job.id, claimed.attempt, {"share_read": 0.5, "bytes_read": 2_500_000})
    row.locator("summary").click()
    expect(row).to_contain_text("50 %")
    expect(row).to_contain_text("2.5 MB")
    assert watched.troubles == []


@needs_chromium
def test_a_label_is_text(watched: Watched, nifti: bytes) -> None:
    watched.house.send(nifti, params={"name": "köpfchen <b>"})
    expect(watched.page.locator("#scans .card h3")).to_have_text("köpfchen <b>")
    assert watched.troubles == []


@needs_chromium
def test_a_job_that_waits_shows_its_place(watched: Watched) -> None:
    page, house = watched.page, watched.house
    offer(house)
    done, first, second = (house.catalogue.submit("errand", {}) for _ in range(3))
    house.finish(done.id, {})
    expect(page.locator(f"#{first.id}")).to_contain_text("the next, begins in about")
    expect(page.locator(f"#{second.id}")).to_contain_text("1 ahead, begins in about")
    house.finish(first.id, {})
    expect(page.locator(f"#{second.id}")).to_contain_text("the next, begins in about")
    assert watched.troubles == []


MODEL = {
    "notice": "For research. Not a medical device.",
    "regressor": "cpic",
    "target_name": "age",
    "covariates": ["sex"],
    "metrics": {"rmse": {"value": 4.25, "low": 3.5, "high": None, "spread": None}},
    "warnings": [{"code": "few-scans", "text": "many numbers for 12 scans"}],
    "intervals": [{"level": 0.9, "threshold": 7.5, "needed": 9}],
}
ANSWER = {
    "notice": MODEL["notice"],
    "target_name": "age",
    "target_unit": "years",
    "value": 63.25,
    "class_name": None,
    "intervals": [
        {"level": 0.9, "low": 55.5, "high": 70.5},
        {"level": 0.95, "low": None, "high": None},
    ],
    "warnings": [],
}


def learning(name: str, *, needs_volume: bool, required: list[str]) -> JobKind:
    return JobKind(
        name=name,
        version="1",
        title=name.title(),
        description="For tests",
        queue=Queue.TRAIN,
        parameters_schema={"type": "object", "required": required},
        result_schema={"type": "object"},
        needs_volume=needs_volume,
    )


@needs_chromium
def test_a_model_is_asked_and_its_answer_is_shown_with_its_notice(watched: Watched, nifti: bytes) -> None:
    page, house = watched.page, watched.house
    kinds = [
        learning("train", needs_volume=False, required=["rows"]),
        learning("predict", needs_volume=True, required=["model"]),
    ]
    house.catalogue.announce("worker", [EMBED, INTERNAL, *kinds], "cpu")
    house.ready(nifti)
    rows = [{"volume_id": f"vol_{i}", "patient": f"p{i}", "target": i} for i in range(500)]
    trained = house.catalogue.submit("train", {"rows": rows})
    house.finish(trained.id, MODEL)
    page.reload()
    card = page.locator("#scans .card")
    expect(card.get_by_role("button", name="Embed")).to_be_visible()
    expect(card.get_by_role("button", name="Predict")).to_be_hidden()
    model = page.locator(f"#{trained.id}")
    expect(model.locator(".answer")).to_have_text("cpic: rmse 4.25 (95 %: 3.5 to not known)")
    expect(model.locator(".warning")).to_have_text("⚠ many numbers for 12 scans")
    expect(model.locator(".notice")).to_have_text("For research. Not a medical device.")

    card.locator("summary").click()
    expect(card.locator("select")).to_contain_text("age by cpic")
    card.locator("input[name=sex]").fill("1")
    card.get_by_role("button", name="Predict").click()
    wait_until(lambda: house.catalogue.jobs(kind="predict") != [])
    (job,) = house.catalogue.jobs(kind="predict")
    assert job.parameters == {"model": trained.id, "covariates": {"sex": 1}}
    claimed = house.catalogue.claim(job.id, "worker", 60)
    assert claimed is not None
    buffer = io.BytesIO()
    Image.new("RGB", (900, 384)).save(buffer, "PNG")
    writer = ArtifactStore(house.root / "artifacts").writer(job.id, claimed.attempt)
    picture = writer.write_bytes("saliency.png", buffer.getvalue(), "image/png")
    house.catalogue.finish(job.id, claimed.attempt, ANSWER, artifacts=(picture,))
    row = page.locator(f"#{job.id}")
    expect(row.locator(".answer")).to_have_text("age: 63.25 years (90 %: 55.5 to 70.5)")
    expect(row.locator(".notice")).to_be_visible()
    expect(row.locator("img.artifact")).to_have_js_property("naturalWidth", 900)
    row.locator("summary").click()
    expect(row).to_contain_text("level 0.9, low 55.5, high 70.5")
    assert watched.troubles == []


SMALLER = {
    **MODEL,
    "regressor": "resnet3d",
    "target_unit": "years",
    "pcr": 3.0125,
    "metrics": {
        "rmse": {
            "before": {"value": 4.25, "low": 3.5, "high": 5.0},
            "after": {"value": 4.375, "low": 3.5, "high": 5.0},
            "difference": {"value": 0.125, "low": -0.25, "high": 0.5},
        }
    },
    "agreement": {"of": "mean", "largest_change": 1.5, "mean": 0.0, "lower": -1.0, "upper": 1.0},
    "latency": {"before": {"p50_s": 0.25, "p95_s": 0.5}, "after": {"p50_s": 0.125, "p95_s": 0.5}},
    "judged_rows": [3, 1],
}


@needs_chromium
def test_a_smaller_model_stands_beside_its_parent_and_is_asked_like_it(
    watched: Watched, nifti: bytes
) -> None:
    page, house = watched.page, watched.house
    kinds = [
        learning("train", needs_volume=False, required=["rows"]),
        learning("compress-model", needs_volume=False, required=["model", "rows"]),
        learning("predict", needs_volume=True, required=["model"]),
    ]
    house.catalogue.announce("worker", [EMBED, INTERNAL, *kinds], "cpu")
    house.ready(nifti)
    trained = house.catalogue.submit("train", {"rows": []})
    house.finish(trained.id, MODEL)
    smaller = house.catalogue.submit("compress-model", {"rows": [], "model": trained.id})
    buffer = io.BytesIO()
    Image.new("RGB", (720, 480)).save(buffer, "PNG")
    writer = ArtifactStore(house.root / "artifacts").writer(smaller.id, 1)
    picture = writer.write_bytes("agreement.png", buffer.getvalue(), "image/png")
    house.finish(smaller.id, {**SMALLER, "model": trained.id}, artifacts=(picture,))
    page.reload()
    row = page.locator(f"#{smaller.id}")
    expect(row.locator(".answer")).to_have_text(
        "resnet3d: PCR 3.013 · rmse 4.25 → 4.375 (changed by -0.25 to 0.5, 95 %) · "
        "largest change of an answer 1.5 years"
    )
    expect(row.locator(".notice")).to_be_visible()
    expect(row.get_by_role("link", name="a model on this page")).to_have_attribute("href", f"#{trained.id}")
    expect(row.locator("img.artifact")).to_have_js_property("naturalWidth", 720)
    row.locator("summary").click()
    expect(row).to_contain_text("latency: before: median")
    expect(row).to_contain_text("250 ms")
    expect(row).not_to_contain_text("judged rows")

    card = page.locator("#scans .card")
    card.locator("summary").click()
    expect(card.locator("option")).to_have_count(2)
    card.locator("select").select_option(value=smaller.id)
    expect(card.locator(f"option[value='{smaller.id}']")).to_contain_text("age by resnet3d (PCR 3.013)")
    card.locator("input[name=sex]").fill("0")
    card.get_by_role("button", name="Predict").click()
    wait_until(lambda: house.catalogue.jobs(kind="predict") != [])
    assert house.catalogue.jobs(kind="predict")[0].parameters["model"] == smaller.id
    assert watched.troubles == []


COMPRESSED = {
    "ratio": 20.5,
    "psnr": 31.25,
    "peak": 252.0,
    "max_error": 8.5,
    "level_bytes": [108_968, 3_853],
    "stored_bytes": 141_515,
    "passes": [{"number": None, "ratio": 20.5}],
    "mb_s": 2.5,
    "seconds": 1.5,
    "source_digest": "sha256:beef",
}


def on_volumes(name: str, **properties: object) -> JobKind:
    kind = learning(name, needs_volume=True, required=[])
    return replace(kind, parameters_schema={"type": "object", "properties": properties})


def publish_compressed(house: House, job_id: str) -> str:
    """The id of the volume that a compression makes of its own one."""
    job = house.catalogue.claim(job_id, "worker", 60)
    assert job is not None
    source = house.catalogue.volume(str(job.volume_id))
    volume_id = derived_id(job.id)
    store = store_key(volume_id, job.attempt)
    (house.root / store).parent.mkdir(parents=True)
    made = compressed(Volume.open(house.root / str(source.store)), house.root / store)
    derivation = Derivation(source.id, made.stored.digest, "compress", {"bound": 8.5, "ratio": None})
    stored = replace(made.stored, derived=derivation)
    result = {**COMPRESSED, "volume_id": volume_id}
    derived = DerivedVolume("small", stored, store)
    house.catalogue.finish(job.id, job.attempt, result, derived=derived)
    return volume_id


@needs_chromium
def test_a_compressed_volume_stands_beside_its_source(watched: Watched, nifti: bytes) -> None:
    page, house = watched.page, watched.house
    compressors = {"enum": ["putt", "zfp"], "default": "putt"}
    kinds = [
        on_volumes("compress", compressor=compressors, bound={}),
        on_volumes("decompress"),
        on_volumes("complete"),
    ]
    house.catalogue.announce("worker", [EMBED, INTERNAL, *kinds], "cpu")
    source = house.ready(nifti)
    page.reload()
    card = page.locator(f"#{source}")
    expect(card.get_by_role("button", name="Embed")).to_be_visible()
    for without_use in ("Complete", "Decompress"):
        expect(card.get_by_role("button", name=without_use, exact=True)).to_have_count(0)
    card.get_by_role("button", name="coronal").click()
    card.locator("summary").click()
    card.get_by_label("compressed to").select_option("bound")
    card.get_by_label("how much").fill("8.5")
    card.get_by_label("compressor").select_option("zfp")
    card.get_by_role("button", name="Compress").click()
    wait_until(lambda: house.catalogue.jobs(kind="compress") != [])
    (job,) = house.catalogue.jobs(kind="compress")
    assert job.parameters == {"bound": 8.5, "compressor": "zfp"}

    small = publish_compressed(house, job.id)
    row, made = page.locator(f"#{job.id}"), page.locator(f"#{small}")
    expect(row.locator(".answer")).to_have_text(
        "20.5:1 · PSNR 31.25 dB for a peak of 252 · largest error 8.5"
    )
    expect(row.get_by_role("link", name="small")).to_have_attribute("href", f"#{small}")
    expect(made).to_contain_text("by compress of scan: bound 8.5")
    expect(made.get_by_role("link", name="scan")).to_have_attribute("href", f"#{source}")
    expect(made.locator("img")).to_have_js_property("complete", True)
    assert made.locator("img").evaluate("image => image.naturalWidth") > 0
    expect(made.get_by_role("button", name="Decompress", exact=True)).to_be_visible()
    expect(card.get_by_role("link", name="small")).to_have_attribute("href", f"#{small}")
    expect(card.get_by_role("button", name="coronal")).to_have_attribute("aria-pressed", "true")
    row.locator("summary").click()
    for words in ("109 kB, 3.853 kB", "2.5 MB/s", "1.5 s", "setting none, ratio 20.5:1"):
        expect(row.locator("details")).to_contain_text(words)
    for raw in (small, source, "sha256:", "null"):
        expect(row).not_to_contain_text(raw)
    assert watched.troubles == []


@pytest.mark.slow
@needs_chromium
def test_it_polls_politely(watched: Watched, nifti: bytes) -> None:
    watched.house.send(nifti)
    expect(watched.page.locator("#scans .card h3")).to_have_count(1)
    expect(watched.page.locator("#jobs .row")).to_have_count(1)
    watched.statuses.clear()
    wait_until(lambda: bool(watched.page.wait_for_timeout(100)) or len(watched.statuses) >= 4)
    asked = [status for url, status in watched.statuses if "page_size" in url]
    assert set(asked) == {304}


@needs_chromium
def test_errors_are_said_in_words(watched: Watched, tmp_path: Path, nifti: bytes) -> None:
    page, house = watched.page, watched.house
    text = tmp_path / "notes.nii"
    text.write_text("no scan " * 100)
    page.set_input_files("#file", text)
    expect(page.locator("#uploads .problem")).to_contain_text("of a kind that is not read")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator("#uploads .card")).to_have_count(0)

    accepted = house.send(nifti)
    job = house.catalogue.claim(accepted["job"]["id"], "worker", 60)
    assert job is not None
    error = {"code": "invalid-scan", "detail": "the file ends early", "retryable": False}
    house.catalogue.fail(job.id, job.attempt, error)
    expect(page.locator("#scans .problem")).to_contain_text("the file ends early")
    expect(page.locator("#jobs .problem")).to_contain_text("damaged or inconsistent")


@pytest.mark.slow
@needs_chromium
def test_a_service_that_is_away_is_said_and_comes_back(watched: Watched, nifti: bytes) -> None:
    page = watched.page
    expect(page.locator("#health")).to_have_text("ready")
    page.route("**/v1/**", lambda route: route.abort())
    expect(page.locator("#trouble")).to_contain_text("does not answer", timeout=15_000)
    page.unroute("**/v1/**")
    expect(page.locator("#trouble")).to_be_hidden(timeout=15_000)
    expect(page.locator("#health")).to_have_text("ready")


def test_pages_carry_a_strict_policy(house: House) -> None:
    for path in ("/", "/dashboard/dashboard.js", "/dashboard/dashboard.css", "/favicon.ico"):
        answer = house.http.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        known = {"If-None-Match": answer.headers["etag"]}
        assert house.http.get(path, headers=known).status_code == 304
    page = house.http.get("/").text
    assert "<style" not in page
    assert "style=" not in page
    assert page.count("<script") == 1
