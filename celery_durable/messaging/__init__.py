"""Celery messages: stored, captured, recorded, sent."""
