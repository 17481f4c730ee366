"""The controller's end of operators' connections: clients in other processes, each a link of the router."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd import wire
from sandd._core.audit.comings import OPERATOR, gone, let_in, turned_away
from sandd._core.audit.sinks import NO_AUDIT
from sandd._core.identity.gate import REFUSED_OPERATOR
from sandd._core.logs import get_logger
from sandd._core.metrics.comings import Comings
from sandd._core.metrics.link_bytes import LinkBytes
from sandd._core.pump import NEVER, Pump
from sandd._core.rate_limits.credentials import FailedCredentials
from sandd._core.reception import (
    DRAIN_RETRY_SECONDS,
    STALE_RETRY_SECONDS,
    Greeting,
    farewell,
    greet_with_pass,
    note_judgement,
    shake_hands,
    welcome_and_pump,
)
from sandd.wire import RejectCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.audit.sinks import AuditSink
    from sandd._core.identity.gate import Gate
    from sandd._core.identity.passes import Pass
    from sandd._core.identity.rights import Principal
    from sandd._core.link_watch import LinkWatch
    from sandd._core.reception import Stay
    from sandd._core.router import Router
    from sandd._core.router_links import ClientLink
    from sandd._core.transport import Connection

log = get_logger("operators")

MAX_OPERATORS: Final = 1024
"""Operators at once: what waits for one that doesn't read is bounded, at some 20 MiB each."""
BUSY_RETRY_SECONDS: Final = 10.0
"""When one more may ask again."""


@define(eq=False)
class Operator:
    """One that is connected."""

    connection: int
    link: ClientLink
    pump: Pump


