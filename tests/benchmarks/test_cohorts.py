"""Cohorts: boxes agree, targets are exact, half the resolution knows nothing of them, people are parted."""

from __future__ import annotations

import csv
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from benchmarks import cohorts
from benchmarks.cohorts import controls, counters, heads, lattices, lesions, made, real, textures
from benchmarks.cohorts.made import STEP, Protocol
from models.errors import InvalidConfig, InvalidShape
from models.learning.folds import Split

SMALL = Protocol(train_people=4, train_volumes=2, test_volumes=5)


@pytest.fixture(scope="module")
def people():
    return cohorts.phantom_heads(6)


@pytest.fixture(scope="module")
def spread(people):
    return cohorts.spread(32, heads=people, protocol=SMALL)


@pytest.fixture(scope="module")
def spots(people):
    return cohorts.spots(48, heads=people, protocol=SMALL)


def whole(size):
    return (np.arange(size)[None],) * 3


def ball(shape, centre, radius):
    parts = [(axis - c) ** 2 for axis, c in zip(np.indices(shape), centre, strict=True)]
    return sum(parts) <= radius**2


@pytest.fixture(params=["spread", "spots"])
def volume(request):
    return request.getfixturevalue(request.param).sources[0]


def test_any_box_of_a_volume_agrees_with_the_volume_in_memory(volume):
    kept, size = volume.dense(), volume.shape[0]
    origins = np.random.default_rng(0).integers(-9, size + 2, (60, 3))
    for sides in (1, 5, (2, 9, 16)):
        assert np.array_equal(volume.cubes(origins, sides), kept.cubes(origins, sides))
    box = volume.cubes(np.zeros((1, 3), np.int64), size)
    assert box.dtype == np.float32
    assert np.array_equal(box[0, 0], kept.array)
    assert np.array_equal(box / np.float32(STEP) % 1, np.zeros_like(box))


def test_beyond_its_border_a_volume_is_nought(volume):
    size = volume.shape[0]
    box = volume.cubes(np.array([[-4, 0, size - 3]]), (8, size, 6))[0, 0]
    assert not box[:4].any()
    assert not box[..., 3:].any()
    assert box[4:, :, :3].any()


def test_values_do_not_depend_on_how_many_voxels_are_computed_together(volume, monkeypatch):
    at_once = volume.dense().steps
    monkeypatch.setattr(made, "AT_ONCE", 5000)
    assert np.array_equal(volume.dense().steps, at_once)


def test_the_same_seed_makes_the_same_cohort_and_another_seed_another(people, spread):
    again, other = (cohorts.spread(32, heads=people, protocol=SMALL, seed=seed) for seed in (0, 1))
    assert np.array_equal(again.targets, spread.targets)
    assert np.array_equal(again.sources[3].dense().steps, spread.sources[3].dense().steps)
    assert not np.array_equal(other.targets, spread.targets)


def test_a_person_s_volumes_do_not_depend_on_who_else_is_there(people, spread):
    fewer = cohorts.spread(32, heads=people[::-1][:5], protocol=replace(SMALL, train_people=3))
    of = dict(zip(spread.names, spread.sources, strict=True))
    row = fewer.names.index("phantom-03-0")
    assert np.array_equal(fewer.sources[row].dense().steps, of["phantom-03-0"].dense().steps)


def test_a_cohort_is_what_regressors_take(spread):
    cohort = spread.dense().cohort()
    assert len(cohort) == len(spread) == 13
    assert cohort.patients == spread.patients
    assert cohort.inputs.covariates.shape == (13, 0)
    assert cohort.only(np.array([2])).targets == spread.targets[2]


def test_the_main_protocol_learns_from_198_volumes_of_22_people_and_tests_on_102_of_11():
    names = [f"p{number}" for number in range(33)]
    counts, tested = made.MAIN.counts(names, 0)
    test = [count for count, side in zip(counts, tested, strict=True) if side]
    assert (len(test), sum(test), set(test)) == (11, 102, {9, 10})
    assert sum(counts) - sum(test) == 22 * 9
    assert made.MAIN.counts(names, 1)[1] != tested


def test_nobody_is_on_both_sides(spread):
    train, test = ({spread.patients[row] for row in rows} for rows in (spread.split.train, spread.split.test))
    assert (len(spread.split.train), len(spread.split.test)) == (8, 5)
    assert (len(train), len(test), train & test) == (4, 2, set())


@pytest.mark.parametrize("protocol", [Protocol(6, 2, 5), Protocol(4, 2, 1)])
def test_a_protocol_that_leaves_nobody_to_test_on_is_refused(people, protocol):
    with pytest.raises(InvalidConfig, match="train_people"):
        cohorts.spread(32, heads=people, protocol=protocol)


def signs(volume):
    """The signs of what was added to the head, in blocks (b, b, b, 8), and the amplitude there."""
    added = volume.dense().array - volume.scene.t1(whole(volume.shape[0]))[0]
    blocks = volume.scene.blocks
    parts = added.reshape(blocks, 2, blocks, 2, blocks, 2).transpose(0, 2, 4, 1, 3, 5)
    return np.sign(parts.reshape(blocks, blocks, blocks, 8)), np.abs(added)


def test_the_target_is_the_share_of_the_left_half_that_carries_the_texture(spread):
    checkerboard = np.array([1, -1, -1, 1, -1, 1, 1, -1])
    for volume, target in zip(spread.sources, spread.targets, strict=True):
        brain, textured = (mask[0] for mask in volume.region(whole(16)))
        found, _ = signs(volume)
        matches = np.abs(found @ checkerboard) == 8
        assert matches[textured].all()
        assert len(np.unique(found[textured], axis=0)) <= 1
        assert matches[brain & ~textured].mean(dtype=float) < 0.1
        assert target == textured[..., :8].sum() / brain[..., :8].sum()
    assert np.ptp(spread.targets) > 0.5


def test_the_rest_of_the_brain_is_noise_of_the_same_size_that_is_balanced_in_each_block(spread):
    volume = spread.sources[1]
    brain, textured = (mask[0] for mask in volume.region(whole(16)))
    found, size = signs(volume)
    assert (found[brain].sum(axis=-1) == 0).all()
    within, rest = (
        size[mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)].mean() for mask in (textured, brain & ~textured)
    )
    assert within == pytest.approx(rest, rel=0.02)
    assert len(np.unique(found[brain & ~textured], axis=0)) > 60


def test_a_volume_averaged_to_half_its_resolution_does_not_know_the_share(spread):
    scene, draw = spread.sources[0].scene, spread.sources[0]._draw
    none, left, all_ = (
        textures.Spread(scene, replace(draw, cuts=cuts))
        for cuts in ((-np.inf, -np.inf), (np.inf, -np.inf), (np.inf, np.inf))
    )
    assert (none.shares(), left.shares(), all_.shares()) == ((0, 0), (1, 0), (1, 1))
    full = [volume.dense().array for volume in (none, left, all_)]
    half = [controls.averaged(voxels, 2) for voxels in full]
    assert np.abs(full[0] - full[1]).max() > 0.2
    assert max(np.abs(half[0] - half[1]).max(), np.abs(half[0] - half[2]).max()) <= STEP


def test_a_target_is_nearly_the_same_at_every_size(people, spread):
    larger, huge = (cohorts.spread(size, heads=people, protocol=SMALL).targets for size in (64, 128))
    assert np.abs(huge - larger).max() < 0.01
    assert np.abs(huge - spread.targets).max() < 0.05


@pytest.mark.parametrize("size", [4, 30, 33])
def test_a_size_whose_halves_are_not_of_blocks_is_refused(people, size):
    with pytest.raises(InvalidConfig, match="multiple of 4"):
        cohorts.spread(size, heads=people, protocol=SMALL)


def test_small_boxes_of_a_huge_volume_are_computed_alone(people):
    scene = textures.Scene(people[0], 4096)
    volume = textures.Spread(scene, textures._drawn(scene, counters.generator(0, "huge")))
    box = volume.cubes(np.array([[2000, 2001, 2002]]), 9)
    assert np.array_equal(volume.cubes(np.array([[2003, 2004, 2005]]), 6)[0, 0], box[0, 0, 3:, 3:, 3:])


