"""Entries on their way into the journal, and out of it."""
