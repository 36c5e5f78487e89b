"""The durable side of a Celery worker: recovery, and requests of a pool's parent process."""
