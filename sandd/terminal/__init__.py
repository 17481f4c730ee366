"""The person's end of a session: this machine's terminal, and the commands that put it to use.

In reading order: `escapes` (what the person types that is for us), `modes` (what a program has
switched on in the terminal), `replay` (what may be shown a second time), `local` (the terminal, over
`posix` or `windows`), `conversation` (a terminal and a session), `program` (signals, and words for what goes
wrong), `options` and `shell` (``sandd shell``, ``sandd attach``).
"""
