"""What is said about the licence of a student."""

from __future__ import annotations


def licence_text(licence: str | None, teacher: bool) -> str:
    """Return a sentence on the licence of a student.

    Args:
        licence: the teacher's, if it states one.
        teacher: whether the student was made from a teacher.
    """
    if not teacher:
        return "The student was trained without a teacher; it has the licence that you give it."
    if licence:
        return f"The teacher's licence is {licence}; the student's weights are derived from it."
    return (
        "The teacher states no licence. The student's weights are derived from it, so its terms apply: check them "
        "before you redistribute the student."
    )
