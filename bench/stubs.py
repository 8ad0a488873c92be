"""Commands that do nothing, and print what FreeBSD's print: what is left is our own time.

They are scripts for sh(1) that start no process.  What they are told they keep in files, so that
who looks whether a command worked sees that it did; an empty file is one that was removed.
"""

from __future__ import annotations

from pathlib import Path

# `n` is where the search for a free number begins: 0, or the script's own pid, which spares a
# server with ten thousand interfaces the search.
_IFCONFIG = r"""#!/bin/sh
set -C
cd DIRECTORY
case $1,$2 in
-g,*)
    exit 0
    ;;
gif,create)
    n=FIRST
    until { true >"gif$n"; } 2>/dev/null; do
        n=$((n + 1))
    done
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in
        description|mtu) echo "$1='$2'" >>"gif$n"; shift ;;
        tunnel) echo "tunnel='$2 --> $3'" >>"gif$n"; shift 2 ;;
        group|fib) shift ;;
        esac
        shift
    done
    echo "gif$n"
    ;;
*,)
    if [ "$1" = -a ]; then
        set -- gif*
    elif ! [ -s "$1" ]; then
        echo "ifconfig: interface $1 does not exist" >&2
        exit 1
    fi
    for name; do
        [ -s "$name" ] || continue
        description= mtu=1280 tunnel= inet6=
        . "./$name"
        echo "$name: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> metric 0 mtu $mtu
	description: $description
	options=80000<LINKSTATE>
	tunnel inet $tunnel
	inet6 fe80::1%$name prefixlen 64 scopeid 0x4
	inet6 $inet6 prefixlen 128
	groups: gif dtcp
	nd6 options=21<PERFORMNUD,AUTO_LINKLOCAL>"
    done
    ;;
*,tunnel)
    echo "tunnel='$3 --> $4'" >>"$1"
    ;;
*,inet6)
    case $* in
    *-alias) ;;
    *) echo "inet6='$3 --> $4'" >>"$1" ;;
    esac
    ;;
*,destroy)
    true >|"$1"
    ;;
esac
"""

_ROUTE = r"""#!/bin/sh
cd DIRECTORY
action=$2
[ "$action" != monitor ] || exec sleep 100000
shift 3
file=route-${1%/*}
case $action in
get)
    if ! [ -s "$file" ]; then
        echo "route: route has not been found" >&2
        exit 1
    fi
    read -r interface <"$file"
    to=${1%/*}
    [ "$to" != default ] || to=::
    flags=UP,DONE,STATIC
    [ "$interface" != -reject ] || flags=$flags,REJECT
    echo "   route to: $to
destination: $to
       mask: ::
        fib: 0
  interface: $interface
      flags: <$flags>"
    ;;
add)
    echo "$3" >"$file"
    echo "add net $1: gateway $3"
    ;;
delete)
    true >"$file"
    echo "delete net $1: gateway $3"
    ;;
esac
"""

_NETSTAT = """#!/bin/sh
echo "Routing tables"
echo "Destination Gateway Flags Netif Expire"
"""

_SYSCTL = """#!/bin/sh
shift
for name; do
    echo 0
done
"""


_SCRIPTS = {"ifconfig": _IFCONFIG, "netstat": _NETSTAT, "route": _ROUTE, "sysctl": _SYSCTL}


def make(directory: Path, *, first: str) -> Path:
    """Make the commands in an empty directory; what to put in front of PATH."""
    commands, kept = directory / "bin", directory / "kept"
    commands.mkdir()
    kept.mkdir()
    for name, script in _SCRIPTS.items():
        text = script.replace("DIRECTORY", str(kept)).replace("FIRST", first)
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return commands


def forget(commands: Path) -> None:
    """Let them forget what they were told."""
    for path in (commands.parent / "kept").iterdir():
        path.unlink()
