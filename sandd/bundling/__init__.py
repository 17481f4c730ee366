"""``sandd bundle``: the daemon as one file.

`options` (its command line), `commands` (what it does). What is in the file: `sandd._core.bundle`.
"""
