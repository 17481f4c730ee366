"""``sandd cp``: files and directories, between this machine and a daemon's.

In reading order: `places` (what is copied to where: decisions, no I/O), `progress` (the bar), `copy` (the
command), `options` (its command line).
"""
