"""Where storage and models meet: two Celery tasks, one file per kind of job."""
