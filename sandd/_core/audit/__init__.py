"""The audit log: who asked for what, and what became of it, on a controller's disk.

In reading order. Without I/O: `escaping` and `redaction` (what a line never holds), `records` (one event),
`chain` (each line vouches for the one before it), `sinks` (what those who have something to tell call), `trail`
(the jobs of a router, from request to end), `flood` (what strangers may write, and who is refused much), `comings` and
`changes` (what the controller tells of itself). With it: `options`, `keys` (who signs), `segments` (the files),
`verifying` (whether they are what was written), `writer` (the log of a running controller).
"""
