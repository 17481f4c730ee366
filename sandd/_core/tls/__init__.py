"""TLS: a certificate authority of the controller's own, and how its peers come to trust it.

In reading order. No I/O: `pins` (what a CA is known by), `plain` (where no TLS is needed), `trust_options` (what a
peer was told), `key_pair`, `rotation` (from one CA to the next, in steps). Both programs, with nothing but the standard
library: `contexts` (what is demanded of a peer), `trust` (a peer's: the first contact with a pin, and what it learns
later). The controller's alone: `authority` (makes certificates; alone here it needs the package cryptography), `files`
(where they are kept), `certificates` (what is served by, from the disk), `renewal` (keeps that fresh while it runs).
"""
