"""FreeBSD's network commands on a Linux kernel.

``bin/`` holds ``ifconfig``, ``route``, ``netstat``, ``sysctl``, ``rtsol``, ``rtadvd``, ``rtadvctl``
and ``ngctl`` for the hosts of the lab that play FreeBSD. They take FreeBSD's arguments, print
FreeBSD's words and exit with FreeBSD's status, oddities included, and what they say is really done
to the network namespace they run in.

How a command runs (``command``)::

    store.load, linux.observe, the command's words change the model, linux.project, store.save

``model`` is the host as FreeBSD's kernel has it, ``addresses``, ``routes`` and ``links`` are the
rules by which it changes. Nothing in these four knows Linux. ``linux`` reads what only Linux
can know (links that came or went, what router advertisements brought) and afterwards makes the
namespace look like the model. A gif is a TUN device and a ``gif_relay`` process, an ng interface
(``netgraph``) a TUN device and a ``ksocket_relay``. Routers are found with real messages (``ndp``).

A FreeBSD host is a network, mount and UTS namespace with a private /run. There, in /run/freebsd:

    release     "15.1" (without the file) or "13.2": which one to be
    jail        "plain" or "vnet": we are inside a jail of that kind
    lacks       kernel modules that there are none of, such as "if_gif ng_ksocket"
    hostid      the interface identifier of gifs, such as "5421:59e4:dad1:1a39"; else a random one
    faults      what shall go wrong (see ``faults``)
    rtsol-seconds, rtadvd-seconds
                how long rtsol(8) waits for an answer, and rtadvd(8) between its farewells:
                10 and 3, as on the real one, is long for a test
    ksocket-steadfast
                with this file an ICMP unreachable does not take the peer of an ng_ksocket away
    state.json  the model; netgraph.json the nodes of netgraph(4)
    refused     what Linux would not do: always a bug of the lab, and empty
"""
