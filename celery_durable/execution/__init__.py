"""One delivery, from Celery's message to the execution's state and back."""
