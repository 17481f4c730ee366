"""What `sandd` costs on this machine, each figure beside the floor that the system itself sets.

Read in this order: `__main__` runs the benchmarks, `exec_latency`, `throughput`, `bulk`, `broadcast` and `many`
are one each, `floors` is what they are compared with, `fleet` and `keeper` bring up the daemons, `cpu`
and `report` count and print. `peers` compares with others that do the same, `profile` tells where the time
of one command goes, and `page` writes the figures into docs/performance.rst.
"""
