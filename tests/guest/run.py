"""Run tests in a guest whose kernel has control groups v2 with all their controllers: ``nox -s guest``.

A machine whose controllers belong to v1 has none for v2. The guest is a user-mode Linux (Debian's package
``user-mode-linux``): a kernel that is an ordinary program, with this machine's files, read-only, as its own. It has one
processor, and is several times slower.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = [
    "tests/test_processes_limit_groups.py",
    "tests/test_processes_limits.py",
    "tests/test_processes_control_groups.py",
    "tests/test_abuse_limits.py",
]
MEMORY = "1500M"
WITHIN = 1200.0
"""Seconds; it takes four minutes."""


def main() -> int:
    """The exit status of pytest in there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", default=TESTS)
    tests = parser.parse_args().tests
    kernel = shutil.which("linux.uml")
    if kernel is None:
        print("linux.uml is missing: apt-get install user-mode-linux", file=sys.stderr)
        return 1
    if any(" " in each or "," in each for each in (*tests, str(HERE), sys.executable)):
        print("a kernel's command line can't tell paths with spaces or commas", file=sys.stderr)
        return 1
    command = [kernel, f"mem={MEMORY}", "rootfstype=hostfs", "ro", f"init={HERE / 'init'}"]
    command += ["con=null", "con0=null,fd:1", "quiet"]
    command += [f"CHECKOUT={HERE.parent.parent}", f"PYTHON={sys.executable}"]
    command += [f"TESTS={','.join(tests)}"]
    # Its memory is a file, which should be one in memory.
    environment = dict(os.environ, TMPDIR="/dev/shm")
    status = 1
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, text=True
    ) as guest:
        end = threading.Timer(WITHIN, guest.kill)
        end.start()
        try:
            assert guest.stdout is not None
            for line in guest.stdout:
                print(line.rstrip(), flush=True)
                if ended := re.match(r"guest: exit (\d+)", line):
                    status = int(ended[1])
        finally:
            end.cancel()
            guest.kill()
    return status


if __name__ == "__main__":
    sys.exit(main())
