"""The daemon, assembled: state directory, process host, job runner, dialer, and an orderly end."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from sandd._core._errors import ConfigurationError
from sandd._core.daemon_end import DaemonEnd
from sandd._core.daemon_options import DaemonOptions, default_max_running
from sandd._core.dialer import Dialer, shown_url
from sandd._core.file_requests import FileRequests
from sandd._core.files.confined_roots import open_root
from sandd._core.identity.keyring import Keyring
from sandd._core.jobs import JobTable
from sandd._core.link import Backoff, Identity
from sandd._core.logs import get_logger
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.policy.granted_files import GrantedFiles
from sandd._core.policy.paths import is_beneath
from sandd._core.policy.reading import MAX_POLICY_BYTES, read_policy
from sandd._core.port_requests import PortRequests
from sandd._core.processes import open_process_host, raise_open_files_limit
from sandd._core.runner import JobRunner
from sandd._core.service_manager import NOBODY
from sandd._core.spawn_requests import Allowance
from sandd._core.spool import Spool
from sandd._core.spool_files import open_spool_files
from sandd._core.state_directory import default_daemon_id, open_state_directory, record_start
from sandd._core.statistics_requests import StatisticsRequests
from sandd._core.tls.plain import leaves_in_the_clear
from sandd._core.tls.trust import Trust
from sandd._core.transfer_requests import TransferRequests
from sandd._core.transfers.partials import Partials
from sandd.wire import IsolationLevel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from sandd._core.files.roots import Root
    from sandd._core.isolation.confining import Isolation
    from sandd._core.policy.permits import Gate
    from sandd._core.policy.rules import Policy
    from sandd._core.processes import ProcessHost
    from sandd._core.service_manager import ServiceManager
    from sandd.wire import Refused, Spec

log = get_logger("daemon")

END_GRACE: Final = 3.0
"""On SIGTERM, seconds that jobs have between TERM and KILL: orchestrators allow about ten in all."""
DRAIN_SECONDS: Final = 8.0
"""On SIGTERM, seconds for everything: jobs, their last events, the farewell."""
FAREWELL_SECONDS: Final = 1.0
"""So many of them are the farewell's alone."""


