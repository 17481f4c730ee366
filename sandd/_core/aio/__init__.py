"""The trio API for event loops that aren't that of its controller: what `sandd.aio` is made of.

In reading order:
    calls            one call into the controller's trio thread, awaited in any loop
    blocks           an asynchronous context manager there, entered and left from here
    wrapping         a method of the trio API becomes one of ours, with its signature and its docstring
    streams          streams and iterators there, as anyio's
    jobs             Process and Session
    paths            RemotePath, and files that are open
    daemon           Daemon
    administration   Tokens and Enrolled
"""
