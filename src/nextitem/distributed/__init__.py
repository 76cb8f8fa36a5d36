"""The few places where processes talk to one another."""
