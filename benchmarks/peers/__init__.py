"""Ours beside others that do the same: ``python -m benchmarks.peers``; docs/performance.rst says how.

Reading order: `__main__` runs the works in `works`, which have `contestants` do the same things in turns;
`figures` compares them. `drivers` asks a program and `answering` is that program's half: `ours`, `ours_many`,
`original`, `asyncssh_client` and `stock` are the programs, and `stand_in`, `cores` and `asyncssh_server` are
started by them. `local`, `raw_tls` and `openssh` are asked in the same way and have no driver. `packages`
installs.
"""
