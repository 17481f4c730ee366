from __future__ import annotations
import pytest, sandd
from standing_daemon import StandingDaemon, standing_daemon
@pytest.fixture(scope="module")
def daemon(_own_temporary_directory):
    with standing_daemon() as daemon:
        yield daemon
@pytest.mark.parametrize("i", range(20))
async def test_a(daemon, i):
    async with daemon.worker() as w:
        assert (await w.run("echo hi")).stdout == "hi\n"
