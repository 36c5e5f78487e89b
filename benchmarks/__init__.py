"""What celery_durable costs, measured beside what it is compared with: ``make bench``."""
