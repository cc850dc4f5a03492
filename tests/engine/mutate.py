"""Open and read mutated copies of a file: `mutate.py FILE FIRST COUNT FOLDER`.

Run as a process of its own, with little memory and a time limit for each copy. Prints the number of
a copy before it is read, so that one that ends the process is known, and a line for each that ends
other than read or refused.
"""

from __future__ import annotations

import logging
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

from cdal_engine.errors import CdalError
from cdal_engine.io.discovery import open_source

MEMORY = 3 * 2**30  # bytes
SECONDS = 30


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Flip some bytes, most of them where headers are; now and then cut, repeat or swap."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        end = len(data) if chance.random() < 0.5 else min(len(data), 512)
        place = chance.randrange(end) if chance.random() < 0.8 else chance.randrange(len(data))
        data[place] = chance.choice((chance.randrange(256), 0, 255, 127, data[place] ^ 1))
    if chance.random() < 0.1:
        del data[chance.randrange(1, len(data)) :]
    return bytes(data)


def copy_of(path: Path, target: Path, chance: random.Random) -> None:
    """Write a mutated copy: of a folder, with one of its files mutated."""
    if path.is_file():
        target.write_bytes(mutated(path.read_bytes(), chance))
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(path, target)
    files = sorted(p for p in target.rglob("*") if p.is_file())
    small = [p for p in files if p.stat().st_size < 20_000] or files
    one = chance.choice(small if chance.random() < 0.7 else files)
    one.chmod(0o644)
    one.write_bytes(mutated(one.read_bytes(), chance))


def main() -> None:
    """Read `COUNT` copies."""
    path, folder = Path(sys.argv[1]), Path(sys.argv[4])
    first, count = int(sys.argv[2]), int(sys.argv[3])
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    target = folder / path.name
    for seed in range(first, first + count):
        print("at", seed, flush=True)
        copy_of(path, target, random.Random(seed))
        signal.alarm(SECONDS)
        try:
            source = open_source(target)
            source.thumbnail(64)
            source.read(len(source.levels) - 1)
        except CdalError:
            pass
        except BaseException as error:
            print("wrong", seed, type(error).__name__, str(error)[:200], flush=True)
        signal.alarm(0)
    print("end", flush=True)


if __name__ == "__main__":
    main()
