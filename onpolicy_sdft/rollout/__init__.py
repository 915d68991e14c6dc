"""Generation on the training weights: requests of token ids in, rollouts out. No text in this room."""
