"""``bootstrap.sh``: what a shell does to have a daemon where there is only Python. No I/O.

It is for ``curl ... | sh``, so all of it is read before any of it runs: a download that breaks off does nothing. It
installs nothing; the daemon's file stays in the user's cache, and the next run finds it there.
"""

from __future__ import annotations

import shlex
from typing import Final

_SCRIPT: Final = r"""#!/bin/sh
# Fetches the sandd daemon from the controller that this comes from, and runs it in the foreground.
# Options of the daemon: sh -s -- --daemon-id worker-1. Its token: in SANDD_TOKEN, or in a file, by SANDD_TOKEN_FILE.
set -eu

fetch='
import hashlib, os, ssl, stat, sys, tempfile, urllib.request

url, digest, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])


def fail(why):
    sys.exit("sandd: error: %s" % why)


def own_directory():
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(home, "sandd")
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError("others may write there")
        above = os.path.realpath(path)
        while above != "/":  # nor may they put another directory in its place
            above = os.path.dirname(above)
            found = os.stat(above)
            is_open = found.st_mode & 0o002 and not found.st_mode & stat.S_ISVTX
            if is_open or found.st_uid not in (0, os.geteuid()):
                raise PermissionError("others may write above it")
        tempfile.TemporaryFile(dir=path).close()
        return path
    except OSError:
        return tempfile.mkdtemp(prefix="sandd-")


path = os.path.join(own_directory(), "sandd-daemon-%s.pyz" % digest[:16])
try:
    with open(path, "rb") as file:
        is_there = hashlib.sha256(file.read()).hexdigest() == digest
except OSError:
    is_there = False
if not is_there:
    # Whoever answers: what has not the hash is thrown away. No proxy: the daemon dials without one, too.
    handlers = [urllib.request.ProxyHandler({})]
    if url.startswith("https:"):
        context = ssl._create_unverified_context()
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=60) as answer:
            content = answer.read(limit + 1)
    except (OSError, ValueError) as error:
        fail("can not fetch %s: %s" % (url, error))
    if hashlib.sha256(content).hexdigest() != digest:
        fail("what came from %s is not what this script is for: fetch the script again" % url)
    try:
        descriptor, new = tempfile.mkstemp(dir=os.path.dirname(path))
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(new, path)
    except OSError as error:
        fail("can not write %s: %s" % (path, error))
print(path)
'

find_python() {
    for candidate in "${SANDD_PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "sandd: error: no Python 3.11 or later here: install one, or name it in SANDD_PYTHON" >&2
    exit 1
}

main() {
    # Nobody that is started here but the daemon needs to know it.
    token=${SANDD_TOKEN-}
    unset SANDD_TOKEN
    server=${SANDD_SERVER_URL:-@SERVER@}
    case $server in
    wss:*) from=https:${server#wss:} ;;
    ws:*) from=http:${server#ws:} ;;
    *)
        echo "sandd: error: SANDD_SERVER_URL must be ws://HOST:PORT/ws or wss://...: $server" >&2
        exit 1
        ;;
    esac
    from=${from%/ws}
    python=$(find_python)
    file=$("$python" -I -c "$fetch" "${from%/}@PATH@" @DIGEST@ @SIZE@)
    if [ -n "$token" ]; then
        SANDD_TOKEN=$token
        export SANDD_TOKEN
    fi
    unset token
    exec "$python" -I "$file" --server-url "$server" @PINS@"$@" </dev/null
}

main "$@"
"""


def bootstrap_script(
    server_url: str, path: str, digest: str, size: int, *, pins: tuple[str, ...] = ()
) -> bytes:
    """The script of a controller.

    Args:
        server_url: what daemons dial, as whoever asks for the script may do.
        path: where the daemon's file is at the same host.
        digest: its SHA-256, in hexadecimal.
        size: its bytes.
        pins: of the controller's CAs; none: daemons trust those of their system.
    """
    said = {
        "SERVER": shlex.quote(server_url),
        "PATH": path,
        "DIGEST": digest,
        "SIZE": str(size),
        "PINS": f"--ca-pin {shlex.quote(','.join(pins))} " if pins else "",
    }
    script = _SCRIPT
    for name, text in said.items():
        script = script.replace(f"@{name}@", text)
    return script.encode()
