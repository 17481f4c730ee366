"""`typing.NamedTuple`, for the spawner: to import typing takes as long as Python itself does to start.

Standard library only. To who checks types it is the original, and a class that is made with it is the same.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from collections import namedtuple

    class _Definition(type):
        """Makes of a class' annotations its fields, of its values their defaults, and keeps the rest."""

        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = body.pop("__annotations__")  # texts, as in all our files
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            for member in body.keys() - {"__module__", "__qualname__"}:
                setattr(made, member, body[member])
            return made

    class NamedTuple(metaclass=_Definition):
        """A tuple whose elements have names."""
