"""What only the client has: it shares nothing of it with the server."""
