"""A cohort's CSV file: what it says, and everything that is wrong with it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cohort_table import SHOWN, BadTable, Columns, read_table
from service.commands.columns import categories
from service.commands.common import BadOption
from service.commands.predict import numbers
from service.commands.train import settings

VOLUME = "vol_0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    for name in ("a.nii", "b.nii"):
        (tmp_path / "scans" / name).write_bytes(b"scan")
    return tmp_path


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "cohort.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_rows_scans_and_columns(folder: Path) -> None:
    path = written(
        folder,
        "\ufeffpatient,scan,target, weeks,sex,fold\n"
        "p1,scans/a.nii,1.5,0,M,0\n"
        "\n"
        'p1,scans/a.nii,2e1,12 ,F,0\n"p,2",' + VOLUME + ",-3,1,M,1\n",
    )
    table = read_table(path, Columns(categories={"sex": ("M", "F")}))
    assert [(row.line, row.patient, row.target, row.fold) for row in table.rows] == [
        (2, "p1", 1.5, 0),
        (4, "p1", 20.0, 0),
        (5, "p,2", -3.0, 1),
    ]
    assert [row.covariates for row in table.rows] == [
        {"weeks": 0.0, "sex": 0.0},
        {"weeks": 12.0, "sex": 1.0},
        {"weeks": 1.0, "sex": 0.0},
    ]
    assert table.lines_of_scans == {"scans/a.nii": 2, VOLUME: 5}
    assert table.file_of("scans/a.nii") == folder / "scans" / "a.nii"
    assert table.file_of(VOLUME) is None
    first, *_, last = table.parameters({"scans/a.nii": "vol_1", VOLUME: VOLUME})
    assert first == {
        "volume_id": "vol_1",
        "patient": "p1",
        "target": 1.5,
        "covariates": {"weeks": 0.0, "sex": 0.0},
        "fold": 0,
    }
    assert last["volume_id"] == VOLUME


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_cells_are_parted_by_what_parts_the_header(separator: str, folder: Path) -> None:
    lines = ["scan patient age target", "scans/a.nii p1 61 1", "scans/b.nii p2 62 2"]
    table = read_table(
        written(folder, "\n".join(line.replace(" ", separator) for line in lines)), Columns("age")
    )
    assert [row.target for row in table.rows] == [61, 62]
    assert [row.covariates for row in table.rows] == [{"target": 1}, {"target": 2}]
    chosen = read_table(table.path, Columns("age", covariates=()))
    assert [row.covariates for row in chosen.rows] == [{}, {}]
    assert "fold" not in chosen.parameters({"scans/a.nii": "v", "scans/b.nii": "w"})[0]


def test_classes_are_words(folder: Path) -> None:
    path = written(folder, "scan,patient,target\nscans/a.nii,p1,benign\nscans/b.nii,p2,7\n")
    table = read_table(path, Columns(classes=True))
    assert [row.target for row in table.rows] == ["benign", "7"]


def test_everything_wrong_is_told_at_once_with_its_line(folder: Path) -> None:
    path = written(
        folder,
        "scan,patient,target,age,fold\n"
        "scans/a.nii,p1,nan,60,0\n"
        "scans/c.nii,,3,89+,1\n"
        ",p3,,61,x\n"
        "scans/b.nii,p4,1\n"
        "scans/b.nii,p4,1_000,1e999,0\n",
    )
    with pytest.raises(BadTable) as refusal:
        read_table(path, Columns())
    assert refusal.value.problems == (
        "line 2, target: 'nan' is no finite number",
        "line 3, patient: is empty",
        "line 3, age: '89+' is no finite number; for words use --category age=A,B, to leave the column out "
        "--covariates",
        "line 4, scan: is empty",
        "line 4, target: is empty",
        "line 4, fold: 'x' is no number of a fold (0, 1, 2, ... 999999999)",
        "line 5: 3 cells, but the header has 5",
        "line 6, target: '1_000' is no finite number",
        "line 6, age: '1e999' is no finite number; for words use --category age=A,B, to leave the column out "
        "--covariates",
        f"line 3, scan: there is no {folder / 'scans' / 'c.nii'}",
    )
    assert str(refusal.value).startswith(f"{path}: line 2, target")


def test_a_long_list_of_faults_is_cut_and_counted(folder: Path) -> None:
    rows = "".join(f"scans/a.nii,p{i},x\n" for i in range(SHOWN + 8))
    with pytest.raises(BadTable, match=r"; and 8 more$") as refusal:
        read_table(written(folder, f"scan,patient,target\n{rows}"), Columns())
    assert len(refusal.value.problems) == SHOWN + 8


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("", Columns(), "line 1: no column 'scan', 'patient', 'target'"),
        ("scan,patient,target\n", Columns(), "no rows"),
        ("scan,patient,target,scan\n", Columns(), "two columns have one name"),
        ("scan,patient,,target\n", Columns(), "or one has none"),
        ("scan,target\nscans/a.nii,1\n", Columns(), "no column 'patient'; there are 'scan', 'target'"),
        ("scan,patient,target\nscans/a.nii,p,1\n", Columns("age"), "no column 'age'"),
        ("scan,patient,target\nscans/a.nii,p,1\n", Columns(covariates=("sex",)), "no column 'sex'"),
        ("scan,patient,target\nscans/a.nii,p,1\n", Columns(covariates=("patient",)), "another meaning"),
        ("scan,patient,target\nscans/a.nii,p,1\n", Columns(categories={"sex": ("M", "F")}), "'sex'"),
        (
            "scan,patient,target,sex\nscans/a.nii,p,1,X\n",
            Columns(categories={"sex": ("M", "F")}),
            "line 2, sex: 'X' is neither 'M' nor 'F'",
        ),
        (b"scan,patient,target\n\xff,p,1\n", Columns(), "not UTF-8"),
        ('scan,patient,target\n"scans/a.nii,p,1\n', Columns(), "line 2"),
    ],
)
def test_tables_that_cannot_be_used(text: str | bytes, columns: Columns, words: str, folder: Path) -> None:
    with pytest.raises(BadTable, match=r"cohort\.csv") as refusal:
        read_table(written(folder, text), columns)
    assert words in str(refusal.value)


def test_a_line_ends_where_a_line_ends_and_nowhere_else(folder: Path) -> None:
    path = written(folder, 'scan,patient,target\r\nscans/a.nii,p\u2028\x851,1\r\nscans/b.nii,"p\n2",2\r\n')
    rows = read_table(path, Columns()).rows
    assert [row.patient for row in rows] == ["p\u2028\x851", "p\n2"]
    old = written(folder, "scan;patient;target\rscans/a.nii;p,1;1\r")
    assert [row.patient for row in read_table(old, Columns()).rows] == ["p,1"]


def test_cells_without_end_are_told_and_not_read(folder: Path) -> None:
    digits, name = "1" * 5000, "a" * 300
    path = written(
        folder,
        f"scan,patient,target,fold\nscans/a.nii,p1,1,{digits}\n{digits},p2,2,1\nscans/a.nii,p3,3,{digits[:10]}\n"
        f"scans/{name},p4,4,1\n",
    )
    with pytest.raises(BadTable) as refusal:
        read_table(path, Columns())
    assert refusal.value.problems == (
        "line 2, fold: 5,000 characters; 1,000 at most",
        "line 3, scan: 5,000 characters; 1,000 at most",
        "line 4, fold: '1111111111' is no number of a fold (0, 1, 2, ... 999999999)",
        f"line 5, scan: there is no {folder / 'scans' / name}",
    )


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadTable, match="no such file"):
        read_table(tmp_path / "no.csv", Columns())
    with pytest.raises(BadTable, match="no such file"):
        read_table(tmp_path, Columns())


def test_options_that_hold_names_and_values() -> None:
    assert categories(["sex=M,F", "side=left, right"]) == {"sex": ("M", "F"), "side": ("left", "right")}
    assert settings(["epochs=3", "grid=pad", "shape=[32, 32, 32]", "average=true"]) == {
        "epochs": 3,
        "grid": "pad",
        "shape": [32, 32, 32],
        "average": True,
    }
    assert numbers(["age=63", "sex=F"], {"sex": ("M", "F")}) == {"age": 63.0, "sex": 1.0}
    for wrong in ("sex", "sex=M", "sex=M,F,X", "=M,F", "sex=M,M", "sex=M,"):
        with pytest.raises(BadOption, match="--category"):
            categories([wrong])
    for wrong in ("epochs", "=3", "epochs="):
        with pytest.raises(BadOption, match="NAME=VALUE"):
            settings([wrong])
    for wrong in ("age", "age=old", "age=nan", "sex=F"):
        with pytest.raises(BadOption, match="--covariate"):
            numbers([wrong], {})
