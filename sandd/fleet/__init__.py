"""The commands about many daemons and their jobs: ``sandd ps``, ``jobs``, ``logs``, ``kill``, ``forget``, ``run``.

In reading order. Without I/O: `tables` (daemons and jobs as lines of a table), `lines` (whole lines out of chunks
that end anywhere), `outcomes` (what has become of a broadcast). `output` (bytes on stdout and stderr, never torn). The
commands: `listing` (``ps``, ``jobs``), `watching` (``ps --watch``), `reading` (``logs``), `ending` (``kill``,
``forget``), `broadcasting` (``run``); `options` has their command lines.
"""