@define(eq=False)
class OperatorDesk:
    """Takes connections from operators into the router."""

    router: Router
    settle: Callable[[], None]
    """Called when the router may hold something for others."""
    gate: Gate
    heartbeat: float = 20.0
    dead_after: float = 45.0
    may_answer: Callable[[], bool] = lambda: True
    """Whether all that operators have said is safe, should this program be killed; if not, `answer` follows."""
    audit: AuditSink = NO_AUDIT
    failures: FailedCredentials = field(factory=FailedCredentials)
    comings: Comings = field(factory=Comings)
    meter: LinkBytes = field(factory=LinkBytes)
    """Of its links."""
    watch: LinkWatch | None = None
    """What looks after all of them; None: each looks after itself."""
    draining: bool = False
    operators: dict[str, Operator] = field(factory=dict)
    """By client."""

    async def handle(self, connection: Connection) -> Stay | None:
        """One connection, from its first message on: see `shake_hands`."""
        return await shake_hands(
            connection, self.gate.controller_id, self._greet, self.audit, self.comings
        )

    async def _greet(self, connection: Connection, greeting: Greeting) -> wire.Reject | Stay:
        reject = await greet_with_pass(
            self.gate.passes, lambda given: self._judge(connection, greeting, given)
        )
        hello = greeting.hello
        if not isinstance(reject, wire.Reject) or not isinstance(hello, wire.OperatorHello):
            return reject
        self.comings.refuse(OPERATOR, reject.code.value)
        log.warning(
            "operator_rejected",
            operator=hello.name,
            remote=connection.remote,
            code=reject.code.value,
            reason=reject.message,
        )
        self.audit.note(
            turned_away(OPERATOR, connection.remote, reject, actor=hello.name), from_stranger=True
        )
        return reject

    async def _judge(
        self, connection: Connection, greeting: Greeting, given: Pass
    ) -> wire.Reject | Stay:
        """What serves the operator to the link's end, if it is to have one; else the answer."""
        hello = greeting.hello
        reject = await self.gate.admit_operator(
            given,
            greeting,
            channel_binding=connection.channel_binding,
            certificate=connection.peer_identity,
        )
        note_judgement(connection, reject, self.failures, self.comings)
        if reject is not None:
            return reject
        assert isinstance(hello, wire.OperatorHello)  # the gate lets nothing else in
        assert given.principal is not None
        # Nothing is waited for until the link is live, and its pass can close it.
        reject = REFUSED_OPERATOR if given.is_withdrawn else self._admit(hello, given.principal)
        return reject or partial(self._serve, connection, hello, given, given.principal)

    def _admit(self, hello: wire.OperatorHello, principal: Principal) -> wire.Reject | None:
        if self.draining:
            return wire.Reject(RejectCode.BUSY, "the controller is closing", DRAIN_RETRY_SECONDS)
        known = self.operators.get(hello.client)
        if known is not None and known.connection >= hello.connection:
            return wire.Reject(
                RejectCode.STALE, "a newer connection of this client is known", STALE_RETRY_SECONDS
            )
        if known is None and not self._has_room(principal):
            return wire.Reject(
                RejectCode.BUSY,
                f"the controller serves as many as it can of {MAX_OPERATORS} operators, or of those with your token",
                BUSY_RETRY_SECONDS,
            )
        if known is not None:
            known.pump.close("superseded by a newer connection of the same client")
            self._remove(hello.client, known)
        return None

    def _has_room(self, principal: Principal) -> bool:
        """Whether one more of these may come.

        Of those who may do everything there may be as many as there is room for; of others as many as are left free, as
        in `backlog`: so whatever the owner of one token does there is room for the next.
        """
        left = MAX_OPERATORS - len(self.operators)
        if principal.is_unlimited:
            return left > 0
        own = sum(each.link.principal == principal for each in self.operators.values())
        return own < left

    async def _serve(
        self, connection: Connection, hello: wire.OperatorHello, given: Pass, principal: Principal
    ) -> None:
        """Carry the operator's frames until its link ends."""
        try:
            operator = self._open_link(connection, hello, given, principal)
            try:
                welcome = wire.Welcome(hello.version, self.heartbeat, self.dead_after)
                await welcome_and_pump(connection, operator.pump, welcome, "operator", hello.name)
            finally:
                self._remove(hello.client, operator)
                who = {"tenant": principal.tenant, "actor": principal.name}
                self.audit.note(gone(OPERATOR, connection.remote, **who))
                self.failures.proven(connection.host, connection.path, trio.current_time())
        finally:
            self.gate.passes.take_back(given)

    def _open_link(
        self, connection: Connection, hello: wire.OperatorHello, given: Pass, principal: Principal
    ) -> Operator:
        connection.allow_messages(wire.MAX_MESSAGE_BYTES)
        link = self.router.add_client(
            principal=principal, client=hello.client, now=trio.current_time()
        )
        pump = Pump(
            connection,
            link.scheduler,
            on_frame=partial(self._on_frame, link),
            after_message=self.settle,
            after_pull=self.settle,
            heartbeat=NEVER,  # the operator pings; we answer, and count its silence
            dead_after=self.dead_after,
            may_answer=self.may_answer,
            meter=self.meter,
            watch=self.watch,
        )
        link.carrier = pump
        given.close = pump.close
        operator = self.operators[hello.client] = Operator(hello.connection, link, pump)
        self.comings.admitted[OPERATOR] += 1
        log.info(
            "operator_connected",
            operator=hello.name,
            principal=principal.name,
            tenant=principal.tenant,
            remote=connection.remote,
        )
        who = {"tenant": principal.tenant, "actor": principal.name}
        self.audit.note(let_in(OPERATOR, connection.remote, **who))
        return operator

    def _on_frame(self, link: ClientLink, frame: wire.Frame) -> None:
        # Of a superseded link nothing counts any more, though its pump may still hold a message.
        if link in self.router.clients:
            self.router.receive(link, frame)

    def answer(self) -> None:
        """Answer the pings that had to wait: who is about to leave goes when it has its answer."""
        for operator in self.operators.values():
            operator.pump.answer()

    def _remove(self, client: str, operator: Operator) -> None:
        if self.operators.get(client) is operator:
            del self.operators[client]
            self.router.remove_client(operator.link)
            self.settle()

    def say_goodbye(self) -> list[Pump]:
        """Take nobody new, and tell every operator to come back later; the links that are to be drained."""
        self.draining = True
        for operator in self.operators.values():
            farewell(operator.link, operator.pump)
        return [operator.pump for operator in self.operators.values()]
