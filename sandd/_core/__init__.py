"""The inside of sandd: nothing here is public, and everything public is built from it.

In reading order. A module imports from its own group or one above it in this list, never from one
below; ``tests/test_layering.py`` enforces it. `sandd.wire` stands between the first two groups.

The exception tree (imports nothing of ours)
    _errors          whose fault it is, and whether the work may have run

Sans-IO (no trio, no clock, no logging: bytes, messages and clock readings in, decisions out)
    byte_ring        bytes that grow at one end and go at the other
    streams          a byte log addressed by absolute offsets: base, floor, end, gaps
    spool            what the disk is asked to do, and the quotas
    read_ahead       what was read back from it, until it is sent
    spooled_log      an output's log, whose oldest part may be on disk
    channels         one attachment to one job: what was sent and received, credit, acks
    pace             how much to say at a time on a line of unknown speed
    scheduler        whose frame leaves next: control first, then fair between channels
    tombstones       which job ids are used up, in little memory
    job              one job on its daemon: streams, state, attachments
    jobs             the daemon's half: which jobs there are, who is attached, what goes to whom
    job_info         one job as it is described to who isn't attached: JobInfo
    client_job       one job at its client
    client           a client's half: its jobs, and their resuming
    router           which client's channel meets which daemon's, and what it may send
    credit           how much may come to wait in the router for one link
    link             one connection: handshake, liveness, backoff
    fencing          who may hold a daemon id: restarts, rivals, copies of a state directory
    admission        how many connections come in per second
    metrics/         what is counted: jobs, bytes, who came in; and how that is shown
    results          what a finished command was: CommandResult, Outcome, ExitStatus
    audit/           who asked for what, and what became of it: the log, without its I/O
    held_requests    what waits in the router until it is in that log
    asciicast        a recording of a terminal session, as lines of text
    file_status      what is told of a file: FileStatus; how paths travel

Trio shells of both ends (do the I/O, and ask the state machines what to do)
    logs             structured log lines, quiet unless a program asks for them
    files/           which files a peer may reach, and what is done to them
    transfers/       files and trees between two ends, the same code at either
    transport/       the only modules that know which WebSocket library there is
    interrupts       where Ctrl-C may strike in an agent, and where it waits
    nurseries        a nursery whose single error comes out as itself
    early_stop       SIGTERM and SIGINT before trio has them
    service_manager  what systemd hears of a program
    program_options  command line, environment and file, for both programs
    sockets          connect, listen, and carry bytes both ways
    link_watch       one timer for all links of a controller
    pump             moves frames between one connection and one state machine
    dialer           keeps a link to a controller: a daemon's, or a remote client's
    state_directory  what outlives a program, and its lock

Trio shells of the controller and its clients
    registry         who holds each daemon's id
    reception        how whoever dials in is received: handshake, live link, farewell
    audit/           the log's files, its writer, and whether it was changed
    bundle/          the daemon as one file, for machines that have only Python
    acceptor         the controller's end of a daemon's connection
    operators        the controller's end of a remote client's connection
    controller_state the operators' token, and what is still to be said to absent daemons
    directory        what a client knows of daemons: online, away; who wants to hear of it
    job_link         a client's end of its link: jobs, for tasks to wait on
    local_link       the agent in the controller's process: a client like any other
    remote_link      one in another process
    services         what stands behind a Controller: one of this process, or a connection to one
    commands         from a call's arguments to a job, and from its end to a result
    recorder         writes a terminal session's recording, in threads
    process_handle   Process: a command, as who opened it or attached to it holds it
    session_handle   Session: a terminal, likewise
    port_streams     RemoteStream: a connection on the daemon's side, as the agent holds it
    port_forwards    ports here that lead there, and the other way round
    copying          Daemon.upload and Daemon.download
    asking           a request to a daemon, and its answers
    remote_files     files that are open there: streams to read and to write
    pure_remote_path  a path there, as far as nobody has to look
    remote_path      RemotePath: a path there, and all that can be done with it
    daemon_handle    Daemon: what can be run, held and asked for there
    promise          a result that one thread waits for and another one has
    bridge           calls from other threads into a trio program in a thread of its own
    kept_pieces      what such a call received and nobody has got: the next one gets it
    held_block       an asynchronous block, entered and left from another thread
    aio/             the trio API for other event loops: sandd.aio
    server_files     what Server does with files

Trio shells of the daemon alone
    processes/       starting and ending process trees; its spawner is standard library only
    spawn_requests   from a job's spec to what is started
    requests         jobs without a process: what the daemon does itself
    job_requests     of these, what is asked about its jobs
    file_requests    of these, too, what is asked about files
    watch_requests   and what happens to them
    transfer_requests  and what is copied, there or from there
    port_requests    and what is a connection: made there, or accepted
    spool_files      output on disk: the files, and their removal
    spooler          does in threads what the logs want of the disk
    runner           between the job table and the processes
    daemon_end       what a daemon says of itself, and its jobs, for the dialer
    daemon_figures   what it tells programs that watch it, where there are any
    daemon_options   what a daemon can be told
    daemon_program   all of it, assembled
"""
