"""``python -m sandd.daemon`` with a look inside: SIGUSR1 begins one, and another ends it and prints its account.

For `benchmarks.profile`; the options are the daemon's.
"""

from __future__ import annotations

import json
import signal
import sys

from benchmarks.callgraph import Probe, to_json
from sandd.daemon import main

_probe: Probe | None = None


def _toggle(_number: int, _frame: object) -> None:
    global _probe
    if _probe is None:
        _probe = Probe()
        _probe.start()
        print(json.dumps({"began": True}), flush=True)
    else:
        account, _probe = _probe.stop(), None
        print(json.dumps(to_json(account)), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _toggle)
    sys.exit(main())