def test_spots_are_zero_in_the_sum_and_apart(spots):
    assert abs(float(lesions.SPOT.sum(dtype=np.float64))) < 1e-5
    for volume in spots.sources:
        gaps = np.abs(volume.places[:, None] - volume.places).max(axis=2) + 99 * np.eye(len(volume.places))
        assert len(volume.places) == 48
        assert gaps.min() > lesions.REACH


def test_the_target_is_the_share_of_dark_spots_near_the_ventricles(spots):
    for volume, target in zip(spots.sources, spots.targets, strict=True):
        z, y, x = volume.places.T
        added = volume.dense().array - volume.scene.t1(whole(48))[0]
        dark = added[z, y, x] < 0
        shape = np.array(volume.scene.head.t1.shape)
        own = ((volume.places + 0.5) / 48 * shape).astype(int)
        to_ventricle = np.argwhere(volume.scene.head.ventricles)
        mm = np.array([np.sqrt((np.square((to_ventricle - place) * 2.0)).sum(axis=1).min()) for place in own])
        near = mm < lesions.NEAR_MM
        assert ((mm < lesions.NEAR_MM) | (mm > lesions.FAR_MM)).all()
        assert near.sum() == (~near).sum() == dark.sum() == 24
        assert target == (dark & near).sum() / 24


def test_too_many_spots_for_a_size_are_refused_by_the_head_s_name(people):
    with pytest.raises(InvalidConfig, match="phantom-00 holds only"):
        cohorts.spots(16, heads=people, protocol=SMALL)
    with pytest.raises(InvalidConfig, match="at least 8"):
        cohorts.spots(6, heads=people, protocol=SMALL)
    assert len(cohorts.spots(32, lesions=6, heads=people, protocol=SMALL)) == 13


def test_distances_are_those_to_the_nearest_voxel_up_to_the_limit():
    mask = np.zeros((9, 12, 15), bool)
    mask[2, 3, 4] = mask[7, 10, 13] = True
    spacing = np.array([2.0, 1.0, 1.5])
    steps = (np.argwhere(np.ones_like(mask))[:, None] - np.argwhere(mask)) * spacing
    exact = np.sqrt(np.square(steps).sum(axis=2)).min(axis=1).reshape(mask.shape)
    found = lesions.distance_to(mask, (2.0, 1.0, 1.5), 6.0)
    assert np.allclose(found[exact <= 6], exact[exact <= 6])
    assert (found[exact > 6] > 6).all()


def test_erosion_takes_what_touches_the_outside():
    mask = np.zeros((5, 5, 5), bool)
    mask[1:4, 1:4, 1:4] = mask[0, 2, 2] = mask[2, 2, 0] = True
    inner = lesions.eroded(mask)
    assert set(map(tuple, np.argwhere(inner).tolist())) == {(2, 2, 2), (1, 2, 2), (2, 2, 1)}


def test_bits_are_a_place_s_own_and_look_random():
    axes = (np.arange(40)[None], np.arange(50)[None], np.arange(60)[None])
    drawn = counters.bells(7, axes)[0].astype(float)
    part = counters.bells(7, tuple(axis[:, 5:9] for axis in axes))[0]
    assert np.array_equal(part, drawn[5:9, 5:9, 5:9].astype(np.float32))
    assert abs(drawn.mean()) < 0.01
    assert drawn.std() == pytest.approx(1, abs=0.01)
    for k in range(3):
        ahead, behind = (
            np.take(drawn, range(a, drawn.shape[k] + b), k).ravel() for a, b in ((1, 0), (0, -1))
        )
        assert abs(np.corrcoef(ahead, behind)[0, 1]) < 0.015
    assert abs(np.corrcoef(drawn.ravel(), counters.bells(8, axes)[0].ravel())[0, 1]) < 0.015
    counts = np.bincount(counters.below(70, 3, axes).ravel(), minlength=70)
    assert len(counts) == 70
    assert np.square(counts - 120000 / 70).sum() / (120000 / 70) < 120  # chi-squared, 69 degrees of freedom


def test_a_lattice_on_a_grid_of_its_own_size_stays_what_it_is():
    lattice = np.random.default_rng(0).normal(size=(7, 8, 9)).astype(np.float32)
    axes = tuple(np.arange(n)[None] for n in lattice.shape)
    assert np.array_equal(lattices.Stretched(lattice, lattice.shape)(axes)[0], lattice)


