"""``sandd forward``: ports here that lead to a daemon's side, and the other way round.

In reading order: `targets` (what is to lead where: no I/O), `forward` (the command), `options` (its command
line).
"""
