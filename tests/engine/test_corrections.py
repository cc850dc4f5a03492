"""Labels corrected by a person: edits, the copy that keeps them, and what kills and others do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from skimage.draw import disk

from cdal_engine.corrections import export as exporting
from cdal_engine.corrections.answer import Answer
from cdal_engine.corrections.corrected import CorrectedCopy
from cdal_engine.corrections.edits import changes, renumbered, split
from cdal_engine.corrections.queue import by_disagreement, regions_by_disagreement
from cdal_engine.corrections.versions import Edit
from cdal_engine.errors import CdalError
from cdal_engine.io.ome_zarr import write_labels

FACTS = {"source": "slide.svs", "model": "tiny", "digest": "abc", "samples": 2}
SHAPE = (1300, 1100)
BOX = (slice(0, 512), slice(588, 1100))  # at the upper right corner of the grid


def labels_of(shape: tuple[int, int] = SHAPE) -> NDArray[np.uint32]:
    """Squares of 20 pixels every 50; one, of number 7, across the region's lower edge."""
    labels = np.zeros(shape, np.uint32)
    number = 10
    for y in range(10, shape[0] - 30, 50):
        for x in range(10, shape[1] - 30, 50):
            labels[y : y + 20, x : x + 20] = number
            number += 1
    labels[480:900, 700:730] = 7
    return labels


def answer_of(labels: NDArray[np.uint32] | Path, ids: NDArray[np.uint32]) -> Answer:
    count = len(ids)
    table = pa.table(
        {
            "label": ids,
            "class": ["nucleus"] * count,
            "score": np.linspace(0.5, 1, count),
            "agreement": np.ones(count),
        }
    )
    return Answer(labels, table, FACTS, 0.25, SHAPE)


@pytest.fixture(params=["tiff", "zarr"])
def answer(request: pytest.FixtureRequest, tmp_path: Path) -> Answer:
    labels = labels_of()
    if request.param == "tiff":
        return answer_of(labels, np.unique(labels)[1:])
    path = tmp_path / "labels.ome.zarr"
    write_labels(path, labels, 0.25, 0.0)
    return answer_of(path, np.unique(labels)[1:])


def drawn(copy: CorrectedCopy) -> Edit:
    """A new object in the region's corner that is the slide's, too."""
    labels = copy.read(BOX)
    labels[0:12, 490:512] = copy.next_label
    return Edit(BOX, labels, {copy.next_label: {"action": "drawn", "when": "now"}})


def test_a_region_is_written_and_the_rest_stays(answer: Answer, tmp_path: Path) -> None:
    before = labels_of()
    with CorrectedCopy(tmp_path / "corrected", answer) as copy:
        edit = drawn(copy)
        copy.write(edit)
        expected = before.copy()
        expected[BOX] = edit.labels
        np.testing.assert_array_equal(np.asarray(copy.labels[:]), expected)
        assert copy.touched == edit.touched
        assert copy.next_label == before.max() + 2
    if isinstance(answer.labels, Path):
        levels = [a for _, a in sorted(zarr.open_group(copy.labels_path, mode="r").arrays())]
        assert len(levels) == 3
        for level, array in enumerate(levels):
            step = 2**level
            np.testing.assert_array_equal(array[:], expected[::step, ::step])
        original = zarr.open_group(answer.labels, mode="r")["s0"]
        np.testing.assert_array_equal(original[:], before)
    record = json.loads((tmp_path / "corrected" / "corrections.json").read_text())
    assert record["answer"] == FACTS
    assert record["regions"][0]["box"] == [[0, 512], [588, 1100]]


