"""The daemon as one file, ``sandd-daemon.pyz``, that a bare Python runs.

In reading order: `modules` (which modules it is made of), `trimming` (what of their text nobody runs), `archive` (the
file). It is made from what is installed here, by ``sandd bundle`` and by a controller that hands it out: `script` (what
a shell does to get it), `handing_out` (both, for whoever asks).
"""
