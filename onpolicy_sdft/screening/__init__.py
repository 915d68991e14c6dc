"""Keep a rollout, fall back to the demonstration, drop the example or draw again; each with its reason.

A rollout is refused by the first of these that has something against it:

1. Feedback: what the student's own attempt made of the row (``train/feedback.py``), in ``Screen.judge``.
2. Text rules: what the text itself shows (``TEXT_RULES``), in ``Screen.reason``, as each text ends (``watch.py``).
3. Review: what the policy makes of it, shown the bare prompt (``REVIEW_RULES``), in ``BarePromptReview.reason``.
4. Pick: of several samples of a demonstration one is learned, in ``pick_best``.
"""
