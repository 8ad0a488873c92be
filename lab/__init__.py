"""A small internet on one machine, Linux or FreeBSD, for the demo and the tests.

``enclosure`` runs a command so that nothing it creates outlives it; ``internet`` builds the hosts
and wires inside, from what ``machine`` provides: namespaces with imitations of FreeBSD's commands
(``linux``, ``freebsd``), or VNET jails (``jails``). ``demo`` shows a tunnel from start to finish,
``hands`` leaves it all up for trying things by hand.
"""

import os

SLOW = float(os.environ.get("LAB_SLOW", "1"))
"""How many times slower than usual this machine is: all limits grow by it."""
