"""``sandd exec``: one command on a daemon, as if it ran here.

In reading order: `own_input` (this program's stdin), `execute` (the command), `options`
(its command line).
"""
