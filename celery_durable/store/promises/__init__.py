"""Promises in the database: making, settling and reading them."""