def test_an_object_across_the_border_keeps_its_number_and_its_part_outside(
    answer: Answer, tmp_path: Path
) -> None:
    with CorrectedCopy(tmp_path / "corrected", answer) as copy:
        labels = copy.read(BOX)
        labels[470:512, 100:150] = 7  # wider inside
        copy.write(Edit(BOX, labels, {7: {"action": "redrawn", "when": "now"}}))
        outside = labels_of()[512:]
        np.testing.assert_array_equal(np.asarray(copy.labels[512:]), outside)
        labels[labels == 7] = 0  # with the eraser: what is out of sight stays
        copy.write(Edit(BOX, labels, {7: {"action": "erased", "when": "now"}}))
        np.testing.assert_array_equal(np.asarray(copy.labels[512:]), outside)


@pytest.mark.parametrize("into", [0, 10])
def test_a_deleted_or_merged_object_is_so_outside_too(
    answer: Answer, tmp_path: Path, into: int
) -> None:
    with CorrectedCopy(tmp_path / "corrected", answer) as copy:
        labels = copy.read(BOX)
        labels[labels == 7] = into
        action = {"action": "merged", "into": into} if into else {"action": "deleted"}
        copy.write(Edit(BOX, labels, {7: action | {"when": "now"}}))
        expected = labels_of()
        expected[expected == 7] = into
        np.testing.assert_array_equal(np.asarray(copy.labels[:]), expected)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from cdal_engine.corrections import corrected
from cdal_engine.corrections.versions import Edit
sys.path.insert(0, sys.argv[2])
from test_corrections import BOX, answer_of, drawn, labels_of

labels = labels_of()
copy = corrected.CorrectedCopy(Path(sys.argv[1]), answer_of(labels, np.unique(labels)[1:]))
edit = drawn(copy)
if sys.argv[3] == "kept":
    copy.keep(edit)
elif sys.argv[3] == "writing":  # labels are in place, the record is not
    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)
    corrected.write_json = kill
    copy.write(edit)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["opened", "kept", "writing"])