def test_a_lattice_is_enlarged_linearly_and_shrunk_by_averaging():
    ramp = np.add.outer(np.add.outer(np.arange(4.0), 10 * np.arange(4)), 100 * np.arange(4)).astype(
        np.float32
    )
    found = lattices.Stretched(ramp, (16,) * 3)(whole(16))[0]
    place = np.clip((np.arange(16) + 0.5) / 4 - 0.5, 0, 3)
    assert np.allclose(found, np.add.outer(np.add.outer(place, 10 * place), 100 * place), atol=1e-4)
    small = lattices.shrunk(found, 4)
    assert np.allclose(small, controls.averaged(found, 4), atol=1e-4)
    uneven = lattices.shrunk(found, 5)
    assert uneven.shape == (5, 5, 5)
    assert uneven.mean() == pytest.approx(found.mean(), rel=1e-6)


def test_phantoms_differ_and_are_one_in_their_white_matter(people):
    assert len({head.t1.shape for head in people}) > 1
    for head in people:
        assert np.median(head.t1[head.white_matter]) == pytest.approx(1)
        assert head.ventricles.any()
        assert not (head.white_matter & head.ventricles).any()
        for k in range(3):
            borders = head.brain.any(axis=tuple({0, 1, 2} - {k}))
            assert borders[[0, -1]].all()


def test_a_head_s_axes_grow_to_superior_anterior_and_right(tmp_path):
    codes = np.zeros((20, 22, 24), np.uint8)  # (R, A, S)
    codes[4:17, 5:18, 6:19] = 81
    codes[14:16, 6, 7] = 51  # to the right, behind, below
    scan = np.where(codes == 81, 400.0, 90.0) * (codes > 0) + 10
    canonical = np.array([[2.0, 0, 0, -20], [0, 2, 0, -22], [0, 0, 2, -24], [0, 0, 0, 1]])
    for name, values in (("t1.nii.gz", scan.astype(np.float32)), ("seg.nii.gz", codes)):
        image = nibabel.Nifti1Image(values, canonical)
        turn = nibabel.orientations.axcodes2ornt("PSL")
        nibabel.save(
            image.as_reoriented(nibabel.orientations.ornt_transform(np.c_[range(3), [1] * 3], turn)),
            tmp_path / name,
        )
    with (tmp_path / "labels.tsv").open("w") as file:
        file.write("subject\tfile\tsegmentation\nsomebody\tt1.nii.gz\tseg.nii.gz\n")
    (head,) = heads.real_heads(tmp_path)
    assert head.t1.shape == (13, 13, 13)
    assert set(map(tuple, np.argwhere(head.ventricles).tolist())) == {(1, 1, 10), (1, 1, 11)}
    assert np.median(head.t1[head.white_matter]) == 1


def test_without_the_collection_cohorts_are_on_phantoms(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "DATA", tmp_path)
    assert [head.name for head in heads.base_heads()[:2]] == ["phantom-00", "phantom-01"]
    with pytest.raises(FileNotFoundError, match="cohort_ixi_age"):
        heads.real_heads(tmp_path)


def test_controls_find_what_is_there_and_nothing_else(spread):
    generator = np.random.default_rng(0)
    patients = tuple(f"p{row // 5}" for row in range(100))
    split = Split(np.arange(60), np.empty(0, np.int64), np.arange(60, 100))
    rows = generator.normal(size=(100, 8))
    cohort = replace(spread, patients=patients, targets=rows[:, 0] - rows[:, 1], split=split)
    assert controls.ridge_score(rows, cohort) > 0.99
    assert controls.ridge_score(generator.normal(size=(100, 8)), cohort) < 0.1


def test_the_oracle_reads_the_texture_and_a_reader_of_means_does_not():
    protocol = Protocol(train_people=8, train_volumes=8, test_volumes=40)
    cohort = cohorts.spread(32, heads=cohorts.phantom_heads(12), protocol=protocol)
    names = ("oracle: texture energy, left and right", "roughness per half at 1/2", "ridge on voxels at 1/2")
    oracle, *blind = controls.scores(cohort, {name: controls.SPREAD[name] for name in names}).values()
    assert oracle > 0.8
    assert max(blind) < 0.1


