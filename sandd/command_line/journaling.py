"""What a command changes on a controller's machine is told to that controller, in the name of whoever runs it."""

from __future__ import annotations

import getpass
import os
import sys
import time
from typing import TYPE_CHECKING

from attrs import evolve

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sandd._core.audit.records import Record
    from sandd._core.identity.database import IdentityDatabase


def journaled(database: IdentityDatabase, record: Record) -> AbstractContextManager[None]:
    """What is done in the block is in the audit log soon; where it can't be told, it is not done."""
    said = evolve(record, actor=f"local:{local_user()}").fields
    return database.journaled(said, time.time())


def local_user() -> str:
    """Who runs this program, by the system's word for it and not by a variable that anybody may set."""
    if sys.platform == "win32":
        return getpass.getuser()
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user without an entry: usual in containers
        return str(os.getuid())
