"""Who was let in to a controller, and who wasn't, and why. Pure; none of it is what a stranger says of itself."""

from __future__ import annotations

from typing import Final

from attrs import define, field

from sandd.wire import RejectCode

DAEMON: Final = "daemon"
OPERATOR: Final = "operator"
STRANGER: Final = "stranger"
"""Who broke the protocol before it had said what it is."""
PROTOCOL: Final = "protocol"
PEERS: Final = (DAEMON, OPERATOR, STRANGER)
REASONS: Final = (*(code.value for code in RejectCode), PROTOCOL)
"""All that there are: a label is never a text of a peer's."""


@define(eq=False)
class Comings:
    """Of one controller."""

    admitted: dict[str, int] = field(factory=lambda: dict.fromkeys((DAEMON, OPERATOR), 0))
    refused: dict[tuple[str, str], int] = field(factory=dict)
    """By peer and reason."""
    barred: int = 0
    """Times that a network was barred, as its credentials failed too often."""
    unheard: int = 0
    """Connections that were not heard at all, as their network was barred."""

    def refuse(self, peer: str, reason: str) -> None:
        """One was not let in."""
        key = (peer, reason)
        self.refused[key] = self.refused.get(key, 0) + 1
