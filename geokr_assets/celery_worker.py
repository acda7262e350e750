"""The app of Celery's workers: ``celery --app geokr_assets.celery_worker worker --queues dagster``.

The same as Dagster's own, with the settings of `celery_settings`: ``dagster-celery worker start`` would write the broker's
address, and the password in it, into a file of the Dagster instance. Only workers load this module.
"""

from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task, create_resume_job_task, create_task

from geokr_assets.executors import MAX_LOST_PROCESSES, celery_settings

app = make_app()
app.conf.update(
    broker_url=(_settings := celery_settings())["broker"],
    result_backend=_settings["backend"],
    **_settings["config_source"],
)
execute_plan = create_task(app, max_retries=MAX_LOST_PROCESSES, default_retry_delay=0)
execute_job = create_execute_job_task(app)
resume_job = create_resume_job_task(app)
