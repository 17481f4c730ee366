"""Who may come in, and what for: tokens, daemons' own keys, tenants and rights.

In reading order. Without I/O: `tokens` (a token as text), `proofs` (how one is shown without being told), `rights`
(what whoever came in may ask for), `records` (what a controller keeps of tokens and daemons). The controller:
`database` (these records on the disk), `store` (the same for a trio program), `gate` (who is let in, and who has to
leave again), `journal` (what commands have changed, for the audit log), `administration` (what `Controller` offers).
The daemon: `keyring` (its own keys).
"""
