"""What "right" means: the wording of a question, the check of an answer, an answer that passes."""

from onpolicy_sdft.tasks.loading import TASKS, load_task
from onpolicy_sdft.tasks.protocol import Task, work_of

__all__ = ["TASKS", "Task", "load_task", "work_of"]
