"""Many small files, up."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks.files import make_small, open_directory
from benchmarks.peers import contestants as who
from benchmarks.peers.figures import figure
from benchmarks.peers.works.turns import in_turns

if TYPE_CHECKING:
    from benchmarks.peers.figures import Figure

ABOUT = "a tree of 2,000 files of 1 KiB, up; OpenSSH by sftp, and by tar through ssh"
COUNT, COUNT_QUICK = 2_000, 100
ROUNDS, ROUNDS_QUICK = 3, 1
TAR = "tar through ssh"


def measure(quick: bool) -> list[Figure]:
    """Files a second."""
    count, rounds = (COUNT_QUICK, ROUNDS_QUICK) if quick else (COUNT, ROUNDS)
    rates: dict[str, list[float]] = {}
    peers = (who.OURS, who.ASYNCSSH, who.OPENSSH, who.FLOOR)
    with open_directory() as directory, who.open_contestants(*peers) as everybody:
        source, target = directory / "source", directory / "target"
        make_small(source, count)
        for each in in_turns(everybody, rounds):
            ways = {each.name: "upload_tree"}
            if each.name == who.OPENSSH:
                ways[TAR] = "pipe_tree"
            for name, way in ways.items():
                seconds = each.ask(way, source=str(source), target=str(target)).value
                rates.setdefault(name, []).append(count / seconds)
                shutil.rmtree(target)
    return [figure("upload", "files/s", rates)]
