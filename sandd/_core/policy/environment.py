"""Which variables a program under a policy gets: few, and none that makes another program of it."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KEPT: Final = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR")
"""What passes from the daemon's own environment. A list of what doesn't would never be complete."""
NEVER: Final = (
    *("LD_*", "DYLD_*", "_RLD*", "GLIBC_TUNABLES", "MALLOC_*", "GCONV_PATH", "LOCPATH", "NLSPATH"),
    *("HOSTALIASES", "LOCALDOMAIN", "RES_OPTIONS", "NIS_PATH", "TZDIR", "GETCONF_DIR"),
    *("PATH", "IFS", "ENV", "BASH_*", "SHELLOPTS", "BASHOPTS", "PS4", "PROMPT_COMMAND", "CDPATH"),
    *("ZDOTDIR", "FPATH", "GLOBIGNORE", "INPUTRC"),
    *("PYTHON*", "PERL*", "RUBY*", "GEM_*", "BUNDLE_*", "NODE_*", "NPM_*", "LUA_*", "PHP*"),
    *("JAVA_*", "JDK_*", "_JAVA_*", "CLASSPATH", "MAVEN_*", "GRADLE_*", "GO*", "CARGO*", "RUST*"),
    *("GIT_*", "SVN_*", "HG*", "SSH_*", "RSYNC_*", "CVS_*"),
    *("*_OPTIONS", "*_OPTS", "*OPTS", "*FLAGS", "*_PRELOAD", "*_LIBRARY_PATH", "*_CONFIG_FILE"),
    *("*PAGER", "*EDITOR", "VISUAL", "BROWSER", "LESS*", "MANOPT", "*ASKPASS"),
    *("TERMINFO*", "TERMCAP", "TERMPATH", "XDG_*", "GNUPGHOME", "OPENSSL_*", "SSL_CERT_*"),
    *("AWKPATH", "AWKLIBPATH", "TAR_*", "GZIP", "BZIP*", "XZ_*", "ZSTD_*", "RIPGREP_CONFIG_PATH"),
    *("LS_COLORS", "GREP_*", "POSIXLY_CORRECT", "CC", "CXX", "MAKEFILES", "SHELL"),
    *("DOCKER_*", "KUBE*", "*_PROXY", "DBUS_*", "SANDD_*"),
)
"""What no client may set, whatever a rule allows: it chooses code, configuration or programs."""


def is_barred(name: str) -> bool:
    """Whether it never passes, in whatever case it is written."""
    return any(fnmatch.fnmatchcase(name.upper(), each) for each in NEVER)


def may_set(name: str, allowed: Iterable[str]) -> bool:
    """Whether a client may set this, of whose rule these are the names."""
    return not is_barred(name) and any(_fits(name, each) for each in allowed)


def base_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What passes of the daemon's own environment."""
    return {k: v for k, v in environment.items() if any(_fits(k, each) for each in KEPT)}


def _fits(name: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern
