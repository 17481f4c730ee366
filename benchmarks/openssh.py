"""OpenSSH on this machine, for comparison: a server of our own, for as long as it is measured."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS = 10.0
_SSHD_PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


@frozen
class OpenSsh:
    """A server on loopback, and how to reach it."""

    port: int
    key: Path

    @property
    def _options(self) -> list[str]:
        return [
            *("-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"),
            *("-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
        ]

    def copy(self, source: Path, target: Path) -> float:
        """Seconds for `scp` of one file to the server."""
        return _timed(
            ["scp", "-P", str(self.port), *self._options, str(source), f"{_host()}:{target}"]
        )

    def fetch(self, source: Path, target: Path) -> float:
        """Seconds for `scp` of one file from the server."""
        return _timed(
            ["scp", "-P", str(self.port), *self._options, f"{_host()}:{source}", str(target)]
        )

    def command(self, command: str, *options: str) -> list[str]:
        """What runs a command on the server, by connections that all share the first one's."""
        shared = ["-o", "ControlMaster=auto", "-S", str(self.key.parent / "shared")]
        return ["ssh", "-p", str(self.port), *self._options, *shared, *options, _host(), command]

    def copy_tree(self, source: Path, target: Path) -> float:
        """Seconds for `sftp`'s ``put -r`` of a directory's content to the server."""
        target.mkdir()
        batch = f"put -r {source}/* {target}/\n"
        return _timed(
            ["sftp", "-q", "-P", str(self.port), *self._options, "-b", "-", _host()],
            given=batch.encode(),
        )

    def pipe_tree(self, source: Path, target: Path) -> float:
        """Seconds for a directory through tar, ssh and tar."""
        target.mkdir()
        ssh = " ".join(["ssh", "-p", str(self.port), *self._options, _host()])
        return _timed(["sh", "-c", f"tar -C {source} -cf - . | {ssh} tar -C {target} -xf -"])


def _host() -> str:
    return f"{getpass.getuser()}@127.0.0.1"


def _timed(command: list[str], given: bytes | None = None) -> float:
    started = time.perf_counter()
    subprocess.run(
        command, check=True, input=given, stdout=subprocess.DEVNULL, process_group=0, timeout=600
    )
    return time.perf_counter() - started


def find_sshd() -> str | None:
    """The server's program, where there is a client, too."""
    program = shutil.which("sshd", path=_SSHD_PLACES)
    return None if shutil.which("sftp") is None else program


@contextlib.contextmanager
def open_openssh(directory: Path) -> Iterator[OpenSsh | None]:
    """A server with its keys in `directory`; None where there is no sshd, or it doesn't let us in."""
    program = find_sshd()
    if program is None:
        yield None
        return
    directory.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True
        )
    (directory / "user.pub").rename(directory / "authorized")
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = int(found.getsockname()[1])
    configuration = directory / "config"
    configuration.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory / 'host'}\n"
        f"AuthorizedKeysFile {directory / 'authorized'}\nStrictModes no\nPermitRootLogin yes\n"
        f"UsePAM no\nPidFile none\nSubsystem sftp internal-sftp\n"
    )
    # It needs a directory to shut itself in, which its package makes at boot.
    with contextlib.suppress(OSError):
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with subprocess.Popen(
        [program, "-D", "-e", "-f", str(configuration)],
        stderr=subprocess.DEVNULL,
        process_group=0,
    ) as server:
        try:
            ssh = OpenSsh(port, directory / "user")
            yield ssh if _lets_in(ssh) else None
        finally:
            server.terminate()


def _lets_in(ssh: OpenSsh) -> bool:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        command = ["ssh", "-p", str(ssh.port), *ssh._options, _host(), "true"]
        if subprocess.run(command, stderr=subprocess.DEVNULL, process_group=0).returncode == 0:
            return True
        time.sleep(0.1)
    return False
