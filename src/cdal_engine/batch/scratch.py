"""What a slide's run keeps of its blocks, so that a killed run goes on where it was.

`.cdal-blocks/` in the results folder: `blocks.json` says what the blocks are of, `blocks.jsonl` has
a line for each finished stage of a block, with its file's checksum; a file without its line counts
for nothing. A run of anything else starts anew.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import CdalError
from ..io.records import write_aside, write_json, writing
from .plan import Block

__all__ = ["BlockFiles", "Scratch", "Stage", "forget_blocks"]

Stage = Literal["maps", "labels", "objects"]
_STAGES = frozenset({"maps", "labels", "objects"})
_FOLDER = ".cdal-blocks"
_MANIFEST, _JOURNAL, _ASIDE = "blocks.json", "blocks.jsonl", "results-"
_PIECE = 1 << 20  # bytes


class BlockFiles:
    """What the stages of one slide's blocks found, each a file or folder of files.

    Parameters
    ----------
    folder : Path
        The results folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / _FOLDER

    def aside(self) -> Path:
        """Make an empty folder to write results in before they are moved into place."""
        with writing(self.folder):
            for old in self.folder.glob(f"{_ASIDE}*"):
                _remove(old)
            # Of a name of its own, as files are: see `store`.
            folder = self.folder / f"{_ASIDE}{secrets.token_hex(4)}"
            folder.mkdir()
        return folder

    def store(self, stage: Stage, block: Block, arrays: Mapping[str, NDArray[Any]]) -> int:
        """Write what a stage found and return its checksum, which makes it count: `Scratch.record`.

        Maps are files to be read in parts, the others are packed.
        """
        name = _name(stage, block)
        path = self.folder / name
        # Of a name of its own: a worker thought dead may still write the same.
        aside = self.folder / f"{name}.{secrets.token_hex(4)}.part"
        with writing(self.folder):
            path.parent.mkdir(exist_ok=True)
            if stage == "maps":
                aside.mkdir()
                for key, array in arrays.items():
                    np.save(aside / f"{key}.npy", array, allow_pickle=False)
            else:
                with aside.open("wb") as file:
                    np.savez_compressed(file, allow_pickle=False, **arrays)
            checksum = _checksum(aside)
            _remove(path)  # of a killed run: without its line it counts for nothing
            os.replace(aside, path)
        return checksum

    def maps(self, block: Block) -> dict[str, NDArray[Any]]:
        """A block's maps, read from disk only where they are looked at."""
        files = (self.folder / _name("maps", block)).glob("*.npy")
        return {f.stem: np.load(f, mmap_mode="r", allow_pickle=False) for f in files}

    def read(self, stage: Stage, block: Block, *keys: str) -> dict[str, NDArray[Any]]:
        """What another stage found, or some of it."""
        with np.load(self.folder / _name(stage, block), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in keys or arrays.files}


class Scratch(BlockFiles):
    """The finished blocks of one slide, on disk.

    Parameters
    ----------
    folder : Path
        The results folder, which the run holds: see `lock.alone`.
    identity : dict
        JSON of all that decides the blocks' bits: input, model, parameters.

    Raises
    ------
    CdalError
        If it cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        super().__init__(folder)
        self._done: dict[str, int] = {}  # checksums by `_name`
        with writing(folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._go_on(identity)

    def has(self, stage: Stage, block: Block) -> bool:
        """Whether a stage of a block is finished, and what it found still there."""
        return _name(stage, block) in self._done

    def put(self, stage: Stage, block: Block, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Store what a stage found, and record it."""
        self.record(stage, block, self.store(stage, block, arrays))

    def record(self, stage: Stage, block: Block, checksum: int) -> None:
        """Record that a stage of a block is finished, and stored under a checksum."""
        name = _name(stage, block)
        with writing(self.folder), (self.folder / _JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(_line(name, checksum))
        self._done[name] = checksum

    def drop_maps(self, block: Block) -> None:
        """Remove maps that are no longer needed."""
        name = _name("maps", block)
        if self._done.pop(name, None) is not None:
            _remove(self.folder / name)

    def remove(self) -> None:
        """Remove everything: the results are in place."""
        self._clear()
        self._done.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._done:
            self._clear()
        with suppress(OSError):
            self.folder.rmdir()  # if nothing is kept

    def _go_on(self, identity: dict[str, Any]) -> None:
        """Take over what an earlier run of the same finished; remove what another one left."""
        before = _read(self.folder / _MANIFEST)
        if before is None or before.get("identity") != identity:
            self._clear()
            write_json(self.folder / _MANIFEST, {"identity": identity})
        journal = self.folder / _JOURNAL
        lines = journal.read_text("utf-8", "replace").splitlines() if journal.exists() else []
        for line in lines:
            with suppress(ValueError, KeyError, TypeError, OSError):  # cut off, or its file gone
                ended = json.loads(line)
                name, checksum = str(ended["done"]), int(ended["checksum"])
                ours = name.split("/")[0] in _STAGES and ".." not in name
                if ours and _checksum(self.folder / name) == checksum:
                    self._done[name] = checksum
        for left in (each for stage in _STAGES for each in (self.folder / stage).glob("*")):
            if f"{left.parent.name}/{left.name}" not in self._done:
                _remove(left)  # of a killed run
        write_aside(journal, "".join(_line(*each) for each in self._done.items()).encode())

    def _clear(self) -> None:
        asides = self.folder.glob(f"{_ASIDE}*")
        for path in (*asides, *(self.folder / name for name in (_MANIFEST, _JOURNAL, *_STAGES))):
            _remove(path)


def forget_blocks(folder: Path) -> None:
    """Remove what a run that was killed at the very end left: its results are in place."""
    if (folder / _FOLDER).is_dir():
        with suppress(CdalError), Scratch(folder, {}) as scratch:
            scratch.remove()


def _name(stage: Stage, block: Block) -> str:
    """Path of a stage's file below the folder."""
    return f"{stage}/{block.row:05}-{block.column:05}"


def _line(name: str, checksum: int) -> str:
    return json.dumps({"done": name, "checksum": checksum}) + "\n"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _checksum(path: Path) -> int:
    """CRC-32 of a file, or of the files in a folder."""
    value = 0
    for each in sorted(path.iterdir()) if path.is_dir() else [path]:
        value = zlib.crc32(each.name.encode() if path.is_dir() else b"", value)
        with each.open("rb") as file:
            while piece := file.read(_PIECE):
                value = zlib.crc32(piece, value)
    return value


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
