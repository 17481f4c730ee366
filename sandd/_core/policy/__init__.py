"""Which commands, files and ports may be asked for at all: the allowlist of a daemon, and of a controller.

Without I/O: `rules` (what a policy says, and its hash), `patterns` (regexes that can't run away), `paths`,
`reading` (from TOML), `judging` (whether something is allowed), `environment` (which variables pass), `linting`
(what its author should know). On the daemon: `trust` (who may write a file), `executables` (the program that was
judged is the one that is run), `granted_files`, `gate`. On the controller: `tenants`.
"""
