"""Accuracy on held-out rows."""

from xarch import Evaluation, Metric


class Accuracy(Metric):
    """Share of rows whose likeliest class is the label; gated besides: agreement with the teacher."""

    figures = ("accuracy", "agreement")

    def evaluate(self, request):
        models = dict(request.students) | ({} if request.teacher is None else {"teacher": request.teacher})
        right, same, rows = dict.fromkeys(models, 0), 0, 0
        for batch in request.batches():
            said = {}
            for name, model in models.items():
                seen = batch.seen_by("teacher" if name == "teacher" else "student")
                said[name] = model.collect(seen, {"logits"})["logits"].argmax(-1)
                right[name] += int((said[name] == batch["labels"]).sum())
            same += int((said["student"] == said["teacher"]).sum()) if "teacher" in said else 0
            rows += len(batch)
            request.progress(batch.units)
        found = {name: {"accuracy": count / rows} for name, count in right.items()}
        teacher, student = found.pop("teacher", {}), found.pop("student")
        gated = {"agreement": same / rows} if teacher else {}
        return Evaluation("accuracy", True, "share", teacher, student, found, gated, n=rows)
