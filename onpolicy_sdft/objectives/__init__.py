"""What the student minimises: pure functions of tensors, chunked over the loss tokens."""
