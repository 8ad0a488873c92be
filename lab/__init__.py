"""A small internet on one machine, Linux or FreeBSD, for the demo and the tests.

``enclosure`` runs a command so that nothing it makes outlives it; ``internet`` builds the hosts and
the wires inside, out of what ``machine`` offers: namespaces with FreeBSD's commands in front
(``linux``, ``freebsd``), or VNET jails (``jails``). ``demo`` shows a tunnel from its first line to
its last.
"""

import os

SLOW = float(os.environ.get("LAB_SLOW", "1"))
"""How many times slower than usual this machine is: all limits grow by it."""
