"""What only the server has; nothing of the client's is imported here."""
