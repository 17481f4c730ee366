"""What a transfer came to."""

from __future__ import annotations

from attrs import frozen


@frozen
class TransferResult:
    """What was copied, and how much of it had to be sent."""

    bytes: int
    """Bytes of files that were sent by this call; holes and what was there before not counted."""
    size: int
    """Bytes in all files of the source."""
    files: int
    """Files in the source, those skipped included; directories and links are not counted."""
    skipped: int
    """Files that were there before, and were not sent (see `update`)."""
    resumed: int
    """Bytes that an earlier call had sent, before it was interrupted."""
    sha256: str | None
    """Of a single file, in hexadecimal; None for a tree, and for a file that was skipped by its time."""
    seconds: float
    unsupported: int = 0
    """Sockets, devices and named pipes in a tree, which were left out."""
    unsupported_names: tuple[str, ...] = ()
    """Of some of them."""
