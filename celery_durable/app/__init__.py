"""Which Celery application is meant, and what connects it to the journal."""
