"""How fast files go up and come down: a large one, and many small ones."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import floors
from benchmarks.cpu import CpuMeter
from benchmarks.fleet import open_fleet
from benchmarks.openssh import open_openssh
from benchmarks.report import Row, Target, compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.report import Unit

MB = 1_000_000
LARGE, LARGE_QUICK = 1 << 30, 1 << 27
SMALL_BYTES = 1024
SMALL_COUNT, SMALL_COUNT_QUICK = 10_000, 1_000
ROUNDS, ROUNDS_QUICK = 3, 1
BULK_TARGET = Target(1 / 0.6, of="ratio")
"""At least 0.6 of the rate of a plain loop over loopback TCP with hash at both ends."""


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A directory for all that is copied, on the disk that temporary files are on."""
    with tempfile.TemporaryDirectory(prefix="sandd-bench-") as name:
        yield Path(name)


def make_large(path: Path, size: int) -> None:
    """A file that no two blocks are alike in."""
    with path.open("wb") as file:
        for number in range(size >> 20):
            block = hashlib.blake2b(number.to_bytes(8, "big")).digest()
            file.write(block * (1 << 14))


def make_small(directory: Path, count: int) -> None:
    """That many files, a hundred in a directory."""
    for number in range(count):
        if number % 100 == 0:
            below = directory / f"{number // 100:04}"
            below.mkdir(parents=True)
        (below / f"{number:06}").write_bytes(os.urandom(SMALL_BYTES))


async def measure_large(quick: bool) -> list[Row]:
    """The rate of one large file each way, and beside it what else copies it."""
    size = LARGE_QUICK if quick else LARGE
    rates: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        rates.setdefault(name, []).append(size / MB / seconds)

    with open_directory() as directory, open_openssh(directory / "ssh") as ssh:
        source = directory / "source"
        make_large(source, size)
        async with open_fleet(1) as fleet:
            daemon = fleet.daemons[0]
            meters = {"upload": CpuMeter(fleet), "download": CpuMeter(fleet)}
            rounds = ROUNDS_QUICK if quick else ROUNDS
            for number in range(rounds):
                there, back, plain = (
                    directory / f"{name}{number}" for name in ("up", "down", "tcp")
                )
                with meters["upload"].counting():
                    result = await daemon.upload(source, str(there))
                note("upload", result.seconds)
                with meters["download"].counting():
                    result = await daemon.download(str(there), back)
                note("download", result.seconds)
                note("floor", floors.copy_file_tcp(source, plain))
                note("cp", _seconds(partial(shutil.copyfile, source, directory / "cp")))
                if ssh is not None:
                    note("scp", ssh.copy(source, directory / "scp"))
                for path in (there, back, plain):
                    path.unlink()
            cpu = [
                row
                for name, meter in meters.items()
                for row in meter.rows(size // MB * rounds, "MB", label=f"{name}: ")
            ]
    return [
        compare(name, "MB/s", ours=rates[name], floor=rates["floor"], target=BULK_TARGET)
        for name in ("upload", "download")
    ] + [*cpu, *_others(rates, ("cp", "scp"), "MB/s")]


async def measure_small(quick: bool) -> list[Row]:
    """Files a second, many small ones each way, and beside it what else copies them."""
    count = SMALL_COUNT_QUICK if quick else SMALL_COUNT
    rates: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        rates.setdefault(name, []).append(count / seconds)

    with open_directory() as directory, open_openssh(directory / "ssh") as ssh:
        source = directory / "source"
        make_small(source, count)
        async with open_fleet(1) as fleet:
            daemon = fleet.daemons[0]
            for number in range(ROUNDS_QUICK if quick else ROUNDS):
                there, back, plain = (
                    directory / f"{name}{number}" for name in ("up", "down", "own")
                )
                result = await daemon.upload(source, str(there))
                assert result.files == count, f"{result.files} files went up, not {count}"
                note("upload", result.seconds)
                result = await daemon.download(str(there), back)
                assert result.files == count, f"{result.files} files came down, not {count}"
                note("download", result.seconds)
                result = await daemon.upload(source, str(there), update=True)
                assert result.bytes == 0, f"{result.bytes} bytes went up again"
                note("upload again, update=True", result.seconds)
                note("floor", floors.write_files(source, plain))
                copy = directory / f"cp{number}"
                note("cp -r", _seconds(partial(shutil.copytree, source, copy)))
                if ssh is not None:
                    note("sftp put -r", ssh.copy_tree(source, directory / f"sftp{number}"))
                    note("tar through ssh", ssh.pipe_tree(source, directory / f"tar{number}"))
    names = ("upload", "download", "upload again, update=True")
    return [compare(name, "files/s", ours=rates[name], floor=rates["floor"]) for name in names] + [
        *_others(rates, ("cp -r", "sftp put -r", "tar through ssh"), "files/s")
    ]


def _others(rates: dict[str, list[float]], names: tuple[str, ...], unit: Unit) -> list[Row]:
    """What else copies the same, each as a floor of its own beside both ways of ours."""
    return [
        compare(f"{way} beside {name}", unit, ours=rates[way], floor=rates[name])
        for name in names
        if name in rates
        for way in ("upload", "download")
    ]


def _seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started
