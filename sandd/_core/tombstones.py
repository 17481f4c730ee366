"""Which job ids have been used up, so that a start which arrives late or twice never runs.

Generated ids are ``<client>.<sequence>``. A client says in every Attach below which sequence all its
ids are settled, so for it only a floor and the few ids above it are remembered. Ids chosen by users
are remembered for a day.
"""

from __future__ import annotations

import functools
import re
from collections import OrderedDict
from typing import Final

from attrs import define, field

KEEP_SECONDS: Final = 24 * 3600.0
"""A user-chosen id can be used again after this long."""
MAX_CHOSEN: Final = 100_000
"""User-chosen ids remembered; while full, new ones are refused rather than old ones forgotten.

Also a client's generated ids above its floor; beyond it the floor rises, so again none runs twice."""
MAX_CLIENTS: Final = 10_000
"""Clients remembered; the one unheard of for longest is forgotten first."""
PARSED_IDS: Final = 256
"""Ids of which is remembered what they mean: each message about a job is looked at in several places."""

JobKey = tuple[str, str]
"""(tenant, job id)."""

_GENERATED: Final = re.compile(r"([0-9a-f]{16}|[0-9a-f]{24})\.([0-9]{1,18})")
"""The longer names are those of clients that came with a token; see `identity.tokens.client_prefix`."""


def generate(client: str, sequence: int) -> str:
    """The job id a client generates: unique without asking anybody."""
    return f"{client}.{sequence}"


@functools.lru_cache(maxsize=PARSED_IDS)
def parse(job_id: str) -> tuple[str, int] | None:
    """(client, sequence) of a generated id, None for one that a user chose."""
    match = _GENERATED.fullmatch(job_id)
    return (match[1], int(match[2])) if match else None


@define
class _Client:
    floor: int = 0
    above: set[int] = field(factory=set)

    def raise_floor(self, floor: int) -> None:
        if floor <= self.floor:
            return
        if floor - self.floor <= len(self.above):
            # Of many that were under way at once some are over.
            self.above.difference_update(range(self.floor, floor))
        elif self.above:  # mostly there are none: with each job it rises by one
            self.above = {sequence for sequence in self.above if sequence >= floor}
        self.floor = floor


class Tombstones:
    """The used-up ids of one daemon instance."""

    def __init__(self) -> None:
        self._clients: OrderedDict[tuple[str, str], _Client] = OrderedDict()
        self._chosen: OrderedDict[JobKey, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._chosen) + sum(len(client.above) for client in self._clients.values())

    @property
    def full(self) -> bool:
        """No user-chosen id can be remembered any more, so none may start."""
        return len(self._chosen) >= MAX_CHOSEN

    def settle(self, tenant: str, client: str, floor: int) -> None:
        """The client says: none of my generated ids below `floor` will ever be started."""
        if floor:
            self._client(tenant, client).raise_floor(floor)

    def forestall(self, key: JobKey, now: float) -> None:
        """The id was never heard of, and shall not be: a start of it that arrives later is refused."""
        self._expire(now)
        if parse(key[1]) is not None or not self.full:  # while full, no chosen id starts anyway
            self.bury(key, now)

    def bury(self, key: JobKey, now: float) -> None:
        """The id is used up from now on."""
        generated = parse(key[1])
        if generated is None:
            self._expire(now)
            self._chosen.setdefault(key, now)  # said twice, it does not last longer
            return
        client = self._client(key[0], generated[0])
        if generated[1] >= client.floor:
            client.above.add(generated[1])
            if len(client.above) > MAX_CHOSEN:
                client.raise_floor(sorted(client.above)[MAX_CHOSEN // 2])

    def holds(self, key: JobKey, now: float) -> bool:
        """Whether the id was used up."""
        generated = parse(key[1])
        if generated is None:
            self._expire(now)
            return key in self._chosen
        client = self._clients.get((key[0], generated[0]))
        return client is not None and (generated[1] < client.floor or generated[1] in client.above)

    def _client(self, tenant: str, client: str) -> _Client:
        record = self._clients.get((tenant, client))
        if record is None:
            record = self._clients[tenant, client] = _Client()
            if len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)
        else:
            self._clients.move_to_end((tenant, client))
        return record

    def _expire(self, now: float) -> None:
        while self._chosen:
            key, buried = next(iter(self._chosen.items()))
            if now - buried < KEEP_SECONDS:
                return
            del self._chosen[key]
