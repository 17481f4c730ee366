"""Files of this machine, for a peer: what it may reach, and what is done there. All of it blocks.

In reading order: ``roots`` (which paths a peer may name).
"""
