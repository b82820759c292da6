"""Scans with thirty identifiers of nobody's, in every place that may hold one; some of them broken."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from pydicom import dcmwrite
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

PATIENT = {
    "PatientName": "Qwandt^Xaverina",
    "PatientID": "QX-4711-07",
    "OtherPatientNames": "Qwandtova^Xava",
    "PatientBirthDate": "19370213",
    "PatientBirthTime": "031907",
    "PatientAddress": "Zwirbelgasse 17",
    "PatientTelephoneNumbers": "+49-30-5550199",
    "PatientMotherBirthName": "Yxenburg^Ottla",
    "PatientInsurancePlanCodeSequence": "INSQ-77120",
    "PatientComments": "complains of Grummelweh",
    "MilitaryRank": "Obrist Quax",
    "EthnicGroup": "Sorbisch-Qx",
    "Occupation": "Turmwaechterin",
    "ReferringPhysicianName": "Drumbold^Ignaz",
    "PerformingPhysicianName": "Hexleitner^Vroni",
    "OperatorsName": "Pfnuer^Alois",
    "InstitutionName": "Spital Quellenhain",
    "InstitutionAddress": "Am Wolkenrain 3",
    "InstitutionalDepartmentName": "Radiologie Turm Q",
    "StationName": "QSTATION9",
    "DeviceSerialNumber": "SN-QX-90817",
    "AccessionNumber": "ACC7719003",
    "StudyID": "STQ8812",
    "StudyDate": "20190307",
    "StudyTime": "174219",
    "StudyDescription": "Kontrolle nach Sturz Qwandt",
    "SeriesDescription": "ax T1 Qwandt X",
    "ProtocolName": "Schaedel Xaverina",
    "RequestedProcedureDescription": "Zustand n. Quetschung",
    "ImageComments": "Bild der Frau Qwandt",
}
UIDS = {
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.11172913371",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.22272913372",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.33372913373",
    "MediaStorageSOPInstanceUID": "1.2.826.0.1.3680043.8.498.44472913374",
}
ELSEWHERE = {
    "private": "PRIVQ-Geheim-01",
    "nested": "Nestling^Quirin",
    "private nested": "PRIVQ-Nest-02",
    "file": "Qwandt_Xaverina_1937",
    "folder": "Ordner-Qwandt",
    "member": "Bild_Qwandt",
    "code": "QCODEX",
    "number": "QZAHL77",
}
TOKENS = {**PATIENT, **UIDS, **ELSEWHERE}
HEADER_NAME = f"attachment; filename*=UTF-8''{ELSEWHERE['file']}.nii"
PIXELS = np.arange(6 * 10 * 12, dtype=np.int16).reshape(6, 10, 12)


def instance(place: int, uid: str | None = None, **changes: Any) -> Dataset:
    """One MR slice with every identifier."""
    dataset = Dataset()
    for keyword, value in PATIENT.items():
        if not keyword.endswith("Sequence"):
            setattr(dataset, keyword, value)
    code = Dataset()
    code.CodeValue, code.CodeMeaning = PATIENT["PatientInsurancePlanCodeSequence"], ELSEWHERE["nested"]
    dataset.PatientInsurancePlanCodeSequence = [code]
    request = Dataset()
    request.RequestingPhysician, request.AccessionNumber = ELSEWHERE["nested"], PATIENT["AccessionNumber"]
    block = request.private_block(0x0011, "QUELL", create=True)
    block.add_new(0x01, "LO", ELSEWHERE["private nested"])
    dataset.RequestAttributesSequence = [request]
    dataset.private_block(0x0009, "QUELL", create=True).add_new(0x10, "LO", ELSEWHERE["private"])
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = uid or f"{UIDS['MediaStorageSOPInstanceUID']}.{place}"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, keyword, UIDS[keyword])
    dataset.Modality, dataset.EchoTime, dataset.BurnedInAnnotation = "MR", "30", "YES"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2.0 * place], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness, dataset.FlipAngle = [1.5, 1.25], 2, 30
    dataset.Rows, dataset.Columns = PIXELS.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.PixelData = PIXELS[place].tobytes()
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def part10(dataset: Dataset) -> bytes:
    """A PS3.10 file."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.preamble = b"\0" * 128
    file = io.BytesIO()
    dcmwrite(file, dataset)
    return file.getvalue()


def with_text_for(keyword_tag: tuple[int, int], text: str) -> bytes:
    """A sound slice whose element has a text where its kind has none: an explicit VR of LO."""
    content = part10(instance(0))
    head = struct.pack("<HH", *keyword_tag)
    at = content.index(head + b"DS")
    length = struct.unpack_from("<H", content, at + 6)[0]
    padded = text.encode() + b" " * (len(text) % 2)
    return content[: at + 4] + b"LO" + struct.pack("<H", len(padded)) + padded + content[at + 8 + length :]


