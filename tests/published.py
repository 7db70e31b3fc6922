"""A published checkpoint as the start of an objective."""

from __future__ import annotations

from albef.models import folders
from albef.models.convert import Checkpoint
from albef.objectives.pretrain import PretrainObjective


def load_objective(objective: PretrainObjective, checkpoint: Checkpoint) -> None:
    """Puts a published checkpoint's model, teacher and queues into `objective`, to go on or to compare.

    Without a teacher in it the teacher starts as a copy of the model; without queues they stay as they are. ValueError
    when sizes differ, e.g. `queue_size` or `model.config.image_size`.
    """
    folders.load_strictly(objective.model, checkpoint.model, "the checkpoint's model")
    objective.teacher.copy(objective.model)
    if checkpoint.teacher is not None:
        folders.load_strictly(objective.teacher.model, checkpoint.teacher, "the checkpoint's teacher")
    if checkpoint.queue is not None:
        folders.load_strictly(objective.queue, checkpoint.queue, "the checkpoint's queue")
