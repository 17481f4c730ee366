"""asyncssh's server, by itself: ``python -m benchmarks.peers.asyncssh_server DIRECTORY``, which has its keys.

It runs commands through the shell, in a pseudo-terminal where one is asked for, and serves files. It says its
port, and ends when its stdin does.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncssh

_BLOCK = 1 << 16


async def run(process: Any) -> None:
    """One command."""
    if process.term_type is not None:
        await run_in_terminal(process)
        return
    child = await asyncio.create_subprocess_shell(
        process.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    await asyncio.gather(copy(child.stdout, process.stdout), copy(child.stderr, process.stderr))
    process.exit(await child.wait())


async def copy(source: Any, target: Any) -> None:
    """All that comes, as fast as it is taken."""
    while data := await source.read(_BLOCK):
        target.write(data)
        await target.drain()


async def run_in_terminal(process: Any) -> None:
    """One command in a pseudo-terminal, which asyncssh leaves to its users."""
    master, slave = os.openpty()
    command = ["sh", "-c", 'exec "$@" <>"$0" >&0 2>&0', os.ttyname(slave), "sh", "-c"]
    child = await asyncio.create_subprocess_exec(*command, process.command, start_new_session=True)
    loop = asyncio.get_running_loop()
    loop.add_reader(master, lambda: process.stdout.write(os.read(master, _BLOCK)))
    try:
        while data := await process.stdin.read(_BLOCK):
            os.write(master, data)
    except (asyncssh.Error, ConnectionError):
        pass
    finally:
        loop.remove_reader(master)
        child.kill()
        await child.wait()
        os.close(slave)
        os.close(master)
    process.exit(0)


async def main() -> None:
    """Serve until stdin ends."""
    directory = Path(sys.argv[1])
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[str(directory / "host")],
        authorized_client_keys=str(directory / "authorized"),
        process_factory=run,
        sftp_factory=True,
        allow_scp=True,
        encoding=None,
    )
    print(server.get_port(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
