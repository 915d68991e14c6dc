"""The main job: score, train, score again, export."""