def test_what_a_killed_program_had_kept_is_written_later(tmp_path: Path, when: str) -> None:
    folder, labels = tmp_path / "corrected", labels_of()
    command = [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent), when]
    died = subprocess.run(command, check=False, env={**os.environ}, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    with CorrectedCopy(folder, answer_of(labels, np.unique(labels)[1:])) as copy:
        if when == "opened":
            assert copy.recovered is None
            np.testing.assert_array_equal(copy.labels, labels)
            return
        edit = drawn_of(labels)
        np.testing.assert_array_equal(copy.labels[BOX], edit)
        assert {each["action"] for each in copy.touched.values()} == {"drawn"}
    with CorrectedCopy(folder, answer_of(labels, np.unique(labels)[1:])) as again:
        assert again.recovered is None


def drawn_of(labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    result = labels[BOX].copy()
    result[0:12, 490:512] = labels.max() + 1
    return result


def test_a_damaged_version_is_passed_over(tmp_path: Path) -> None:
    labels = labels_of()
    answer = answer_of(labels, np.unique(labels)[1:])
    with CorrectedCopy(tmp_path, answer) as copy:
        copy.keep(drawn(copy))
        copy.keep(drawn(copy))
    (tmp_path / "versions" / "000002.tif").write_bytes(b"II*\0")
    with CorrectedCopy(tmp_path, answer) as copy:
        assert copy.recovered is not None
        np.testing.assert_array_equal(copy.labels[BOX], drawn_of(labels))


def test_only_the_newest_versions_stay(tmp_path: Path) -> None:
    labels = labels_of((60, 60))
    with CorrectedCopy(tmp_path, answer_of(labels, np.unique(labels)[1:])) as copy:
        for _ in range(23):
            last = copy.keep(Edit((slice(0, 60), slice(0, 60)), labels))
        assert copy.versions.numbers == list(range(4, 24))
        assert last == 23


def test_a_second_one_is_told_and_a_copy_of_other_labels_refused(tmp_path: Path) -> None:
    labels = labels_of()
    answer = answer_of(labels, np.unique(labels)[1:])
    with (
        CorrectedCopy(tmp_path, answer),
        pytest.raises(CdalError, match="in another viewer"),
    ):
        CorrectedCopy(tmp_path, answer)
    small = answer_of(labels[:100], np.unique(labels[:100])[1:])
    with pytest.raises(CdalError, match="labels of"):
        CorrectedCopy(tmp_path, small)
    with CorrectedCopy(tmp_path, answer) as copy:  # the refused ones hold nothing
        assert copy.is_of(answer)


def test_another_answer_is_told_from_the_one_corrected(tmp_path: Path) -> None:
    labels = labels_of()
    answer = answer_of(labels, np.unique(labels)[1:])
    CorrectedCopy(tmp_path, answer).close()
    newer = Answer(labels, answer.objects, FACTS | {"digest": "new"}, 0.25, SHAPE)
    with CorrectedCopy(tmp_path, newer) as copy:
        assert not copy.is_of(newer)
        assert copy.record["answer"] == FACTS


def test_split_cuts_where_it_is_narrow() -> None:
    labels = np.zeros((40, 80), np.uint32)
    labels[10:30, 5:35] = labels[10:30, 40:70] = labels[18:22, 35:40] = 4
    part = split(labels, 4, (20, 10), (12, 60))
    assert part[10:30, 41:70].all()
    assert not part[10:30, 5:35].any()
    assert not part[labels != 4].any()
    for points in (((20, 10), (20, 10)), ((0, 0), (20, 10)), ((20, 10), (90, 10))):
        with pytest.raises(CdalError, match="two points"):
            split(labels, 4, *points)


def test_damaged_corrections_are_said(tmp_path: Path) -> None:
    labels = labels_of()
    answer = answer_of(labels, np.unique(labels)[1:])
    with CorrectedCopy(tmp_path, answer) as copy:
        path = copy.labels_path
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CdalError, match=r"labels\.tif"):
        CorrectedCopy(tmp_path, answer)


@pytest.mark.parametrize("first", [(20, 14), (12, 26), (28, 30), (20, 33)])
@pytest.mark.parametrize("second", [(20, 52), (12, 60), (26, 66)])
def test_split_needs_no_clicks_in_the_middle(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    one, other = (np.zeros((40, 80), bool) for _ in range(2))
    one[disk((20, 24), 14, shape=one.shape)] = True
    other[disk((20, 58), 21, shape=other.shape)] = True
    other &= ~one
    part = split((one | other).astype(np.uint32), 1, first, second)
    assert (part != other)[one | other].mean() < 0.05


def test_changes_are_told_by_their_pixels() -> None:
    before = labels_of((100, 150))
    after = before.copy()
    after[10:15, 10:30] = 0
    after[before == 11] = 0
    after[80:90, 100:110] = 99
    assert changes(before, after) == {10: "redrawn", 11: "erased", 99: "drawn"}
    assert changes(before, before) == {}


def test_drawn_objects_get_numbers_that_nothing_elsewhere_has() -> None:
    before = labels_of((100, 150))
    after = before.copy()
    after[0:5, 0:5], after[90:95, 0:5] = 50, 1200
    result, numbers = renumbered(before, after, 1000)
    assert numbers == {50: 1201}
    assert (result[after == 50] == 1201).all()
    np.testing.assert_array_equal(result[after != 50], after[after != 50])


def test_disagreement_comes_first_and_the_unknown_last() -> None:
    agreement = np.array([1.0, 0.4, np.nan, 0.4, 1.0])
    score = np.array([0.9, 0.8, 0.1, 0.7, np.nan])
    assert by_disagreement(agreement, score).tolist() == [3, 1, 0, 4, 2]


def test_regions_lie_within_the_slide_and_the_doubtful_come_first() -> None:
    boxes = regions_by_disagreement(
        np.array([10.0, 520, 599]),
        np.array([10.0, 600, 5]),
        np.array([0.1, 0.9, np.nan]),
        (600, 700),
        512,
    )
    assert boxes == [
        (slice(88, 600), slice(188, 700)),
        (slice(0, 512), slice(0, 512)),
        (slice(88, 600), slice(0, 512)),
    ]


def test_corrections_are_no_input(tmp_path: Path) -> None:
    """`cdal batch` on a folder that holds results with corrections finds none of them."""
    from cdal_engine.io.discovery import find_sources

    results = tmp_path / "case.png"
    results.mkdir()
    (results / "run.json").write_text('{"napari-cdal": "1", "finished": true}')
    labels = labels_of((60, 60))
    CorrectedCopy(results / "corrected", answer_of(labels, np.unique(labels)[1:])).close()
    assert find_sources(tmp_path) == []


def test_exported_objects_lie_where_they_are_in_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of a region, at half the image's resolution; objects across tiles stay whole."""
    monkeypatch.setattr(exporting, "_TILE", 64)
    labels = labels_of((200, 150))
    ids = np.unique(labels)[1:]
    answer = replace(answer_of(labels, ids), shape=(900, 900), pixel=2.0, corner=(30.0, 70.0))
    whole = (slice(0, 200), slice(0, 150))
    with CorrectedCopy(tmp_path / "corrected", answer) as copy:
        edited = labels.copy()
        edited[edited == ids[0]] = 0
        edited[150:190, 140:150] = 500
        touched = {
            int(ids[0]): {"action": "deleted", "when": "now"},
            500: {"action": "drawn", "when": "now"},
        }
        copy.write(Edit(whole, edited, touched))
        exporting.export(copy, tmp_path / "out")
        with pytest.raises(CdalError, match="exist already"):
            exporting.export(copy, tmp_path / "out")
    rows = {
        row["label"]: row for row in pq.read_table(tmp_path / "out/objects.parquet").to_pylist()
    }
    assert set(rows) == (set(ids.tolist()) - {int(ids[0])}) | {500}
    for label, row in rows.items():
        y, x = np.nonzero(edited == label)
        assert row["area_px"] == 4 * len(y)
        assert row["x"] == pytest.approx(70 + 2 * (x.mean() + 0.5))
        assert row["y0"] == 30 + 2 * y.min()
        assert row["x1"] == 70 + 2 * (x.max() + 1)
        assert (row["score"] is None) == (label == 500)
    assert rows[500]["corrected"] == "drawn"
    outlines = json.loads((tmp_path / "out" / "objects.geojson").read_text())["features"]
    corners = np.array([f["geometry"]["coordinates"][0][0] for f in outlines])
    assert len(outlines) == len(rows)
    assert corners.min() >= 30
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "labels.tif"), edited)


