"""Files and trees, into the sandbox and back: copied, brought up to date, read and written there."""

import sys
import tempfile
from pathlib import Path

import trio

import sandd

DAEMON = [sys.executable, "-m", "sandd.daemon", "--daemon-id", "worker-1", "--log-level", "warning"]


async def work(worker: sandd.Daemon, here: Path, there: Path) -> None:
    """Bring a project there, have it changed, and take what it made back."""
    (here / "project" / "src").mkdir(parents=True)
    (here / "project" / "src" / "main.py").write_text("print(6 * 7)\n")
    (here / "project" / "notes.tmp").write_text("not for anybody")

    result = await worker.upload(here / "project", there / "project", exclude="*.tmp")
    print(f"uploaded {result.files} file, {result.bytes} bytes")
    result = await worker.upload(here / "project", there / "project", exclude="*.tmp", update=True)
    print(f"again: {result.skipped} skipped, {result.bytes} bytes")

    project = worker.path(there / "project")
    await worker.run(f"{sys.executable} src/main.py > answer", cwd=str(project), check=True)
    print(f"the answer: {await (project / 'answer').read_text()!r}")
    await (project / "answer").write_text("43\n")  # at every moment the old file, or the new one
    print(sorted(path.name for path in await project.iterdir()))

    seen: list[tuple[int, int]] = []
    await worker.download(
        project / "answer", here / "answer", progress=lambda done, total: seen.append((done, total))
    )
    print(f"downloaded {seen[-1][0]} bytes of {seen[-1][1]}: {(here / 'answer').read_text()!r}")
    try:
        await worker.download(there / "missing", here / "missing")
    except FileNotFoundError as error:  # a sandd.TransferError, too
        print(f"{error.strerror}: {Path(error.filename).name}")


async def main() -> None:
    """Start a controller, a daemon of our own, and work with it."""
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
        async with sandd.open_controller(port=0) as controller, trio.open_nursery() as nursery:
            nursery.start_soon(trio.run_process, [*DAEMON, "--server-url", controller.url])
            with trio.fail_after(60):
                worker = await controller.wait_for_daemon("worker-1")
                await work(worker, Path(here), Path(there))
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