async def run_daemon(
    options: DaemonOptions,
    *,
    version: str,
    stop_requested: Callable[[], bool],
    manager: ServiceManager = NOBODY,
) -> None:
    """Be a daemon until SIGTERM or SIGINT, or until the controller refuses it for good.

    Raises:
        ConfigurationError: the state directory, the root, the policy or a certificate can't be used. Nothing was
            started.
        AuthenticationFailed: the controller refused our credentials.
        RequestRefused: the controller will never take this daemon as it is.
    """
    daemon_id = options.daemon_id or default_daemon_id(options.state_dir)
    with (
        open_state_directory(options.state_dir, daemon_id) as state,
        open_spool_files(state.path) as files,
        _open_root(options.root) as root,
    ):
        gate, policy = _open_gate(options)
        if policy is not None:
            root = GrantedFiles(policy)
        isolation = _open_isolation(options, policy, state.path)
        level, levels = _levels_of(isolation)
        instance = secrets.token_hex(8)
        ancestors = record_start(state.path, instance)
        log.info("started", daemon_id=daemon_id, version=version, state_dir=str(state.path))
        if sys.platform != "win32" and isolation is not None:
            isolation.announce()
        raise_open_files_limit()
        stop_signals = [signal.SIGINT, signal.SIGTERM]
        with trio.open_signal_receiver(*stop_signals) as signals:
            if stop_requested():
                return
            async with (
                open_process_host(total=options.limit_total) as host,
                open_unwrapping_nursery() as nursery,
            ):
                spool = None
                if options.spool_quota and options.job_spool_quota:
                    spool = Spool.within(options.spool_quota, options.job_spool_quota)
                table = JobTable(instance, spool=spool, judge=partial(_refusal, gate, isolation))
                runner = JobRunner(
                    table,
                    host,
                    nursery,
                    max_running=options.max_running or default_max_running(open_files_limit()),
                    files=files,
                    gate=gate,
                    allowance=Allowance(options.limits, options.require_limits),
                    isolation=isolation,
                )
                keep_tidy = _offer_files(runner, root, isolation, state.path / "transfers")
                confined_by = "--root" if options.root is not None else ""
                if level is not IsolationLevel.NONE:
                    confined_by = f"isolation {str(level)!r}"
                if confined_by:
                    ports = PortRequests(table, act=runner.act, confined_by=confined_by)
                    runner.requests.offer(ports.doers)
                identity = Identity(
                    daemon_id=daemon_id,
                    instance=instance,
                    labels=options.labels,
                    hostname=socket.gethostname()[:255],
                    platform=sys.platform,
                    arch=platform.machine()[:64],
                    daemon_version=version,
                    ancestors=ancestors,
                    isolation=level,
                    isolation_levels=levels,
                )
                keyring = Keyring(state.path, daemon_id, options.credential)
                end = DaemonEnd(identity, keyring, runner)
                busy = StatisticsRequests(table, measure=host.measure, meter=end.meter)
                runner.requests.offer(busy.doers)
                backoff = Backoff(maximum=options.reconnect_max)
                dialer = Dialer(options.server_url, end, backoff, _trust(options, state.path))
                stop = trio.Event()
                with trio.CancelScope() as start:
                    # A machine that is slow to tell what it can hold keeps nobody from stopping this.
                    nursery.start_soon(_await_signal, signals, manager, stop, start)
                    await _check_limits(options, host)
                    if options.metrics is not None:
                        from sandd._core.daemon_figures import serve_figures

                        figures = partial(
                            serve_figures, version=version, table=table, end=end, dialer=dialer
                        )
                        await nursery.start(figures, options.metrics)
                if stop.is_set():
                    log.info("stopped", daemon_id=daemon_id)
                    nursery.cancel_scope.cancel()
                    return
                nursery.start_soon(keep_tidy)
                nursery.start_soon(runner.count_leases)
                nursery.start_soon(dialer.run)
                nursery.start_soon(manager.attend, dialer.status)
                # Not when a link is live: who waits for that waits for another machine.
                manager.ready()
                await stop.wait()
                with trio.move_on_after(DRAIN_SECONDS) as drain:
                    with trio.move_on_at(drain.deadline - FAREWELL_SECONDS):
                        await runner.end_all(END_GRACE)
                        await end.tell_all()
                    # Whatever is left untold: else all would wait for our return, for a day.
                    await dialer.say_goodbye("the daemon was stopped")
                nursery.cancel_scope.cancel()
        log.info("stopped", daemon_id=daemon_id)


async def _await_signal(
    signals: AsyncIterator[int], manager: ServiceManager, stop: trio.Event, start: trio.CancelScope
) -> None:
    """Tell of the first one, by `stop` and by cancelling what `start` holds."""
    async for number in signals:
        log.info("stopping", signal=signal.Signals(number).name)
        manager.stopping()
        stop.set()
        start.cancel()
        break


async def _check_limits(options: DaemonOptions, host: ProcessHost) -> None:
    """ConfigurationError where limits that have to be held can't be; if they needn't, it is only told."""
    for option, limits, ask in (
        ("--limit", options.limits, host.unheld),
        ("--limit-total", options.limit_total, host.unheld_total),
    ):
        if not limits.given:
            continue
        unheld = await ask(limits)
        if unheld and options.require_limits:
            raise ConfigurationError(
                f"{option}: this machine can't hold {', '.join(unheld)}, and --require-limits says it has to"
            )
        if unheld:
            log.warning("limits_not_held", option=option, limits=unheld)


def _refusal(
    gate: Gate | None, isolation: Isolation | None, spec: Spec, least: IsolationLevel
) -> Refused | None:
    """Why a job is not begun: by the policy, or because it can't be kept apart as it has to be."""
    refused = None if gate is None else gate.judge(spec)
    if refused is None and sys.platform != "win32" and isolation is not None:
        refused = isolation.judge(spec, least)
    return refused


