"""How often something may happen, by whom. Sans-IO: clock readings come in, answers go out.

In reading order: `rates` (one limit), `bounded_table` (a limit for each of many keys), `networks` (whose address is
whose), `credentials` (who fails to prove who it is, before anything is known of it) and `job_starts` (who is in).
"""
