"""What `sandd` costs on this machine, each figure beside the floor that the system itself sets.

Read in this order: `__main__` runs the benchmarks, `exec_latency`, `throughput`, `bulk`, `broadcast` and `many`
are one each, `floors` is what they are compared with, `fleet` and `keeper` bring up the daemons, `cpu`
and `report` count and print.
"""
