"""Who may come in, on the controller's own machine: ``sandd token`` and ``sandd daemons``.

They change the controller's state directory, whether it runs or not; one that runs takes notice within a second. In
reading order: `tables` (tokens and daemons as lines of a table), `commands` (what is done), `options` (the command
lines).
"""
