"""What keeps tenants' jobs apart on a daemon's machine, and apart from the daemon: four levels, each all before it.

In reading order:

    levels           their order. No I/O
    options          what a daemon can be told of them
    allotments       which user is which tenant's, kept for good
    credentials      being another user in one thread, for a moment: how files are reached
    workspaces       a tenant's own directory, and its user
    rulesets         what Landlock lets a job do
    bubblewrap       the command line that has a job see no more than that
    probing          which levels this machine has, and why not the others
    confining        `Isolation`: from a spawn request to one that is confined
    tenant_files     a tenant's files, reached as its user
    tenant_requests  requests about files, each tenant's among its own

What the spawner does of it, in the child, is in ``processes/forked_launch.py``.
"""