def strokes(folder, rows):
    (folder / "masks").mkdir()
    for row in rows:
        mask = ball((12, 10, 8), (5, 5, 4), 3).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, np.diag([-1.0, 1, 2, 1])), folder / row["file"])
    with (folder / "labels.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def test_rows_without_a_target_are_dropped_and_counted(tmp_path):
    row = {"subject": "a", "nihss": "4.0", "age_years": "70.0", "sex": "F", "lesion_ml": "1.0"}
    changes = [{}, {"nihss": "n/a"}, {"age_years": "89+", "sex": "M"}, {"sex": "n/a"}, {"nihss": "n/a"}]
    rows = [
        {**row, **change, "subject": f"s{number}", "file": f"masks/{number}.nii.gz"}
        for number, change in enumerate(changes)
    ]
    strokes(tmp_path, rows)
    found = real.soop(tmp_path)
    assert found.patients == ("s0", "s2")
    assert dict(found.dropped) == {"nihss": 2, "sex": 1}
    assert np.array_equal(found.covariates, [[70, 0], [89, 1]])
    assert [entry.notes for entry in found.entries] == [(), ("age 89+ taken as 89",)]
    assert found.cohort().targets.tolist() == [4, 4]


def test_a_scan_is_read_when_it_is_looked_at_as_it_is_stored(tmp_path):
    values = np.random.default_rng(0).integers(0, 99, (12, 10, 8)).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([-1.0, 1.5, 2, 1]))
    nibabel.save(image, tmp_path / "plain.nii")
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "scaled.nii")
    before = real._voxels.cache_info().misses
    plain, scaled = (real.Scan(tmp_path / name) for name in ("plain.nii", "scaled.nii"))
    assert real._voxels.cache_info().misses == before
    assert plain.shape == (8, 10, 12)
    assert plain.grid.spacing == (2, 1.5, 1)
    assert plain.grid.orientation == "LAS"
    box = plain.cubes(np.array([[-1, 2, 3], [4, 4, 4]]), (3, 4, 5))
    assert box.dtype == np.int16
    assert not box[0, 0, 0].any()
    assert np.array_equal(box[0, 0, 1:], values.T[:2, 2:6, 3:8])
    assert np.array_equal(box[1, 0], values.T[4:7, 4:8, 4:9])
    assert np.allclose(scaled.array, nibabel.load(tmp_path / "scaled.nii").get_fdata().T)
    assert scaled.array.dtype == np.float32
    raw = plain.raw()
    assert (raw.statistics.minimum, raw.statistics.maximum) == (values.min(), values.max())
    assert np.array_equal(raw.affine, image.affine)


def test_a_cohort_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"labels\.tsv"):
        real.hippocampus(tmp_path)


@pytest.mark.parametrize(
    ("name", "count", "low", "high", "covariates", "baselines"),
    [("ixi_age", 33, 23.35, 73.54, 1, 6), ("hippocampus", 140, 2382, 4071, 0, 3), ("soop", 240, 0, 35, 2, 2)],
)
def test_the_real_cohorts_are_what_their_readme_says(
    shared_data, name, count, low, high, covariates, baselines
):
    cohort = real.REAL[name]()
    assert len(cohort) == len(set(cohort.patients)) == count
    assert (cohort.targets.min(), cohort.targets.max()) == (low, high)
    assert cohort.covariates.shape == (count, covariates)
    assert cohort.baselines.shape == (count, baselines)
    assert np.isfinite(cohort.baselines).all()
    assert all(column.startswith("baseline_") for column in cohort.entries[0].baselines)
    assert not cohort.dropped


def test_real_scans_of_many_shapes_ask_to_be_prepared(shared_data):
    with pytest.raises(InvalidShape, match="prepare them on one grid"):
        real.hippocampus().cohort()
    ages = real.ixi_age()
    assert ages.cohort().inputs.scans[0].shape == (90, 120, 120)
    assert {entry.labels["intensity_scale_group"] for entry in ages.entries} == {"early", "late"}


def test_the_real_heads_are_33_with_one_scale(shared_data):
    people = heads.real_heads(shared_data / heads.HEADS)
    assert len({head.name for head in people}) == 33
    assert all(np.median(head.t1[head.white_matter]) == pytest.approx(1) for head in people)
