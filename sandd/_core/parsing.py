"""argparse, as our programs and commands have it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sandd._core.own_output import write_text


class Parser(argparse.ArgumentParser):
    """argparse's, but that help can't be written is told, as it is of anything else."""

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse is silent about it. Python's buffer fails again when it is flushed, but not every stdout has one.
        if message and file is not None and file is sys.stdout:
            write_text("stdout", message)
        else:
            super()._print_message(message, file)
