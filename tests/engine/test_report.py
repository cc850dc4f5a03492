"""report.html: every input; nothing foreign run, nothing fetched, no file of a user replaced."""

import base64
import hashlib
import io
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from cdal_engine.counts import SampleCounts, counted
from cdal_engine.errors import CdalError
from cdal_engine.io.records import RUN, summary_rows, write_failure, write_json, write_summary
from cdal_engine.io.report import write_report

EVIL = "<script>alert(1)</script>&\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Rows of cells (text and sort key), tags with their attributes, and the script."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.text = (folder / "report.html").read_text("utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.keys: list[list[str | None]] = []
        self.feed(self.text)
        self.script = self.text.split("<script>")[1].split("</script>")[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
            self.keys.append([])
        if tag == "td":
            self.rows[-1].append("")
            self.keys[-1].append(dict(attrs)["data-value"])

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data + "\n"


def finished(
    folder: Path, model: str = "nuclei-he", objects: int = 1234, size: tuple[int, int] = (1000, 736)
) -> None:
    folder.mkdir(parents=True)
    samples = SampleCounts(np.array([1200, 1300]), np.array([64000, 80000]))
    record = {
        "input": {"path": f"/patients/{folder.name}"},
        "model": {"name": model},
        "mpp": 0.25,
        "mpp_source": "resolution tag",
        "counts": counted(objects, 72000, samples, 0.25, 2.0, np.array([0.9, 0.96])),
        "seconds": {"read": 1.0, "model": 2.5},
        "finished": True,
    }
    write_json(folder / RUN, record)
    pixels = np.full((size[1], size[0], 3), 200, np.uint8)
    pixels[100:102] = (0, 255, 130)
    pixels[-36:] = (1, 2, 3)  # where the footer is
    Image.fromarray(pixels).save(folder / "overview.png")


def test_a_row_says_what_was_found_and_what_failed(tmp_path: Path) -> None:
    finished(tmp_path / "a.svs")
    write_failure(tmp_path / "b.svs", Path("b.svs"), CdalError("no pixels", "export it again"))
    (tmp_path / "c.svs").mkdir()
    write_json(tmp_path / "c.svs" / RUN, {"finished": False})
    write_report(tmp_path, summary_rows(tmp_path))
    page = Page(tmp_path)
    done, failed, interrupted = page.rows[1:]
    assert done[1].split() == ["a.svs"]
    assert done[2].split() == ["1,234", "1,200", "–", "1,300"]
    assert done[3].split() == ["617", "600", "–", "650"]
    assert done[4].split() == ["4,500", "4,000", "–", "5,000"]
    rest = [cell.split("\n") for cell in done[5:]]
    assert [cell[0] for cell in rest] == ["0.93", "0.25", "nuclei-he", "3.5"]
    assert rest[1][1] == "resolution tag"
    assert page.keys[1][1:4] == ["a.svs", "1234", "617"]
    assert failed[1].split("\n")[:4] == ["b.svs", "failed", "no pixels", "export it again"]
    assert "interrupted" in interrupted[1]
    assert "1 done, 1 failed, 1 interrupted" in page.text
    assert len(page.rows[0]) == 0  # headings
    assert {len(row) for row in page.rows[1:]} == {sum(tag == "th" for tag, _ in page.tags)}


def test_pictures_are_small_inline_and_keep_their_outlines(tmp_path: Path) -> None:
    finished(tmp_path / "ä #1.svs")
    write_report(tmp_path, summary_rows(tmp_path))
    (picture,) = [attrs for tag, attrs in Page(tmp_path).tags if tag == "img"]
    (link,) = [attrs["href"] for tag, attrs in Page(tmp_path).tags if tag == "a"]
    assert (tmp_path / unquote(str(link))).is_file()
    data = str(picture["src"]).removeprefix("data:image/jpeg;base64,")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    assert pixels.shape == (280, 400, 3)
    assert pixels[-1].min() > 150  # no footer
    red, green, _ = pixels[40].mean(axis=0)
    assert green - red > 80  # of two rows among many


def test_names_and_records_run_nothing(tmp_path: Path) -> None:
    finished(tmp_path / "javascript:alert(1)", model=EVIL)
    name = "<img src=x onerror=alert(3)>"
    write_failure(tmp_path / name, Path(name), CdalError(EVIL, EVIL))
    write_report(tmp_path, summary_rows(tmp_path))
    page = Page(tmp_path)
    assert page.text.count("<script>") == 1
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == tags.count("img") == tags.count("a") == 1
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert page.rows[1][1].split("\n")[0] == name
    assert EVIL in page.rows[1][1].replace("\n", "")
    (link,) = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert str(link).startswith("./javascript%3A")


def test_only_the_pages_own_script_may_run_and_nothing_is_fetched(tmp_path: Path) -> None:
    finished(tmp_path / "a.svs")
    write_report(tmp_path, summary_rows(tmp_path))
    page = Page(tmp_path)
    (policy,) = [attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs]
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)
    assert not re.search(r"https?://|url\(|@import|<link", page.text)
    assert "/patients/" not in page.text
    write_report(tmp_path, summary_rows(tmp_path))
    assert Page(tmp_path).text == page.text


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n1234", b"GIF89a"])
def test_a_picture_that_is_none_costs_only_itself(tmp_path: Path, content: bytes) -> None:
    finished(tmp_path / "a.svs")
    finished(tmp_path / "b.svs")
    (tmp_path / "a.svs" / "overview.png").write_bytes(content)
    write_report(tmp_path, summary_rows(tmp_path))
    assert [tag for tag, _ in Page(tmp_path).tags].count("img") == 1
    assert len(Page(tmp_path).rows) == 3


def test_a_huge_picture_is_not_opened(tmp_path: Path) -> None:
    finished(tmp_path / "a.svs")
    Image.new("1", (9000, 9000)).save(tmp_path / "a.svs" / "overview.png")
    write_report(tmp_path, summary_rows(tmp_path))
    assert "img" not in [tag for tag, _ in Page(tmp_path).tags]


def test_five_hundred_inputs(tmp_path: Path) -> None:
    for i in range(500):
        finished(tmp_path / f"group {i % 7}" / f"{i}.png", objects=i, size=(640, 300))
    write_report(tmp_path, summary_rows(tmp_path))
    page = Page(tmp_path)
    assert sorted(int(keys[2] or 0) for keys in page.keys[1:]) == list(range(500))
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_foreign_report_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<!DOCTYPE html>\n<p>mine")
    for write in (partial(write_report, rows=[]), write_summary):
        with pytest.raises(CdalError, match="did not write"):
            write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
