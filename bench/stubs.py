"""Commands that do nothing but print what FreeBSD's print, so that only our own time remains.

They are sh(1) scripts that start no process.  They remember what they are told in files, so that
a check whether a command worked sees that it did; an empty file stands for a removed one.
"""

from __future__ import annotations

from pathlib import Path

from lab.freebsd.crowd import takes

# `n` is where the search for a free number starts: 0, or the script's own pid, which spares a
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
        sleep IFCONFIG
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
case $1 in
-I)
    echo "Name Mtu Network Address Ipkts Ierrs Idrop Ibytes Opkts Oerrs Obytes Coll"
    echo "$2 1280 <Link#3> $2 1 0 0 104 1 0 104 0"
    ;;
-i*)
    sleep COUNTERS
    echo "Name Mtu Network Address Ipkts Ierrs Idrop Ibytes Opkts Oerrs Obytes Coll"
    ;;
*)
    sleep ROUTES
    echo "Routing tables"
    echo "Destination Gateway Flags Netif Expire"
    ;;
esac
"""

_SYSCTL = """#!/bin/sh
shift
for name; do
    echo 0
done
"""


_SCRIPTS = {"ifconfig": _IFCONFIG, "netstat": _NETSTAT, "route": _ROUTE, "sysctl": _SYSCTL}


def make(directory: Path, *, first: str, crowd: int = 0) -> Path:
    """Create the commands in an empty directory; what to put in front of PATH.

    What looks at everything takes as long as FreeBSD does where there are `crowd` interfaces.
    """
    looks = {"IFCONFIG": "ifconfig", "COUNTERS": "netstat -i", "ROUTES": "netstat -r"}
    commands, kept = directory / "bin", directory / "kept"
    commands.mkdir()
    kept.mkdir()
    for name, script in _SCRIPTS.items():
        text = script.replace("DIRECTORY", str(kept)).replace("FIRST", first)
        for word, look in looks.items():
            text = text.replace(f"sleep {word}", f"sleep {takes(look, crowd):.1f}" * bool(crowd))
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return commands


def forget(commands: Path) -> None:
    """Make them forget what they were told."""
    for path in (commands.parent / "kept").iterdir():
        path.unlink()
