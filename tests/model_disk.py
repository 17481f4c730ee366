"""A disk for tests of what decides about one: files in memory, written and read as a file system does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from sandd._core.spool import Delete, DiskTask, Fetch, Spill

if TYPE_CHECKING:
    from sandd._core.spooled_log import SpooledLog


@define(eq=False)
class ModelDisk:
    """Files by name. A file that is written from its middle on begins with a hole of zeros."""

    files: dict[str, bytearray] = field(factory=dict)

    def perform(self, task: DiskTask, *, only: int | None = None) -> bytes:
        """Do it; the bytes that a `Fetch` reads. With `only` a write ends after so many bytes."""
        match task:
            case Spill():
                data = task.data[:only]
                file = self.files.setdefault(task.file, bytearray())
                file.extend(bytes(max(0, task.position + len(data) - len(file))))
                file[task.position : task.position + len(data)] = data
            case Fetch():
                data = bytes(self.files[task.file][task.position : task.position + task.size])
                assert len(data) == task.size, "read what was never written"
                return data
            case Delete():
                for name in task.files:
                    self.files.pop(name, None)
        return b""

    def serve(self, log: SpooledLog) -> list[DiskTask]:
        """Do all that the log asks for now."""
        tasks = []
        while (task := log.next_task()) is not None:
            tasks.append(task)
            log.done(task, self.perform(task))
        return tasks
