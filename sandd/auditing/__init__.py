"""``sandd audit``: what a controller's audit log says, and whether it is what was written.

In reading order: `options` (the command lines), `places` (which log is meant), `selecting` (which of its records are
wanted; no I/O), `showing` (a record for a person, for a table; no I/O), `reading` (records out of files, as they are
written), `commands`.
"""