def test_labels_without_objects_are_exported_with_empty_tables(tmp_path: Path) -> None:
    labels = np.zeros((40, 40), np.uint32)
    with CorrectedCopy(tmp_path / "corrected", answer_of(labels, np.unique(labels)[1:])) as copy:
        exporting.export(copy, tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "objects.parquet").num_rows == 0


@pytest.mark.parametrize("size", [(512, 512), (513, 1100), (40, 60)])
def test_pieces_cover_a_region_once(size: tuple[int, int]) -> None:
    counts = np.zeros((600, 1200), int)
    box = tuple(slice(7, 7 + n) for n in size)
    for piece in exporting.pieces(box):
        assert all(s.stop - s.start <= 512 for s in piece)
        counts[piece] += 1
    expected = np.zeros_like(counts)
    expected[box] = 1
    np.testing.assert_array_equal(counts, expected)


def test_regions_are_held_out_whole() -> None:
    from cdal_engine.corrections.learn import held_out

    stems = {n: [f"region-{n}-{i}" for i in (1, 2)] for n in range(1, 11)}
    assert held_out(stems) == [*stems[9], *stems[10]]
    assert held_out({1: ["a"], 2: ["b"]}) == ["b"]
    assert held_out({1: ["a", "b", "c"]}) == ["c"]
    with pytest.raises(CdalError, match="review a second"):
        held_out({1: ["a"]})
