"""report.html: one page on a folder of results, that opens without a network.

Built from the records and pictures below the folder, whose names and contents are not trusted:
all text is escaped, and no script but the page's own runs.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from urllib.parse import quote

from .overview import small_overview
from .records import REPORT, Record, check_summary, write_aside, writing

__all__ = ["write_report"]

_COLUMNS = {  # heading and unit: what it is sorted by
    "Picture": None,
    "Input": "results",
    "Objects": "objects",
    "Objects per mm²": "objects_per_mm2",
    "Area of objects, µm²": "area_um2",
    "Agreement": "agreement",
    "µm per pixel": "mpp",
    "Model": "model",
    "Seconds": "seconds",
}
_NUMBERS = ("objects", "objects_per_mm2", "area_um2")  # with the least and most of the samples


def write_report(out: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write report.html in `out`, a row an input.

    Parameters
    ----------
    out : Path
    rows : sequence of dict
        Of `records.summary_rows(out)`.

    Raises
    ------
    CdalError
        If it cannot be written, or one is there that is not ours.
    """
    check_summary(out)
    script = _part("report.js")
    ended = Counter(row["status"] for row in rows)
    page = Template(_part("report.html")).substitute(
        title=escape(f"Segmentation results in {out.absolute().parent.name}/{out.name}"),
        inputs=len(rows),
        ended=", ".join(f"{count} {status}" for status, count in sorted(ended.items())) or "none",
        headings="".join(map(_heading, _COLUMNS)),
        rows="\n".join(_row(out, row) for row in rows),
        script=script,
        hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with writing(out):
        write_aside(out / REPORT, page.encode("utf-8", "backslashreplace"))


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _heading(name: str) -> str:
    if _COLUMNS[name] is None:
        return "<th></th>"
    kind = ' class="number"' if _COLUMNS[name] in (*_NUMBERS, "agreement", "seconds") else ""
    return f'<th scope="col"{kind}><button type="button">{name}</button></th>'


def _row(out: Path, row: Record) -> str:
    cells = [
        _cell("", _picture(out, row["results"])),
        _cell(row["results"], _named(row), "wide"),
        *(_cell(row.get(name, ""), _figure(row, name), "number") for name in _NUMBERS),
        _cell(row.get("agreement", ""), _shown(row.get("agreement", "")), "number"),
        _cell(row.get("mpp", ""), _with_note(row.get("mpp", ""), row.get("mpp_source", ""))),
        _cell(row.get("model", ""), escape(row.get("model", "")), "model"),
        _cell(row.get("seconds", ""), _shown(row.get("seconds", "")), "number"),
    ]
    return f'<tr class="{escape(row["status"])}">{"".join(cells)}</tr>'


def _cell(value: str, content: str, kind: str = "") -> str:
    return f'<td class="{kind}" data-value="{escape(value)}">{content}</td>'


def _picture(out: Path, name: str) -> str:
    """The overview made small, and a link to it."""
    picture = small_overview(out / name / "overview.png")
    if picture is None:
        return ""
    data = base64.b64encode(picture).decode()
    # ./ so that no folder's name is taken for a scheme
    link = f"./{quote(name, errors='surrogateescape')}/overview.png"
    return f'<a href="{escape(link)}"><img alt="" src="data:image/jpeg;base64,{data}"></a>'


def _named(row: Record) -> str:
    parts = [f'<div class="name">{escape(row["results"])}</div>']
    if row["status"] != "done":
        parts.append(f"<small>{escape(row['status'])}</small>")
    for key, unit in (("volumes_mm3", "mm³"), ("class_areas_um2", "µm²")):
        if row.get(key):
            parts.append(f"<small>{unit}: {escape(row[key])}</small>")
    for key in ("error", "remedy"):
        if row.get(key):
            parts.append(f'<p class="{key}">{escape(row[key])}</p>')
    return "".join(parts)


def _figure(row: Record, name: str) -> str:
    least, most = (_shown(row.get(f"{name}_{end}", "")) for end in ("least", "most"))
    return _with_note(_shown(row.get(name, "")), f"{least} – {most}" if least else "")


def _shown(number: str) -> str:
    """A figure of the summary with as many digits as one reads."""
    if not number:
        return ""
    return f"{float(number):,.0f}" if abs(float(number)) >= 100 else f"{float(number):.3g}"


def _with_note(text: str, note: str) -> str:
    return escape(text) + (f"<small>{escape(note)}</small>" if note else "")
