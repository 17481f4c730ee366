"""The commands about daemons and their jobs: ``sandd ps``, ``top``, ``jobs``, ``logs``, ``kill``, ``forget``, ``run``.

In reading order. Without I/O: `tables` (daemons and jobs as lines of a table), `busy` (how busy they are), `lines`
(whole lines out of chunks that end anywhere), `outcomes` (what has become of a broadcast). `output` (bytes on stdout
and stderr, never torn), `screen` (a live view). The commands: `listing` (``ps``, ``jobs``), `watching` (``ps
--watch``), `top`, `reading` (``logs``), `ending` (``kill``, ``forget``), `broadcasting` (``run``); `options` has their
command lines.
"""
