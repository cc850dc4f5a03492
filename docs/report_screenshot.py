"""Make the picture of report.html with the real program: python docs/report_screenshot.py

Runs `cdal batch` on parts of the sample and a damaged file, opens the page in headless Chromium,
which must be installed, and saves it as docs/images/report.png.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from cdal_engine.samples import he_path

OUT = Path(__file__).parent / "images" / "report.png"
CLI = [sys.executable, "-c", "from cdal_engine.cli import main; main()"]


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "biopsies"
        folder.mkdir()
        with Image.open(he_path()) as image:
            for i, corner in enumerate([(0, 0), (200, 60), (256, 256)], 1):
                box = (*corner, corner[0] + 256, corner[1] + 192)
                image.crop(box).save(folder / f"case {i}.png", dpi=image.info["dpi"])
        (folder / "case 4.png").write_bytes((folder / "case 3.png").read_bytes()[:5000])
        subprocess.run([*CLI, "batch", str(folder)], check=False)
        subprocess.run(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--hide-scrollbars",
                f"--user-data-dir={name}/chromium",
                "--window-size=1300,900",
                f"--screenshot={OUT}",
                (folder / "cdal-out" / "report.html").as_uri(),
            ],
            check=True,
        )


if __name__ == "__main__":
    main()
