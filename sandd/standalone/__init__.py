"""``sandd controller``: a controller that stands alone, for daemons and for whoever runs commands on them.

In reading order: `options` (what it can be told), `announcing` (what it says when it is ready), `program`
(from its start to its orderly end), `main` (the process: signals before all else, exit codes).
"""
