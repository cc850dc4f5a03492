"""Run pytest with a display for Qt: `python tests/run_tests.py [pytest arguments]`.

On Linux without a display it starts its own virtual one (Xvfb) and, on Debian and Ubuntu, first
installs the system libraries that Qt and OpenGL miss. Elsewhere it only runs pytest.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What Qt's xcb platform plugin and vispy load, and the Debian package that has it.
LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
}


def missing_packages() -> list[str]:
    """Debian packages of the libraries and programs that are not on this system."""

    def loads(library: str) -> bool:
        try:
            ctypes.CDLL(library)
        except OSError:
            return False
        return True

    missing = [package for library, package in LIBRARIES.items() if not loads(library)]
    return missing if shutil.which("Xvfb") else ["xvfb", *missing]


def install(packages: list[str]) -> None:
    """Install with apt-get where this user may; otherwise print the line to run, and go on."""
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300"]
    command = [*apt, "install", "-y", "--no-install-recommends", *packages]
    if shutil.which("apt-get"):
        root: list[str] | None = [] if os.geteuid() == 0 else None
        if root is None and shutil.which("sudo"):
            asked = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
            root = ["sudo", "-n"] if asked.returncode == 0 else None
        if root is not None:
            root = [*root, "env", "DEBIAN_FRONTEND=noninteractive"]
            subprocess.run([*root, *apt, "update", "-q"], check=False)
            if subprocess.run([*root, *command, "-q"], check=False).returncode == 0:
                return
    print("Qt needs system libraries. On Debian or Ubuntu run this once:", file=sys.stderr)
    print(f"  sudo apt-get install {' '.join(packages)}", file=sys.stderr)


@contextmanager
def display() -> Iterator[str]:
    """Run an X server without a screen on a free display number and yield its name."""
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-screen", "0", "1600x1200x24", "-nolisten", "tcp"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        number = server.stdout.readline().strip()
        if not number:
            raise SystemExit("Xvfb does not start; set DISPLAY to an X server")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()


def run_pytest(environment: dict[str, str]) -> int:
    """Run pytest with this script's arguments and return its exit code."""
    return subprocess.call([sys.executable, "-m", "pytest", *sys.argv[1:]], env=environment)


def main() -> int:
    """Prepare what is missing, run pytest, return its exit code."""
    chosen = {"DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"} & os.environ.keys()
    if sys.platform != "linux" or chosen:
        return run_pytest(dict(os.environ))
    if packages := missing_packages():
        install(packages)
    if not shutil.which("Xvfb"):
        return 2
    with display() as name:
        return run_pytest({**os.environ, "DISPLAY": name})


if __name__ == "__main__":
    sys.exit(main())
