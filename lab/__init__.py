"""A small internet on one Linux machine, for the demo and the tests.

``enclosure`` runs a command so that nothing it makes outlives it; ``internet``
builds the hosts and the wires inside; ``freebsd`` puts FreeBSD's commands in
front of them; ``demo`` shows a tunnel from its first line to its last.
"""
