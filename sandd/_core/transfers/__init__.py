"""Files and trees, copied between two ends: each direction is the same code, at whichever end it runs.

In reading order; what is said between the ends stands in `sandd.wire`, under Transfer.

Without I/O
    records      a stream of bytes, as messages and pieces of files
    arrivals     what a sender says, checked, as steps for a disk
    agenda       what a sender does next: look for more, send what is wanted, wait
    result       what a transfer came to: TransferResult

Blocking, in threads
    filters      which files of a tree are sent
    walking      what there is in a tree, as records
    reading      one file as records, whatever is written to it meanwhile
    partials     temporary files: their names, who writes one, when one is removed
    syncing      what was written is on the disk
    writing      from steps to files: whole ones, or none

Shells
    disk_work    one thread at a time for one transfer; what happens to one that never comes back
    ends         bytes each way; how one end tells the other that it failed
    sending      the end that has the files
    receiving    the end that gets them
"""
