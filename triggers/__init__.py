"""Event sources: each turns one kind of outside happening into events."""
