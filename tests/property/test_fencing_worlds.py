"""Daemons that come and go with their state directories: honest ones raise no alarm, copies always do.

The world has directories that are lost, copied and rolled back, daemons that are started in them and
die, Hellos that come late, links that break and controllers that forget. What is tested is `Tenure`; the
controller here only does what the acceptor does with its rulings.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from attrs import define, field
from effort import tried
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule

from sandd._core.fencing import RIVAL_PATIENCE, Claim, Ruling, Tenure
from sandd.wire import MAX_ANCESTORS, DaemonState, RejectCode

if TYPE_CHECKING:
    from collections.abc import Iterator

ONLINE, AWAY, GONE = DaemonState.ONLINE, DaemonState.AWAY, DaemonState.GONE


@define(eq=False)
class Directory:
    """A state directory: who started in it, newest first, and who holds its lock."""

    starts: tuple[str, ...] = ()
    origin: int = 0
    """Directories that are copies of one another have the same."""
    daemon: Daemon | None = None

    def start(self, instance: str) -> tuple[str, ...]:
        """What `record_start` does."""
        earlier = self.starts
        self.starts = (instance, *earlier)[:MAX_ANCESTORS]
        return earlier


@define(eq=False)
class Daemon:
    """One running daemon."""

    instance: str
    ancestors: tuple[str, ...]
    directory: Directory
    connections: int = 0
    lives: bool = True

    def claim(self, challenged_at: float) -> Claim:
        """The next dial's."""
        self.connections += 1
        return Claim(
            self.instance, self.connections, self.ancestors, "host", challenged_at=challenged_at
        )


@define(eq=False)
class Controller:
    """One that does with a ruling what the acceptor does."""

    tenure: Tenure | None = None
    holder: Daemon | None = None
    state: DaemonState = GONE
    alarms: list[str] = field(factory=list)

    def take(self, daemon: Daemon, claim: Claim, waited: float) -> str:
        """The answer to a claim of the daemon's."""
        if self.tenure is None:
            self.tenure = Tenure(claim)
        else:
            ruling = self.tenure.judge(claim, self.state, waited)
            if ruling is Ruling.ASK_HOLDER:
                assert self.holder is not None
                assert self.holder is not daemon
                silent = self.tenure.judge(claim, AWAY, 0.0)
                ruling = Ruling.REFUSE if self.holder.lives else silent
            if ruling is Ruling.REFUSE:
                reject = self.tenure.refuse("d", claim)
                if reject.code is RejectCode.CLONED:
                    self.alarms.append(daemon.instance)
                return reject.code.value
            if ruling is Ruling.STALE:
                return "stale"
            if ruling is Ruling.ADMIT_FORK:
                self.alarms.append(daemon.instance)
        self.tenure.succeed(claim)
        self.holder, self.state = daemon, ONLINE
        return "welcome"


