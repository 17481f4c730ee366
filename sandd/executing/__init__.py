"""``sandd exec``: one command on a daemon, as if it ran here.

In reading order: `own_streams` (this program's stdin, stdout and stderr), `execute` (the command), `options`
(its command line).
"""
