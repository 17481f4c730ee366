"""What commands have in common that are their own controller: ``sandd shell``, ``attach``, ``cp``, ``forward``.

In reading order: `stopping` (the signals that end a command, and words for what goes wrong),
`controller_options` (where to listen, on the command line), `own_controller` (the controller and the daemon,
for as long as the command takes).
"""
