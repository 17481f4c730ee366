"""What tests of a program that uses sandd can stand on: a network with faults, and daemons in numbers.

::

    async with sandd.open_controller(port=0) as controller:
        async with sandd.testing.open_fault_proxy(controller.address) as proxy:
            async with sandd.testing.open_daemon_cores(proxy.url, 200) as cores:
                proxy.cut()                    # ... and every one of them is back in a moment

For state machines that do no I/O, `sandd.testing.memory_network` has connections that break at any byte,
stall and linger, and `sandd.testing.virtual_clock` the time in which they do.

Import it by name (``import sandd.testing``): ``sandd`` alone doesn't. Each name is imported when it
is first used, so that who wants the one part doesn't load the other.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandd.testing.daemon_cores import DaemonCore, DaemonCores, open_daemon_cores
    from sandd.testing.fake_processes import FakeProcess, FakeProcessHost
    from sandd.testing.fault_proxy import DOWN, UP, Direction, Ending, FaultProxy, open_fault_proxy

__all__ = [
    "DOWN",
    "UP",
    "DaemonCore",
    "DaemonCores",
    "Direction",
    "Ending",
    "FakeProcess",
    "FakeProcessHost",
    "FaultProxy",
    "open_daemon_cores",
    "open_fault_proxy",
]

_HOMES = {
    "DOWN": "fault_proxy",
    "UP": "fault_proxy",
    "DaemonCore": "daemon_cores",
    "DaemonCores": "daemon_cores",
    "Direction": "fault_proxy",
    "Ending": "fault_proxy",
    "FakeProcess": "fake_processes",
    "FakeProcessHost": "fake_processes",
    "FaultProxy": "fault_proxy",
    "open_daemon_cores": "daemon_cores",
    "open_fault_proxy": "fault_proxy",
}


if not TYPE_CHECKING:  # as in sandd/__init__.py

    def __getattr__(name):
        """The public object of that name, imported now and kept."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
