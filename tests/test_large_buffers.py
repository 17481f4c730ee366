"""`sandd._core.large_buffers`: what the C library does with the memory of messages."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
from sandd._core.large_buffers import keep_large_buffers

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_large_buffers()
keep_large_buffers()
kept = [b"x" * 1000 for _ in range(1000)]
for size in (1 << 17, 1 << 18, 1 << 20):
    bytearray(size)
before = faults()
for _ in range(100):
    for size in (1 << 17, 1 << 18, 1 << 20):
        first = b"x" * size
        second = first + b"y"
print(faults() - before)
"""

COUNT_FAULTS_OF_A_TRANSFER = """
import resource
from sandd._core.large_buffers import keep_large_buffers

keep_large_buffers()
faults = []
for _ in range(20):
    held = [bytearray(1 << 19) for _ in range(24)]
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    del held
print(faults[-1] - faults[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_large_buffers_are_kept_for_the_next() -> None:
    """A buffer of the size of a message comes without a page fault for each of its pages."""
    pytest.importorskip("ctypes")
    said = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, check=True)
    pages = 100 * 2 * (1 << 17 | 1 << 18 | 1 << 20) // 4096
    assert int(said.stdout) < pages // 20


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_a_transfer_lets_go_of_at_once_is_kept_for_what_comes_next() -> None:
    """12 MiB in messages: what it had under way, and had taken in."""
    pytest.importorskip("ctypes")
    command = [sys.executable, "-c", COUNT_FAULTS_OF_A_TRANSFER]
    said = subprocess.run(command, capture_output=True, check=True)
    assert int(said.stdout) < 19 * (24 << 19) // 4096 // 20