def _open_isolation(options: DaemonOptions, policy: Policy | None, state: Path) -> Isolation | None:
    """How jobs are kept apart; None where that can't be, nor has to."""
    if sys.platform == "win32":
        if options.isolation.level is not IsolationLevel.NONE:
            raise ConfigurationError(
                "--isolation is not for Windows: jobs there are all one user's"
            )
        return None
    else:
        # The other platform can't import it.
        from sandd._core.isolation.confining import open_isolation

        return open_isolation(options.isolation, state, policy=policy)


def _levels_of(isolation: Isolation | None) -> tuple[IsolationLevel, tuple[IsolationLevel, ...]]:
    """The least that jobs have, and all that they may ask for."""
    if sys.platform == "win32" or isolation is None:
        return IsolationLevel.NONE, (IsolationLevel.NONE,)
    else:
        return isolation.level, isolation.available


def _offer_files(
    runner: JobRunner, root: Root, isolation: Isolation | None, journals: Path
) -> Callable[[], Awaitable[None]]:
    """Have requests about files done; what is returned keeps them tidy, as long as the daemon lives."""
    if sys.platform != "win32" and isolation is not None:
        if isolation.level is not IsolationLevel.NONE:
            from sandd._core.isolation.tenant_requests import TenantRequests

            granted = root if isinstance(root, GrantedFiles) else None
            tenants = TenantRequests(isolation.workspaces, journals, granted=granted)
            runner.requests.offer(tenants.doers)
            return tenants.keep_tidy
    partials = Partials(journals)
    runner.requests.offer(FileRequests(root, partials).doers)
    transfers = TransferRequests(root, partials)
    runner.requests.offer(transfers.doers)
    return transfers.keep_tidy


def _open_gate(options: DaemonOptions) -> tuple[Gate | None, Policy | None]:
    """What stands between what is asked for and what is done."""
    if options.policy is None:
        return None, None
    if sys.platform == "win32":
        raise ConfigurationError(
            "--policy is not for Windows: what a daemon does there can't be held to one"
        )
    else:
        # The other platform can't import these.
        from sandd._core.policy.gate import open_gate
        from sandd._core.policy.trust import read_trusted

        name = str(options.policy)
        data = read_trusted(name, max_bytes=MAX_POLICY_BYTES, option="--policy")
        policy = read_policy(data, name=name)
        runs_as_us = any(rule.user is None for rule in policy.rules)
        if runs_as_us and os.stat(name).st_uid == os.geteuid() != 0:
            log.warning("policy_may_be_written_by_jobs", path=name)
        if options.root is not None:
            inside = os.path.realpath(options.root)
            for grant in (*policy.files_read, *policy.files_write):
                if not is_beneath(os.path.realpath(grant), inside):
                    raise ConfigurationError(
                        f"--policy {name!r} grants files in {grant}, which is not beneath --root {options.root}"
                    )
        return open_gate(policy), policy


def _trust(options: DaemonOptions, directory: Path) -> Trust | None:
    """By what the controller is known; None where no TLS is spoken, which is loud unless it stays on this machine."""
    if leaves_in_the_clear(options.server_url):
        log.warning(
            "connection_is_not_secure",
            url=shown_url(options.server_url),
            reason="without TLS whoever is on the way can read all that is sent, and command this daemon",
        )
    if not options.server_url.startswith("wss:"):
        return None
    trust = Trust(options.server_url, options.trust, directory)
    trust.check()
    return trust


@contextlib.contextmanager
def _open_root(directory: Path | None) -> Iterator[Root]:
    with contextlib.ExitStack() as stack:
        try:
            root = stack.enter_context(
                open_root(None if directory is None else os.fsencode(directory))
            )
        except OSError as error:
            raise ConfigurationError(f"can't use --root {directory}: {error.strerror}") from error
        yield root


def open_files_limit() -> int:
    """How many descriptors this process may have open."""
    if sys.platform == "win32":
        return 8192
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
