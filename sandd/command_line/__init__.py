"""What all commands have in common that talk to a controller.

In reading order: `options` (what they share on the command line), `remote_command` (where that of another command
begins), `exit_codes` (what becomes of a command's end), `stopping` (the signals that end one of ours, and words for
what goes wrong), `writing` and `telling` (what they say, and what becomes of it), `outages` (of daemons that are
away), `connecting` (the controller that is meant), `reaching` (its
daemon, or one of our own), `choosing` and `finding_jobs` (which job is meant).
"""