class HonestWorld(RuleBasedStateMachine):
    """One daemon at a time for each directory, since it is locked; directories may vanish."""

    directories = Bundle("directories")
    daemons = Bundle("daemons")

    def __init__(self) -> None:
        super().__init__()
        self.controller = Controller()
        self.names: Iterator[str] = map("i{}".format, itertools.count())
        self.origins = itertools.count(1)
        self.clock = itertools.count(1)
        """Each challenge is a moment later."""
        self.under_way: list[tuple[Controller, Daemon, Claim]] = []
        self.is_copied = False

    @initialize(target=directories)
    def first(self) -> Directory:
        """There is one to begin with."""
        return Directory(origin=next(self.origins))

    @rule(target=directories)
    def make(self) -> Directory:
        """Another machine's, or a new one in the place of one that was lost."""
        return Directory(origin=next(self.origins))

    @rule(
        target=daemons,
        directory=directories,
        is_recorded=st.sampled_from([True, True, True, False]),
        dials=st.booleans(),
    )
    def start(self, directory: Directory, is_recorded: bool, dials: bool) -> Daemon:
        """If another one has the lock, it must have died; `is_recorded`: the disk could be written."""
        if directory.daemon is not None:
            self.die(directory.daemon, False)
        instance = next(self.names)
        ancestors = directory.start(instance) if is_recorded else ()
        daemon = directory.daemon = Daemon(instance, ancestors, directory)
        if dials:
            self.dial(daemon, 0.0)
        return daemon

    @rule(daemon=daemons, waited=st.sampled_from([0.0, RIVAL_PATIENCE]))
    def dial(self, daemon: Daemon, waited: float) -> None:
        """If it lives; the answer is one of those that its directory allows."""
        if daemon.lives:
            answer = self.answer(daemon, daemon.claim(next(self.clock)), waited)
            assert answer != "stale"

    @rule(daemon=daemons, dies=st.booleans())
    def say_hello(self, daemon: Daemon, dies: bool) -> None:
        """One that is under way for a while; it may be the last thing that is heard of the daemon."""
        if daemon.lives:
            claim = daemon.claim(next(self.clock))
            self.under_way.append((self.controller, daemon, claim))
        if dies:
            self.die(daemon, False)

    @precondition(lambda self: self.under_way)
    @rule(index=st.integers(0, 3), waited=st.sampled_from([0.0, RIVAL_PATIENCE]))
    def arrive(self, index: int, waited: float) -> None:
        """Late; but nothing outlives the controller that it was said to."""
        controller, daemon, claim = self.under_way.pop(index % len(self.under_way))
        if controller is self.controller:
            self.answer(daemon, claim, waited)

    def answer(self, daemon: Daemon, claim: Claim, waited: float) -> str:
        """What the controller says, which is one of those that the world allows."""
        controller, holder = self.controller, self.controller.holder
        is_held = controller.state is ONLINE and holder is not None and holder.lives
        answer = controller.take(daemon, claim, waited)
        if is_held and holder is not daemon:
            assert answer in ("id_in_use", "cloned", "stale")
        if not self.is_copied:
            assert controller.alarms == []
            assert answer != "cloned"
        return answer

    @rule(daemon=daemons, says_goodbye=st.booleans())
    def die(self, daemon: Daemon, says_goodbye: bool) -> None:
        """In good order, or by SIGKILL; a controller may take a while to see the latter."""
        daemon.lives = False
        if daemon.directory.daemon is daemon:
            daemon.directory.daemon = None
        if self.controller.holder is daemon and self.controller.state is ONLINE and says_goodbye:
            self.controller.state = GONE

    @rule()
    def cut(self) -> None:
        """The holder's link breaks."""
        if self.controller.state is ONLINE:
            self.controller.state = AWAY

    @rule()
    def restart_controller(self) -> None:
        """It remembers nothing."""
        self.controller = Controller(alarms=self.controller.alarms)


class WorldWithCopies(HonestWorld):
    """The same, and directories are copied: two that live at once are found out."""

    @rule(target=HonestWorld.directories, directory=HonestWorld.directories)
    def copy(self, directory: Directory) -> Directory:
        """At any time, running or not."""
        self.is_copied = True
        return Directory(directory.starts, directory.origin)

    @rule(directory=HonestWorld.directories, kept=st.integers(0, MAX_ANCESTORS))
    def roll_back(self, directory: Directory, kept: int) -> None:
        """To an earlier state, with the machine: nobody runs in it."""
        if directory.daemon is not None:
            self.die(directory.daemon, False)
        self.is_copied = True
        directory.starts = directory.starts[len(directory.starts) - kept :]

    @rule(daemon=HonestWorld.daemons)
    def dial_beside_a_relative(self, daemon: Daemon) -> None:
        """Whoever shares a start with a holder that answers is told that it is a copy."""
        holder = self.controller.holder
        if not daemon.lives or holder is None or holder is daemon or not holder.lives:
            return
        if self.controller.state is not ONLINE:
            return
        ours = {daemon.instance, *daemon.ancestors}
        theirs = {holder.instance, *holder.ancestors}
        expected = "cloned" if ours & theirs else "id_in_use"
        assert self.controller.take(daemon, daemon.claim(next(self.clock)), 0.0) == expected
        assert not ours & theirs or daemon.directory.origin == holder.directory.origin


TestHonestWorld = tried(HonestWorld, quick_examples=400)
TestWorldWithCopies = tried(WorldWithCopies)
