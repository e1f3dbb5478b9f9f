"""A model of timm as it is, for targets that change parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel

from xarch import Initialisation, Student, Teacher
from xarch_image import ImageFacts
from xarch_timm.build import create
from xarch_timm.model import TimmStudent
from xarch_timm.target import TimmTarget


class SameTimm(TimmTarget):
    """Students are the teacher: built from its facts alone, all weights copied."""

    def build(
        self, facts: ImageFacts, options: BaseModel, decisions: Mapping[str, Any], *, device: torch.device
    ) -> TimmStudent:
        with torch.device(device):
            net = create(facts)
        student = TimmStudent(net, facts)
        student.decide(decisions)
        return student

    def initialisation(self, facts: ImageFacts, student: Student) -> Initialisation:
        return Initialisation(copied=tuple(student.module.state_dict()))

    def initialise(self, student: Student, teacher: Teacher) -> Initialisation:
        student.module.load_state_dict(teacher.weights())
        return self.initialisation(student.facts, student)
