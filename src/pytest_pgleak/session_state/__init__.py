"""What is left in the session of a connection that goes back to its pool."""
