"""``sandd policy check``: what a policy file allows, and what its author should know. It asks no controller.

In reading order: `check` (what is found: text and disk), `command` (what is printed), `options` (its command line).
"""
