"""Which variables a client may set under a policy, and which pass from the daemon."""

from __future__ import annotations

import pytest

from sandd._core.policy.environment import base_of, is_barred, may_set


@pytest.mark.parametrize(
    "name",
    [
        *(
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "DYLD_INSERT_LIBRARIES",
            "PATH",
            "IFS",
            "ENV",
            "BASH_ENV",
        ),
        *(
            "PYTHONPATH",
            "PERL5OPT",
            "RUBYOPT",
            "NODE_OPTIONS",
            "JAVA_TOOL_OPTIONS",
            "GIT_CONFIG_COUNT",
        ),
        *(
            "GIT_SSH_COMMAND",
            "TAR_OPTIONS",
            "MAKEFLAGS",
            "PAGER",
            "EDITOR",
            "LESSOPEN",
            "GCONV_PATH",
        ),
        *("BASH_FUNC_ls%%", "ld_preload", "Path", "SSH_ASKPASS", "XDG_CONFIG_HOME", "SANDD_JOB"),
    ],
)
def test_what_chooses_code_never_passes(name: str) -> None:
    """Not even where a rule allows everything."""
    assert is_barred(name)
    assert not may_set(name, ("*", name))


def test_a_rule_names_what_else_may_be_set() -> None:
    """By name, or by how it begins; the case counts."""
    assert may_set("CI", ("CI",))
    assert may_set("BUILD_ID", ("BUILD_*",))
    assert not may_set("CI", ())
    assert not may_set("CI2", ("CI",))
    assert not may_set("ci", ("CI",))
    assert not may_set("", ())


def test_little_passes_from_the_daemon() -> None:
    """Who it runs as and its language; nothing that isn't known to be harmless."""
    given = {"HOME": "/h", "LC_TIME": "C", "LD_PRELOAD": "x", "SECRET": "s", "PATH": "/p"}
    assert base_of(given) == {"HOME": "/h", "LC_TIME": "C"}
