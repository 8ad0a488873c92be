"""What this host has that a plan depends on, looked at before anything is done to it."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import time
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from dtcp import grant, plan
from dtcp.cli import Failure
from dtcp.client.network import is_here
from dtcp.client.options import of_plan
from dtcp.errors import NOT_ALLOWED, CommandFailed, Error, NotRun
from dtcp.look import Interface, Route
from dtcp.system import System

# Seconds in which what was seen still holds: a server, or a password, may be long in coming, and
# what was free then, or down, may be in use.
FRESH = 1.0


class Unusable(Failure):
    """This host lacks what the options name, so trying again (-l) makes no sense."""


class Survey:
    """This host, as it was before we did anything to it (`host`)."""

    def __init__(self, options: argparse.Namespace, system: System) -> None:
        self.host = plan.Host()
        self._options, self._wanted = options, of_plan(options)
        self._system = system
        self._made_at = -math.inf
        self._has_been_made = False
        self._is_router = False  # it forwards IPv6
        self._routes: dict[IPv6Network, Route] | None = None  # seen at this login
        self._checked_lan: tuple[Interface, ...] = ()  # when a grant was checked last

    def names_something(self) -> bool:
        """Whether the options name what this host must have: then nothing is sent if it has not."""
        wanted = self._wanted
        named = (wanted.interface, wanted.delegations, wanted.solicit, wanted.fib is not None)
        return any(named) or not self._options.create

    def begin(self) -> None:
        """Look at the host before the first login, once.  Raises Unusable.

        Where nothing can be wrong with the options, this is done while the connection is under way:
        with a server that is far away, importing `sh` and looking cost no time.
        """
        if self._has_been_made:
            return
        try:
            self._refuse_plain_jail()
            self.make()
        except Error as error:
            if isinstance(error, NotRun) and self._options.loop:
                raise  # we are blind, not sure: it is looked again at the next attempt
            raise Unusable(str(error), error.status) from None

    def _refuse_plain_jail(self) -> None:
        try:
            answer = self._system.look.settings("security.jail.jailed", "security.jail.vnet")
        except CommandFailed as failed:
            # What the sysctl(8) of Linux says, or nobody does.
            if re.search("/proc/sys/|no such command", failed.reason):
                raise Failure(
                    "this is not FreeBSD, whose commands make the tunnel; `make demo` shows it on"
                    " Linux"
                ) from None
            return  # what follows will tell
        if answer == ["1", "0"]:
            raise Failure(
                "this jail has no network stack of its own, so no tunnel can be made in it;"
                " give it one (vnet in jail.conf), or run dtcpc on the host",
                NOT_ALLOWED,
            )

    def make(self) -> None:
        """Look at what the options name on this host.  Raises Failure, CommandFailed."""
        fib = self._wanted.fib
        if fib is not None and fib >= (count := int(self._system.look.settings("net.fibs")[0])):
            raise Failure(f"-F: {fib}: no such FIB; this host has {count} (sysctl net.fibs)")
        lan = tuple(self._lan(self._lan_names()))
        missing = [name for name in self._lan_names() if name not in (each.name for each in lan)]
        if missing and not self._options.loop:
            raise Failure(f"-P: {missing[0]}: no such interface")
        forwards = False
        if lan or self._wanted.solicit:
            forwarding, despite = self._system.look.settings(
                "net.inet6.ip6.forwarding", "net.inet6.ip6.rfc6204w3"
            )
            self._is_router = forwarding != "0"
            # With rfc6204w3 a router takes a default route from an advertisement all the same.
            forwards = self._is_router and not (self._wanted.solicit and despite != "0")
        self._made_at, self._has_been_made = time.monotonic(), True
        self.host = plan.Host(
            self._existing(), forwards=forwards, lan=lan, advertised=self._advertised(())
        )

    def _lan_names(self) -> list[str]:
        return list(dict.fromkeys(each.interface for each in self._wanted.delegations))

    def _lan(self, names: Iterable[str]) -> list[Interface]:
        """Those of these interfaces that are there."""
        found = map(self._system.look.interface, names)
        return [interface for interface in found if interface is not None]

    def _advertised(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """The interfaces of -P that a running rtadvd serves, other than ours."""
        if not (self._wanted.delegations and self._wanted.advertise):
            return ()
        names = self._lan_names()
        try:
            return tuple(each for each in self._system.look.advertised() if each in names)
        except NotRun:
            return known  # we are blind, not sure

    def refresh(self) -> bool:
        """Look again at what may come and go while the tunnel is up; whether a plan is affected.

        Raises CommandFailed.
        """
        if not self._wanted.delegations:
            return False
        before = self.host
        there = [each.name for each in before.lan]
        late = self._lan(name for name in self._lan_names() if name not in there)
        self._is_router = self._system.look.settings("net.inet6.ip6.forwarding") != ["0"]
        self.host = before._replace(
            lan=(*before.lan, *late), advertised=self._advertised(before.advertised)
        )
        return self.host != before

    def hints(self, granted: grant.Grant) -> list[str]:
        """What keeps others from using the tunnel, a line each.  Raises CommandFailed."""
        found = []
        if not self._wanted.delegations:
            if granted.prefixes and not self._has_address_of(granted.prefixes):
                found.append("no interface has an address of this prefix: give -P, or use -t host")
            return found
        there = [each.name for each in self.host.lan]
        found += [
            f"{name}: no such interface yet; it gets its addresses when it comes"
            for name in self._lan_names()
            if name not in there
        ]
        if there and not self._is_router:
            found.append(
                "this host does not forward IPv6, so its LAN will get no further than here:"
                ' set ipv6_gateway_enable="YES" in /etc/rc.conf and run'
                " `service routing options`"
            )
        return found

    def _has_address_of(self, prefixes: Iterable[IPv6Network]) -> bool:
        return any(
            address in prefix
            for interface in self._system.look.interfaces().values()
            for address in interface.addresses
            for prefix in prefixes
        )

    def _existing(self) -> Interface | None:
        """The interface that is there already and is to be used, if any."""
        name = self._wanted.interface
        if not self._options.create:
            found = self._system.look.interface(name or "gif0")
            if found is None:
                raise Failure(f"{name or 'gif0'}: no such interface; create it, or leave out -c")
            if "gif" not in found.groups:
                raise Failure(f"{found.name}: not a gif interface; -c cannot use it")
            if found.outer is None and found.running:
                raise Failure(f"{found.name}: has an outer pair over IPv6; -c cannot use it")
            return found
        if self._options.udp:  # has an interface of its own
            if name is not None and self._system.look.interface(name) is not None:
                raise Failure(f"{name}: already exists; choose another name")
            return None
        if name is None:
            return next(filter(_is_kept, self._system.look.group(plan.GROUP)), None)
        found = self._system.look.interface(name)
        if found is not None and not _is_kept(found):
            raise Failure(f"{name}: already exists; use it with -c, or choose another name")
        return found

    def look_at_routes(self) -> None:
        """See the routes of this login early; `check` does it if this cannot."""
        self._routes = None
        if not self._system.stands:
            with contextlib.suppress(CommandFailed):
                self._routes = self._system.look.ipv6_routes(self._wanted.fib)

    def check(
        self, granted: grant.Grant, before: grant.Grant | None, server: IPv4Address | None
    ) -> None:
        """See that a grant takes nothing from this host, and what it depends on.

        `before` is what stands already, `server` the address where we logged in.  Raises Failure,
        CommandFailed.
        """
        standing = self._system.stands
        if not standing and time.monotonic() > self._made_at + FRESH:
            self.make()
        self._made_at = -math.inf
        is_same = before is not None and granted == before._replace(key=granted.key)
        if is_same and self.host.lan == self._checked_lan:
            return
        routes = self._routes
        if routes is None:
            routes = self._system.look.ipv6_routes(self._wanted.fib)
        reached = self._reached(routes, before)
        try:
            if not standing:
                for address in (granted.inner, granted.peer):
                    if address is not None and is_here(address):
                        raise grant.GrantError(self._taken(address))
            grant.check_against(granted, reached)
            for interface, lan in plan.lan_addresses(granted, self._wanted, self.host):
                # What it is connected to already it may have one more address of.
                others = [
                    network
                    for network, route in reached.items()
                    if route.interface != interface.name or "G" in route.flags
                ]
                grant.check_address_against(lan.ip, others)
            if granted.remote != server:
                grant.check_remote_against(granted.remote, self._system.look.ipv4_networks())
        except grant.GrantError as error:
            raise Failure(
                f"{self._options.server}: the server's grant makes no sense: {error}"
            ) from None
        if not standing:
            self.host = self.host._replace(default_route=plan.ANYWHERE in routes)
        ours = () if before is None else before.prefixes
        of_others = {*routes} - ({*ours} - {*self.host.routed})
        routed = tuple(each for each in granted.prefixes if each in of_others)
        self.host = self.host._replace(routed=routed)
        self._checked_lan = self.host.lan

    def _reached(
        self, routes: dict[IPv6Network, Route], before: grant.Grant | None
    ) -> dict[IPv6Network, Route]:
        """Those of these routes by which this host reaches something without the tunnel."""
        existing = self.host.existing
        tunnel = existing.name if existing else self._system.tunnel
        # What we have made ourselves, and no more: in a prefix of ours there may be others' routes.
        ours: list[IPv6Network] = [*self._wanted.destinations]
        ours += [alias.address.network for alias in self._wanted.aliases]
        if before is not None:
            ours += [IPv6Network(each) for each in (before.inner, before.peer) if each]
            lan = plan.lan_addresses(before, self._wanted, self.host)
            ours += [address.network for _, address in lan]
        return {
            network: route
            for network, route in routes.items()
            if route.interface != tunnel
            and not {"R", "B"} & set(route.flags)
            and not any(network.subnet_of(each) for each in ours if each != plan.ANYWHERE)
        }

    def _taken(self, address: IPv6Address) -> str:
        """That this host has an address already, and how to be rid of it."""
        try:
            where = [
                name
                for name, interface in self._system.look.interfaces().items()
                if address in interface.addresses
            ]
        except CommandFailed:
            where = []
        if not where:
            return f"{address} is an address of this host already"
        return (
            f"{address} is an address of {where[0]} already; if that is a mistake, `ifconfig"
            f" {where[0]} inet6 {address} -alias`"
        )

    def why_not(self, failed: CommandFailed, granted: grant.Grant) -> str:
        """Why the tunnel could not be made, as far as looking tells more than the command did."""
        if "SIOCIFCREATE2" in failed.reason and "Invalid argument" in failed.reason:
            return "the kernel has no gif(4): kldload if_gif (for a jail, on its host)"
        if failed.words[0] == "ngctl" and failed.reason in (
            "can't create node: Protocol not supported",
            # To mkpeer: the kernel looks for a module of that name; in a jail it may not.
            "send msg: No such file or directory",
            "send msg: Operation not permitted",
        ):
            return (
                "the kernel has no netgraph: kldload ng_socket ng_iface ng_ksocket (for a jail,"
                " on its host)"
            )
        if "tunnel" in failed.words or "tunnel inet" in failed.reason:
            with contextlib.suppress(CommandFailed):
                for each in self._system.look.group("gif"):
                    if each.outer == (granted.local, granted.remote):
                        whose = f" ({each.description})" if each.description else ""
                        return (
                            f"{each.name}{whose} has the outer pair {granted.local} -->"
                            f" {granted.remote} already, and no two can have the same"
                        )
        return f"the tunnel could not be made: {failed}"


def _is_kept(interface: Interface) -> bool:
    """Whether an interface is one that an earlier run left with -o: in our group, and bare."""
    return plan.GROUP in interface.groups and not (
        interface.outer or interface.description or interface.up
    )
