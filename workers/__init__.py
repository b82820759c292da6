"""Where storage and models meet: one Celery task, one file per kind of job."""
