"""Long tests of what must never happen: ``python -m benchmarks.soak NAME``.

cuts
    Commands with much output and input through connections that break at random bytes, again and again.
files
    A large file up and down through such connections, and 10,000 small ones.
stalled
    A command that wants to write 10 GiB while its reader stands still.
restart
    A controller that dies under hundreds of daemons, and the next one.

Each prints its seed and its figures, and ends with exit code 1 if anything did not hold. Minutes each,
or seconds with ``--quick``; tests/test_soaks.py runs them quickly.
"""
