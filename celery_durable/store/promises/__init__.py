"""Promises in the database: made, settled, looked at."""
