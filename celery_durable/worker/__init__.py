"""The durable side of a Celery worker: recovery, and what the parent process of a pool has to say."""
