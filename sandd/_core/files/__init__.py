"""Files of this machine, for a peer: what it may reach, and what is done there. All of it blocks.

In reading order: ``roots`` (every call that reaches a file, in one place), ``beneath`` (how to find a directory and
never leave another), ``confined_roots`` and, for Windows, ``realpath_roots`` (a daemon's ``--root``),
``operations`` (what is asked of files), ``globbing``, ``removal``.
"""
