"""What is counted, and how it is shown to programs that watch others.

Each count belongs to what it counts: a router has tallies, a daemon's jobs have theirs. They are plain attributes that
are increased where something happens, and read by whoever wants to know: `Controller.statistics`, and ``/metrics``.

Without I/O: ``histograms``; ``tallies`` (what passes a router, by tenant), ``job_census`` (its jobs), ``population``
(its daemons), and ``router_counts``, which has all three; ``comings`` (who was let in, and who wasn't), ``loop_lag``;
``statistics``, what a client may be told of it; ``link_bytes``, ``audit_counts``, ``daemon_tally``. ``catalogue`` says
what each figure is called and means, ``readings`` what they are now, and ``http_answers`` who may have them. With I/O:
``exposition`` (Prometheus' text), ``readiness`` (whether a disk takes writes) and ``listener``.
"""
