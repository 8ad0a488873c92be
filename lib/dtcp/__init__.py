"""What the DTCP client and server share: protocol, grants, plans and the door to the system."""

__version__ = "0.1.0"
