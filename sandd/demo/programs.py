"""What the demo has its daemon run: small Python programs, the same on every platform."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import Final

PRIMES: Final = """
import sys, time
first, end, block = map(int, sys.argv[1:])
for start in range(first, end, block):
    numbers = range(max(start, 2), start + block)
    count = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in numbers)
    print(f"{start:>5} to {start + block - 1}: {count} primes", flush=True)
    time.sleep(0.12)
"""
"""Count primes: first number, end, numbers per line."""

PACK: Final = "import sys, zlib; sys.stdout.buffer.write(zlib.compress(sys.stdin.buffer.read(), 1))"
UNPACK: Final = (
    "import sys, zlib; sys.stdout.buffer.write(zlib.decompress(sys.stdin.buffer.read()))"
)

TREE: Final = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
program, marker, more = sys.argv[1], sys.argv[2], int(sys.argv[3])
if more:
    argv = [sys.executable, "-c", program, program, marker, str(more - 1)]
    subprocess.Popen(argv, start_new_session=more % 2 == 0)
print("up", flush=True)
time.sleep(600)
"""
"""Be a process that ignores SIGTERM, and start another such: this program, a marker, how many more.

Every second one leaves the session and the process group, where no signal to the group finds it.
"""

COUNT: Final = """
import os, subprocess, sys
marker, lines = sys.stdin.read(), []
if os.path.isdir("/proc/self"):
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                lines.append(file.read().decode(errors="replace"))
        except OSError:
            pass
else:
    ask = ["ps", "-axww", "-o", "command="]
    if sys.platform == "win32":
        look = "(Get-CimInstance Win32_Process).CommandLine"
        ask = ["powershell", "-NoProfile", "-Command", look]
    lines = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines()
print(sum(marker in line for line in lines))
"""
"""Count all processes of the machine that have the text of stdin in their command line."""

LINES: Final = """
import hashlib, sys, time
for number in range(int(sys.argv[1])):
    digest = hashlib.sha256(b"%d" % number).hexdigest()
    sys.stdout.buffer.write(b"%07d %s\\n" % (number, digest.encode()))
    if number % 500 == 0:
        time.sleep(0.01)
"""
"""Write that many numbered lines, at a few megabytes a second."""


def python(program: str, *arguments: str) -> list[str]:
    """The command that runs one of these."""
    return [sys.executable, "-c", program, *arguments]


def pipeline(*commands: list[str]) -> str:
    """Commands for the shell, the output of each being the input of the next."""
    quote = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return " | ".join(quote(command) for command in commands)
