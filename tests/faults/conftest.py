"""Real brokers and workers, made to be killed."""

from support.fixtures import bell, broker, start_worker, truth

__all__ = ["bell", "broker", "start_worker", "truth"]
