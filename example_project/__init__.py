"""A small shop that survives the death of its workers: the example project of ``celery_durable``."""