def multi_frame() -> bytes:
    """An enhanced instance: identifiers at the top, in functional groups, and in private groups there."""
    dataset = instance(0, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None)
    dataset.NumberOfFrames, dataset.PixelData = len(PIXELS), PIXELS.tobytes()
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [1.5, 1.25], 2
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence, frames = [shared], []
    for place in range(len(PIXELS)):
        frame, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 2.0 * place]
        content.FrameComments = ELSEWHERE["nested"]
        content.private_block(0x0021, "QUELL", create=True).add_new(0x01, "LO", ELSEWHERE["private nested"])
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return part10(dataset)


def packed(files: dict[str, bytes]) -> bytes:
    """A zip, its files in a folder that is called by the patient."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.comment = PATIENT["PatientComments"].encode()
        for name, data in files.items():
            archive.writestr(f"{ELSEWHERE['folder']}/{name}", data)
    return content.getvalue()


def member(place: int) -> str:
    return f"{ELSEWHERE['member']}_{place}.dcm"


def series(**changes: Any) -> dict[str, bytes]:
    """The files of a series; `changes` are those of its third slice."""
    return {
        member(place): part10(instance(place, **(changes if place == 2 else {})))
        for place in range(len(PIXELS))
    }


def nifti(*, gzipped: bool = False, cut: int = 0, **fields: Any) -> bytes:
    """A NIfTI-1 file with identifiers in all of its free text and in extensions."""
    image = nib.Nifti1Image(PIXELS.T, np.diag([1.25, 1.5, 2, 1]))
    every = "|".join(PATIENT.values()).encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", every))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("dicom", part10(instance(0))[132:]))
    image.header["descrip"] = "|".join([PATIENT["PatientName"], PATIENT["StudyDescription"]])[:79]
    image.header["aux_file"] = PATIENT["PatientID"]
    image.header["db_name"] = PATIENT["InstitutionName"][:17]
    image.header["intent_name"] = PATIENT["StationName"]
    content = bytearray(image.to_bytes())
    for offset, value in fields.values():
        content[offset : offset + len(value)] = value
    whole = bytes(content[: len(content) - cut])
    if not gzipped:
        return whole
    file = io.BytesIO()
    with gzip.GzipFile(ELSEWHERE["file"], "wb", fileobj=file) as stream:
        stream.write(whole)
    return file.getvalue()


def nrrd(*lines: str, cut: int = 0) -> bytes:
    """An NRRD file with identifiers in comments, keys and values, content and labels."""
    head = [
        "NRRD0005",
        *(f"# {name}: {value}" for name, value in PATIENT.items()),
        *(lines or ("encoding: raw",)),
        "type: short",
        "dimension: 3",
        "endian: little",
        f"sizes: {' '.join(map(str, PIXELS.shape[::-1]))}",
        "space: left-posterior-superior",
        "space directions: (1.25,0,0) (0,1.5,0) (0,0,2)",
        "space origin: (0,0,0)",
        f"content: {PATIENT['StudyDescription']}",
        f'labels: "{PATIENT["PatientName"]}" "{PATIENT["PatientID"]}" "z"',
        *(f"{name}:={value}" for name, value in TOKENS.items()),
        f"{ELSEWHERE['private']}:={ELSEWHERE['nested']}",
    ]
    data = PIXELS.tobytes()
    return "\n".join(head).encode() + b"\n\n" + data[: len(data) - cut]


def zarr(**changes: Any) -> bytes:
    """A zip of an OME-Zarr with identifiers among its attributes; `changes` are those of the array."""
    array: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(PIXELS.shape),
        "data_type": "int16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(PIXELS.shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "dimension_names": ["z", "y", "x"],
        "attributes": {"patient": TOKENS},
        **changes,
    }
    image = {
        "version": ELSEWHERE["code"],
        "name": PATIENT["PatientName"],
        "axes": [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"],
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [2, 1.5, 1.25]}]}
        ],
        "metadata": TOKENS,
    }
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "ome": {"version": ELSEWHERE["number"], "multiscales": [image]},
            "tomotrain": {"derived": {"kind": ELSEWHERE["member"]}, "metadata": TOKENS},
            "omero": {"name": PATIENT["PatientName"]},
        },
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in (("zarr.json", group), ("0/zarr.json", array)):
            archive.writestr(f"{ELSEWHERE['folder']}/{name}", json.dumps(text))
        archive.writestr(f"{ELSEWHERE['folder']}/0/c/0/0/0", PIXELS.tobytes())
    return content.getvalue()


def sound() -> dict[str, bytes]:
    """Scans that become volumes."""
    with disable_value_validation():
        return _sound()


def broken() -> dict[str, bytes]:
    """Scans that are refused, at once or when they are read."""
    with disable_value_validation():
        return _broken()


def _sound() -> dict[str, bytes]:
    return {
        "DICOM file": part10(instance(0)),
        "DICOM zip": packed(series()),
        "DICOM zip, with others": packed({**series(), "Qwandt-Bericht.txt": b"x", "x/Bericht Qwandt": b"y"}),
        "DICOM multi-frame": multi_frame(),
        "DICOM, text for a number": with_text_for((0x0018, 0x1314), ELSEWHERE["number"]),
        "DICOM, wrong code": part10(instance(0, BodyPartExamined=PATIENT["PatientName"])),
        "NIfTI": nifti(),
        "NIfTI, gzipped": nifti(gzipped=True),
        "NRRD": nrrd(),
        "OME-Zarr": zarr(),
    }


def _broken() -> dict[str, bytes]:
    spoilt = bytearray(packed(series()))
    spoilt[spoilt.rindex(PIXELS[3].tobytes()) + 9] ^= 1
    other = part10(instance(2, SeriesInstanceUID=f"{UIDS['SeriesInstanceUID']}.9"))
    escape = io.BytesIO()
    with zipfile.ZipFile(escape, "w") as archive:
        archive.writestr(f"../{ELSEWHERE['folder']}/{member(1)}", b"x")
    return {
        "DICOM, cut": part10(instance(0))[:-100],
        "DICOM, cut in the header": part10(instance(0))[:900],
        "DICOM, text for a mark": with_text_for((0x0018, 0x0081), ELSEWHERE["number"]),
        "DICOM, text for spacing": with_text_for((0x0028, 0x0030), ELSEWHERE["number"]),
        "DICOM, text for a slope": part10(instance(0)).replace(b"(\x00\x30\x00", b"(\x00\x53\x10"),
        "DICOM, text for position": with_text_for((0x0020, 0x0032), ELSEWHERE["nested"]),
        "DICOM, foreign syntax": part10(instance(0)).replace(
            b"1.2.840.10008.1.2.1\0", UIDS["StudyInstanceUID"].encode()[:20]
        ),
        "DICOM, no pixels": packed({member(1): part10(instance(1, PixelData=None, Rows=None, Columns=None))}),
        "DICOM, of two sizes": packed(series(Rows=5, PixelData=PIXELS[2, :5].tobytes())),
        "DICOM, slope 0": packed(series(RescaleSlope=0, RescaleIntercept=0)),
        "DICOM, not parallel": packed(series(ImageOrientationPatient=[0, 1, 0, 0, 0, 1])),
        "DICOM, a gap": packed({n: data for n, data in series().items() if n != member(3)}),
        "DICOM, two series": packed({**series(), member(9): other}),
        "DICOM, contradiction": packed(
            {**series(), member(9): part10(instance(2, StudyID="x", EchoTime="31"))}
        ),
        "DICOM, odd modality": packed(
            {
                **series(),
                member(9): part10(instance(2, Modality=ELSEWHERE["nested"], SeriesInstanceUID="1.2")),
            }
        ),
        "zip, spoilt": bytes(spoilt),
        "zip, another name inside": packed(series()).replace(b"Bild_Qwandt_3", b"Bold_Qwandt_3", 1),
        "zip, escaping": escape.getvalue(),
        "zip, nothing of ours": packed({"Brief an Qwandt.txt": b"x"}),
        "NIfTI, cut": nifti(cut=50),
        "NIfTI, gzipped and cut": nifti(gzipped=True)[:-200],
        "NIfTI, bad datatype": nifti(datatype=(70, struct.pack("<h", 999))),
        "NRRD, odd encoding": nrrd(f"encoding: {PATIENT['PatientName']}"),
        "NRRD, odd kinds": nrrd("encoding: raw", f"kinds: domain domain {ELSEWHERE['code']}"),
        "NRRD, doubled": nrrd("encoding: raw", f"space units: {PATIENT['PatientID']}", "encoding: raw"),
        "NRRD, no field": nrrd("encoding: raw", PATIENT["StudyDescription"]),
        "NRRD, odd number": nrrd("encoding: raw", f"spacings: {PATIENT['AccessionNumber']} 1 1"),
        "NRRD, cut": nrrd(cut=20),
        "OME-Zarr, odd type": zarr(data_type=ELSEWHERE["code"]),
        "OME-Zarr, odd shape": zarr(shape=[PATIENT["PatientID"], 2, 3]),
        "OME-Zarr, odd grid": zarr(chunk_grid={"name": PATIENT["PatientName"]}),
        "OME-Zarr, odd codec": zarr(codecs=[{"name": PATIENT["PatientName"]}]),
        "OME-Zarr, odd scale": zarr(chunk_grid={"name": "regular", "configuration": PATIENT["PatientID"]}),
        "nothing": "\n".join(PATIENT.values()).encode(),
    }


def contents(body: bytes) -> Iterator[bytes]:
    """Bytes, and what is packed in them, in every packing that is used here."""
    yield body
    if body[:2] == b"\x1f\x8b":
        with contextlib.suppress(EOFError):
            yield from contents(gzip.decompress(body))
    if body[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            for name in archive.namelist():
                yield name.encode()
                with contextlib.suppress(zipfile.BadZipFile):
                    yield from contents(archive.read(name))


def found_in(body: bytes) -> set[str]:
    """Names of the tokens that bytes hold, packed or not, in letters of either size."""
    parts = [part.lower() for part in contents(body)]
    return {name for name, token in TOKENS.items() if any(token.lower().encode() in part for part in parts)}


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file with its path."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()
